"""Graphs of other tools in place of a bundle's own graphs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from mwa_export import Bundle, BundleError
from mwa_export.runtimes.onnxrt import choose_graphs


@pytest.mark.parametrize(
    ("tower", "axis", "expected"),
    [
        ("vision", 0, r"input image has the fixed shape \[7, "),
        ("text", 0, r"input token_ids has the fixed shape \[7, "),
        ("text", 1, r"input token_ids has the fixed shape \['batch', 7\]"),
    ],
)
def test_a_graph_with_a_fixed_shape_is_refused(
    tower: str, axis: int, expected: str, files: Path, tmp_path: Path
) -> None:
    model = onnx.load(files / "bundle" / f"{tower}.onnx")
    for port in model.graph.input:
        port.type.tensor_type.shape.dim[axis].dim_value = 7
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(BundleError, match=expected):
        choose_graphs(Bundle.open(files / "bundle"), [str(tmp_path / "fixed.onnx")])
