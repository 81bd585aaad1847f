"""Magnitudes of values inside a float32 graph."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from mwa_export.bundle.bundle import Bundle
from mwa_export.progress import Silent
from mwa_export.runtimes.backend import inputs_of
from mwa_export.runtimes.magnitudes import largest_magnitudes
from mwa_export.spec import Tower


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_every_float_that_a_node_makes_is_measured(
    files: Path, tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(files / "bundle")
    path, graph = bundle.graph(tower)
    model = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.value_info, *model.output)}
    made = [value for node in model.node for value in node.output]
    # Inference serializes the weights, and protobuf ends at 2 GB.
    monkeypatch.delattr(onnx.shape_inference, "infer_shapes")
    inputs = [inputs_of(bundle.conformance(), tower)]
    found = largest_magnitudes((path, graph), inputs, Silent())
    assert list(found) == [value for value in made if types[value] == onnx.TensorProto.FLOAT]
    assert max(found.values()) > 1
