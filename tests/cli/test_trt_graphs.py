"""`mwa-export trt --graphs-only` writes the graphs for engines, without TensorRT or a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
from commands import files_below, refused, run

pytestmark = pytest.mark.slow
FILES = {
    *("vision.float16.onnx", "vision.inputs.json", "text.float16.onnx", "text.inputs.json"),
    "replay.sh",
}


@pytest.fixture(autouse=True)
def without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "tensorrt_rtx_bindings", "polygraphy"):
        monkeypatch.setitem(sys.modules, module, None)


def test_graphs_are_written_and_the_bundle_stays(files: Path, tmp_path: Path) -> None:
    before, out = files_below(files / "bundle"), tmp_path / "graphs"
    outcome = run("trt", files / "bundle", "--fp16", "--graphs-only", out)
    assert (outcome.status, outcome.stdout) == (0, f"{out}\n"), outcome
    assert "vision.float16.onnx: least cosine" in outcome.stderr
    assert set(files_below(out)) == FILES
    assert files_below(files / "bundle") == before


@pytest.mark.parametrize(("version", "opset"), [("8", 17), ("10", 19)])
def test_the_version_decides_the_form(
    version: str, opset: int, files: Path, tmp_path: Path
) -> None:
    options = ("--graphs-only", tmp_path / "graphs", "--for-tensorrt", version)
    assert run("trt", files / "bundle", "--fp16", *options).status == 0
    graph = onnx.load(tmp_path / "graphs" / "text.float16.onnx")
    assert graph.opset_import[0].version == opset


def test_a_folder_is_replaced_only_by_force(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "graphs"
    command = ("trt", files / "bundle", "--fp16", "--graphs-only", out)
    out.mkdir()
    (out / "mine").touch()
    assert "was not made by this command" in refused(*command, "--force")
    (out / "mine").rename(out / "replay.sh")
    assert "--force" in refused(*command)
    assert run(*command, "--force").status == 0
    assert set(files_below(out)) == FILES


def test_best_of_nothing_is_refused(tmp_path: Path) -> None:
    outcome = run("trt", tmp_path, "--best", "--graphs-only", tmp_path / "graphs")
    assert outcome.status == 2
    assert "--best cannot be combined with --graphs-only" in outcome.stderr
