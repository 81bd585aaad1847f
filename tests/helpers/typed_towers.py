"""Float32 towers to convert to 16 bits, and checks of the result."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from configs import CONFIGS
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mwa_export.inputs.noise import random_pixels, random_texts
from mwa_export.inputs.preprocess import normalize
from mwa_export.model.load import Model
from mwa_export.model.synthetic import random_tensors
from mwa_export.runtimes.ort_session import session
from mwa_export.spec import ImageInput, Tower
from mwa_export.towers.export import onnx_from_tower
from mwa_export.towers.extract import tower_from_model
from mwa_export.towers.merge import merge_tower
from mwa_export.towers.steps import STEPS

KINDS: dict[str, tuple[Tower, ImageInput]] = {
    "vision": ("vision", "float32"),
    "pixels": ("vision", "uint8"),
    "text": ("text", "float32"),
}
Array = NDArray[Any]


@cache
def _tower(name: str, kind: str, merged: bool) -> bytes:
    tower, image_input = KINDS[kind]
    config = CONFIGS[name]
    plan, tensors = tower_from_model(
        config,
        Model(config, random_tensors(config), (), ()).tensors,
        tower,
        image_input=image_input,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.onnx"
        onnx_from_tower(*merge_tower(plan, tensors, STEPS if merged else ()), path)
        return path.read_bytes()


def tower(name: str = "mwa", kind: str = "text", *, merged: bool = True) -> onnx.ModelProto:
    """A float32 tower."""
    return onnx.load_from_string(_tower(name, kind, merged))


def inputs(kind: str) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    if kind == "text":
        ids, mask = random_texts(rng, 4, 9, 90)
        return {"token_ids": ids, "padding_mask": mask}
    pixels = random_pixels(rng, 3, 32)
    return {"image": pixels if kind == "pixels" else normalize(pixels)}


def embed(model: onnx.ModelProto, kind: str, folder: Path) -> Array:
    path = folder / "run.onnx"
    onnx.save(model, path)
    return np.asarray(session(path).run(None, inputs(kind))[0])


def cosine(a: Array, b: Array) -> float:
    """The least cosine of corresponding rows, whose length is 1."""
    return float((a.astype(np.float64) * b).sum(-1).min())


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """The type of everything that a node makes, by strict inference."""
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, True, True, True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}
    assert types.keys() >= {value for node in model.graph.node for value in node.output}
    return types


def in_float32(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    types = value_types(model)
    return [n for n in model.graph.node if any(types[v] == TensorProto.FLOAT for v in n.output)]


def arrays(model: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def replace(model: onnx.ModelProto, name: str, value: Array) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def overflowing() -> onnx.ModelProto:
    """A text tower whose residual stream passes 65504 in its first block."""
    model = tower("mwa", "text")
    weight = arrays(model)["blocks.0.fc2_up.weight"]
    replace(model, "blocks.0.fc2_up.weight", weight * np.float32(60000 / np.abs(weight).max()))
    return model


def quantized(name: str = "blocks.0.qkv", scale: float = 0.02) -> onnx.ModelProto:
    """A text tower with one GEMM between Q/DQ."""
    model = tower()
    weight = arrays(model)[f"{name}.weight"]
    scales = (np.abs(weight).max(0) / 127).astype(np.float32)
    new: Mapping[str, Array] = {
        f"{name}.weight.int8": np.rint(weight / scales).astype(np.int8),
        f"{name}.weight.scale": scales,
        f"{name}.weight.zero_point": np.zeros(len(scales), np.int8),
        f"{name}.input.scale": np.asarray(scale, np.float32),
        "zero": np.asarray(0, np.int8),
    }
    kept = [t for t in model.graph.initializer if t.name != f"{name}.weight"]
    nodes = list(model.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.name == f"{name}.MatMul")
    grid = [f"{name}.input.scale", "zero"]
    weights = [f"{name}.weight.{part}" for part in ("int8", "scale", "zero_point")]
    nodes[at:at] = [
        helper.make_node("QuantizeLinear", [nodes[at].input[0], *grid], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", *grid], ["dq"], name="dq"),
        helper.make_node("DequantizeLinear", weights, ["w"], name="w", axis=1),
    ]
    nodes[at + 3].input[:] = ["dq", "w"]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in new.items())
    return model


EVERY = pytest.mark.parametrize(
    ("name", "kind", "merged"),
    [(name, kind, merged) for name in CONFIGS for kind in KINDS for merged in (True, False)],
)
