"""The engine inspector's JSON is parsed in the forms of all TensorRT versions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mwa_export.trt.layers import read_build_log, read_inspection


def layer(name: str, kind: str, datatype: str, **more: Any) -> dict[str, Any]:
    ports = [{"Name": "x", "Dimensions": [1, 4], "Format/Datatype": datatype}]
    return {"Name": name, "LayerType": kind, "Inputs": ports, "Outputs": ports, **more}


def inspection(*layers: Any) -> Any:
    return read_inspection(json.dumps({"Layers": list(layers), "Bindings": ["image"]}))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Half", "float16"),
        ("Row major linear FP16 format", "float16"),
        ("Row major linear FP32", "float32"),
        ("Float", "float32"),
        ("Row major Int8 format", "int8"),
        ("Int8", "int8"),
        ("FP8", "float8"),
        ("Float8", "float8"),
        ("BFloat16", "bfloat16"),
        ("N/A due to dynamic shapes", None),
    ],
)
def test_types_of_every_version_are_understood(written: str, read: str | None) -> None:
    for key in ("Format/Datatype", "Datatype"):  # until 8.6 and from 10 on
        port = {"Name": "x", "Dimensions": [1, 4], key: written}
        (found,) = inspection({"Name": "a", "LayerType": "gemm", "Inputs": [port]}).layers
        assert [port.kind for port in found.inputs] == [read]


def port(kind: str, *dims: int) -> dict[str, Any]:
    return {"Name": "x", "Dimensions": list(dims), "Datatype": kind}


def gemm(node: str, inputs: list[Any], constants: list[Any], kind: str = "gemm") -> dict[str, Any]:
    metadata = f"[ONNX Layer: {node}]"
    return {
        "Name": "__myl_CastMulFc_myl0_3",
        "LayerType": kind,
        "Inputs": inputs,
        "Constants": constants,
        "Metadata": metadata,
    }


def test_a_gemm_computes_in_the_wider_type_of_its_factors() -> None:
    rows, bias = port("Int8", -1, 768), port("Float", 1)
    eight = gemm("fc1.MatMul", [rows], [port("Int8", 768, 3072), bias])
    dequantized = gemm("qkv.MatMul", [rows, port("Half", 1, 768, 2304)], [], "runtime_fusion")
    found = inspection(eight, dequantized)
    assert found.gemms == {"int8": 1, "float16": 1}
    (sentence,) = found.reasons("int8", {"fc1.MatMul", "qkv.MatMul"})
    assert sentence == "1 GEMMs compute in float16 (qkv.MatMul)"
    assert not found.reasons("int8", {"fc1.MatMul"}), "what was never quantized is no reason"


def test_what_only_finishes_a_product_is_no_gemm() -> None:
    finish = gemm("fc1.MatMul", [port("Half", -1, 768)], [port("Half", 1, 768)], "kgen")
    assert inspection(finish).gemms == {}


def test_weights_of_version_8_are_a_factor() -> None:
    entry = {
        **layer("fc1", "CaskGemmMatrixMultiply", "Int8"),
        "Weights": {"Type": "Half", "Count": 9},
    }
    assert inspection(entry).gemms == {"float16": 1}


def test_layers_that_the_compiler_prints_are_read() -> None:
    tensors = "[ {{ Name: x, Dimensions: [{}], Strides: [1], Datatype: {}, Format: (Linear) }}]"
    line = (
        f"Name: fc1_myl0_4, LayerType: gemm, Inputs: {tensors.format('-1,768', 'Int8')}, "
        f"Constants: {tensors.format('768,3072', 'Int8')}, "
        f"Outputs: {tensors.format('-1,3072', 'Float')}, TacticName: stub, StreamId: 0, "
        "Metadata: [ONNX Layer: blocks.0.fc1.MatMul\x1e][ONNX Layer: blocks.0.fc1.Add]"
    )
    wait = (
        "Name: entry^bb^wait, LayerType: wait, Inputs: [], Constants: [], Outputs: [], "
        "TacticName: , StreamId: 1, EventId: 12, Metadata: "
    )
    found = read_build_log(["another message", f"Layers:\n{wait}\n{line}\nBindings:\nx"])
    (only,) = found.layers
    assert found.gemms == {"int8": 1}
    assert only.nodes == ("blocks.0.fc1.MatMul", "blocks.0.fc1.Add")
    assert found.float32_matrices(3072) == (only,)
    assert found.float32_matrices(3073) == ()


def test_nodes_come_from_the_metadata_or_the_name() -> None:
    metadata = "[ONNX Layer: blocks.3.fc1.MatMul][ONNX Layer: blocks.3.fc1.Add]"
    told = layer("__myl_Fc_myl0_7", "gemm", "Float", Metadata=metadata)
    named = layer("blocks.4.fc1.MatMul + blocks.4.fc1.Add", "CaskGemm", "Float")
    found = inspection(told, named)
    assert [la.nodes[0] for la in found.layers] == ["blocks.3.fc1.MatMul", "blocks.4.fc1.MatMul"]
    products = {"blocks.3.fc1.MatMul", "blocks.4.fc1.MatMul"}
    assert "2 GEMMs compute in float32 (blocks.3.fc1.MatMul, blocks.4.fc1.MatMul)" in (
        found.reasons("float16", products)
    )


def test_reformats_unfused_attention_and_opaque_parts_are_named() -> None:
    softmax = "[ONNX Layer: blocks.0.attention.Softmax]"
    found = inspection(
        layer("Reformatting CopyNode for Input Tensor 0 to x", "Reformat", "Float"),
        layer("__myl_MaxSubExp_myl0_2", "kgen", "Half", Metadata=softmax),
        layer("_gemm_mha_v2_myl0_5", "fusion", "Half", TacticName="_gemm_mha_v2_0x1f"),
        layer("{ForeignNode[blocks.0.norm...pooler]}", "Myelin", "Half"),
    )
    assert found.reasons("float16", ()) == (
        "1 layers only copy to a different layout or type",
        "attention is not fused: 1 layers compute a separate softmax",
        "1 layers are compiled as a whole, and the inspector does not show what is inside",
    )
    assert found.to_json() == {
        "layers": 4,
        "gemms": {},
        "fused_attention": 1,
        "reformats": 1,
        "opaque": 1,
    }


def test_fused_attention_is_neither_a_gemm_nor_unfused() -> None:
    nodes = "[ONNX Layer: blocks.0.attention.Softmax][ONNX Layer: blocks.0.attention.MatMul]"
    fused = layer("_gemm_mha_v2_myl0_5", "gemm", "Half", TacticName="_gemm_mha_v2", Metadata=nodes)
    assert not inspection(fused).reasons("int8", {"blocks.0.attention.MatMul"})


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", '{"Layers": null}', '{"Layers": [1, null]}', '"Layers"']
)
def test_what_is_not_understood_is_no_error(text: str) -> None:
    assert read_inspection(text).layers == ()


def test_layers_of_engines_without_details_are_names() -> None:
    found = inspection("blocks.0.fc1.MatMul", "Reformatting CopyNode for Input Tensor 0 to x")
    assert found.to_json()["reformats"] == 1
    assert found.gemms == {"unknown": 1}
    products = {"blocks.0.fc1.MatMul"}
    assert not [s for s in found.reasons("int8", products) if "GEMM" in s]
