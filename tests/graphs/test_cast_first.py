"""Graphs with byte inputs, as TensorRT needs them, cast first and give bit-identical results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import run
from onnx import TensorProto

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import EnginePrecision
from mwa_export.engines.graphs import engine_graph
from mwa_export.graphs.cast_first import cast_first
from mwa_export.graphs.edit import FloatGraph
from mwa_export.progress import Silent
from mwa_export.runtimes.ort_session import run_graph, session
from mwa_export.trt.versions import is_typed


@pytest.fixture(scope="module")
def bytes_bundle(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("uint8") / "bundle"
    assert run("onnx", files / "checkpoint.pth", "-o", out, "--input", "uint8").status == 0
    return Bundle.open(out)


def readers(model: onnx.ModelProto, value: str) -> list[str]:
    return [node.op_type for node in model.graph.node if value in node.input]


def test_the_same_bits_come_out(bytes_bundle: Bundle, tmp_path: Path) -> None:
    path, own = bytes_bundle.graph("vision")
    before = FloatGraph.load(path)
    after = cast_first(before)
    assert readers(before.model, "image") == ["Reshape"]
    assert readers(after.model, "image") == ["Cast"]
    after.write(tmp_path / "after.onnx")
    onnx.checker.check_model(str(tmp_path / "after.onnx"), full_check=True)
    pixels = bytes_bundle.conformance().pixels
    found = run_graph(session(tmp_path / "after.onnx"), own, (pixels,))
    assert np.array_equal(found, run_graph(session(path), own, (pixels,)))


def test_other_graphs_stay_as_they_are(bytes_bundle: Bundle, files: Path) -> None:
    moved = cast_first(FloatGraph.load(bytes_bundle.graph("vision")[0]))
    assert cast_first(moved) is moved
    for path in (bytes_bundle.graph("text")[0], files / "bundle" / "vision.onnx"):
        graph = FloatGraph.load(path)
        assert cast_first(graph) is graph


@pytest.mark.parametrize(
    ("precision", "major", "kind"),
    [
        ("float16", 11, TensorProto.FLOAT16),
        ("bfloat16", 11, TensorProto.FLOAT),
        ("float16", 8, TensorProto.FLOAT),
    ],
)
def test_every_engine_graph_turns_bytes_into_floats_that_tensorrt_has(
    precision: EnginePrecision, major: int, kind: int, bytes_bundle: Bundle, tmp_path: Path
) -> None:
    graph = engine_graph(bytes_bundle, "vision", precision, is_typed(major), tmp_path, Silent())
    model = onnx.load(graph.path)
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    (cast,) = (node for node in model.graph.node if "image" in node.input)
    assert cast.op_type == "Cast"
    assert [attribute.i for attribute in cast.attribute if attribute.name == "to"] == [kind]
    assert graph.cosine >= 0.998
