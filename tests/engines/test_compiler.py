"""NVIDIA's compiler accepts all engine graphs, and finds each past fault if it is put back."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from compiled import calibrated, compiled, faults
from configs import CONFIGS
from onnx import helper

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import EnginePrecision
from mwa_export.calib.calibrate import CalibrationOptions
from mwa_export.calib.dialects import DIALECTS
from mwa_export.demo.run import assets
from mwa_export.engines import graphs
from mwa_export.errors import EngineError
from mwa_export.export.export import ExportOptions, bundle_from_model
from mwa_export.graphs.apart import without_concatenations
from mwa_export.graphs.cast_first import cast_first
from mwa_export.graphs.edit import FloatGraph
from mwa_export.graphs.typed import Typed, to_float16
from mwa_export.model.load import Model, ModelSource, load_model
from mwa_export.model.synthetic import random_tensors
from mwa_export.spec import AdapterConfig, BackboneConfig, ModelConfig, Tower
from mwa_export.towers.engine_form import engine_form, keys_and_values

pytestmark = pytest.mark.slow
pytest.importorskip(
    "tensorrt_rtx_bindings", reason='no compiler here: pip install "mwa-export[tensorrt-rtx]"'
)


def _backbone(width: int, image_size: int) -> BackboneConfig:
    return BackboneConfig(width, 4 * width, 2, 90, image_size, 16, 62)


BASE = ModelConfig(_backbone(768, 224), AdapterConfig("both", 64, "in", 0.6, "parallel"))
BYTES = ModelConfig(_backbone(128, 384), AdapterConfig("both", 16, "out", 0.6, "parallel"), True)
MODELS = {**CONFIGS, "base": BASE, "bytes": BYTES}
PRECISIONS: tuple[EnginePrecision, ...] = ("float16", "bfloat16", "int8", "float8")
TOWERS: tuple[Tower, ...] = ("vision", "text")
SEVERAL: tuple[EnginePrecision, ...] = ("int8", "float16")

GRAPHS = [
    *(("demo", tower, precision) for tower in TOWERS for precision in PRECISIONS),
    *((name, *chosen) for name in CONFIGS for chosen in zip(TOWERS, SEVERAL, strict=True)),
    *(("base", "vision", precision) for precision in PRECISIONS),
    ("base", "text", "int8"),
    *(("bytes", "vision", precision) for precision in SEVERAL),
]

Made = Callable[[str], Bundle]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Makes calibrated bundles by name, each once."""
    bundles: dict[str, Bundle] = {}

    def make(name: str) -> Bundle:
        if name not in bundles:
            folder = tmp_path_factory.mktemp("compiler") / name
            options = ExportOptions(image_input="uint8" if name == "bytes" else "float32")
            smooth = CalibrationOptions(smooth=name != "base")  # which is slow, and folds
            bundles[name] = calibrated(bundle_from_model(_model(name), folder, options), smooth)
        return bundles[name]

    return make


def _model(name: str) -> Model:
    if name == "demo":
        return load_model(ModelSource(assets()[0]))
    config = MODELS[name]
    return Model(config, random_tensors(config), (), ())


@pytest.mark.parametrize(("name", "tower", "precision"), GRAPHS)
def test_graph_is_compiled_as_it_is_meant(
    name: str, tower: Tower, precision: EnginePrecision, made: Made, tmp_path: Path
) -> None:
    found = compiled(made(name), tower, precision, tmp_path)
    assert faults(found) == {}
    assert bool(found.made.products) == (precision in ("int8", "float8"))


# --- faults that the compiler once showed, put back ---


def _with_norms_apart(graph: FloatGraph) -> FloatGraph:
    """LayerNorms as single operations, which compute in the type of the graph."""
    nodes: list[onnx.NodeProto] = []
    tensors = {**graph.tensors, "last": np.asarray([-1], np.int64)}
    tensors["epsilon"] = np.asarray(1e-5, np.float32)

    def add(op: str, *inputs: str, name: str) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name=name))
        return name

    for node in graph.nodes:
        if node.op_type != "LayerNormalization":
            nodes.append(node)
            continue
        (x, gamma, beta), norm = node.input, node.name
        mean = add("ReduceMean", x, "last", name=f"{norm}.mean")
        centred = add("Sub", x, mean, name=f"{norm}.centred")
        square = add("Mul", centred, centred, name=f"{norm}.square")
        variance = add("ReduceMean", square, "last", name=f"{norm}.variance")
        above_0 = add("Add", variance, "epsilon", name=f"{norm}.above_0")
        root = add("Sqrt", above_0, name=f"{norm}.root")
        unit = add("Div", centred, root, name=f"{norm}.unit")
        scaled = add("Mul", unit, gamma, name=f"{norm}.scaled")
        add("Add", scaled, beta, name=node.output[0])
    return graph.with_nodes(nodes, tensors)


def _with_attention_of_8_bits(graph: FloatGraph) -> FloatGraph:
    """Q/DQ at both products of attention; what they compute is not the question."""
    tensors = {**graph.tensors, "zero": np.asarray(0, np.int8)}
    tensors["step"] = np.asarray(0.02, np.float32)
    nodes: list[onnx.NodeProto] = []
    for old in graph.nodes:
        node = deepcopy(old)
        if node.name.endswith((".attn.scores.MatMul", ".attn.values.MatMul")):
            for at, value in enumerate(old.input):
                for op in ("QuantizeLinear", "DequantizeLinear"):
                    name = f"{node.name}.{at}.{op}"
                    nodes.append(helper.make_node(op, [value, "step", "zero"], [name], name=name))
                    value = name
                node.input[at] = value
        nodes.append(node)
    return graph.with_nodes(nodes, tensors)


def _form(form: Callable[[FloatGraph], FloatGraph]) -> dict[str, Any]:
    return {"engine_form": form}


def _with_float32_products(*model: Any, keep_float32: Any, **options: Any) -> Typed:
    kept = ("blocks.0.inner_norm.LayerNormalization", "blocks.0.out.MatMul", "blocks.0.out.Add")
    return to_float16(*model, keep_float32=kept, **options)


_COLUMN_SCALES = {**DIALECTS, "tensorrt": replace(DIALECTS["tensorrt"], column_factors=False)}

FAULTS: dict[str, tuple[str, Tower, EnginePrecision, dict[str, Any], set[str]]] = {
    "a GEMM over a concatenation": (
        *("norm_in_learned", "vision", "int8"),
        _form(lambda graph: keys_and_values(cast_first(graph))),
        {"float32 hidden layer"},
    ),
    "a single query on the tokens themselves": (
        *("base", "vision", "float16"),
        _form(lambda graph: without_concatenations(cast_first(graph))),
        {"attention not fused", "narrow statistics"},
    ),
    "a scale for each column": (
        *("base", "text", "int8"),
        {"DIALECTS": _COLUMN_SCALES},
        {"not in its 8 bits", "sums overflow"},
    ),
    "attention in int8": (
        *("norm_in_learned", "text", "int8"),
        _form(lambda graph: _with_attention_of_8_bits(engine_form(graph))),
        {"attention not fused", "narrow statistics"},
    ),
    "norms in the type of the graph": (
        *("norm_out", "vision", "float16"),
        _form(lambda graph: _with_norms_apart(engine_form(graph))),
        {"narrow statistics"},
    ),
    "a product in float32": (
        *("plain", "text", "float16"),
        {"to_float16": _with_float32_products},
        {"not in 16 bits"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_reported_where_it_is_put_back(
    fault: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, tower, precision, replaced, expected = FAULTS[fault]
    bundle = made(name)
    for part, other in replaced.items():
        monkeypatch.setattr(graphs, part, other)
    for guard in ("check", "_check_cosine"):  # which would refuse some of them before
        monkeypatch.setattr(graphs, guard, lambda *_, **__: None)
    assert set(faults(compiled(bundle, tower, precision, tmp_path))) == expected


def test_bytes_that_are_moved_before_they_are_cast_cannot_be_read(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = made("bytes")
    monkeypatch.setattr(
        graphs, "engine_form", lambda graph: without_concatenations(keys_and_values(graph))
    )
    with pytest.raises(EngineError, match=r"patch\.Reshape"):
        compiled(bundle, "vision", "float16", tmp_path)


@pytest.mark.parametrize("precision", ["int8", "float8"])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_float8_attention_stays_one_kernel_for_each_block(
    tower: Tower, precision: EnginePrecision, made: Made, tmp_path: Path
) -> None:
    found = compiled(made("demo"), tower, precision, tmp_path, attention8=True)
    kinds = [{port.kind for port in layer.inputs} for layer in found.layers.attention]
    assert len(kinds) == found.blocks
    # The last block's single query stays as it is, and so does what a mask is added to.
    assert kinds.count({"float8"}) == (found.blocks - 1 if tower == "vision" else 0)
    assert not any(layer.is_softmax for layer in found.layers.layers)
    assert not found.layers.wider(found.made.products, precision)


def test_sums_are_stored_with_the_scales_that_all_columns_share(made: Made, tmp_path: Path) -> None:
    """The engine's constants tell: one factor of the GEMM, and the columns' own behind it."""
    found = compiled(made("demo"), "vision", "int8", tmp_path)
    tensors = found.graph.tensors
    linears = [n.removesuffix(".factors") for n in tensors if n.endswith(".factors")]
    assert len(linears) > 10
    for linear in linears:
        shared = np.float32(tensors[f"{linear}.input.scale"]) * np.float32(
            tensors[f"{linear}.weight.scale"]
        )
        assert shared.tobytes() in found.engine, linear
        assert tensors[f"{linear}.factors"].tobytes() in found.engine, linear
