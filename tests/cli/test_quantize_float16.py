"""`mwa-export quantize --float16`: together with INT8, with data, and used by other commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import files_below, refused, run

from mwa_export import Bundle
from mwa_export.calib.dialects import named_dialects
from mwa_export.calib.earlier import replaced_graphs

FLOAT16 = {"vision.float16.onnx", "text.float16.onnx"}


@pytest.fixture
def copy(files: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return Path(shutil.copytree(files / "bundle", tmp_path / "bundle"))


def test_graphs_are_added_and_what_was_measured_is_recorded(files: Path, tmp_path: Path) -> None:
    before, out = files_below(files / "bundle"), tmp_path / "new"
    sampled = ("--data", files / "data", "--samples", 16, "--seed", 1)
    done = run("quantize", files / "bundle", "--float16", *sampled, "-o", out)
    assert (done.status, done.stdout) == (0, f"{out}\n"), done
    assert "recall was not measured" in done.stderr
    assert files_below(files / "bundle") == before
    added = {g.file: g.measured for g in Bundle.open(out).manifest.graphs if g.measured}
    assert added == {"vision.float16.onnx": 18, "text.float16.onnx": 20}
    shown = json.loads(run("inspect", out, "--json").stdout)["graphs"]
    assert [graph["precision"] for graph in shown] == ["float32"] * 2 + ["float16"] * 2
    message = refused("quantize", files / "bundle", "--float16", "-o", out)
    assert "exists" in message
    assert run("quantize", files / "bundle", "--float16", "-o", out, "--force").status == 0


def test_parity_measures_them_without_a_gpu(copy: Path, files: Path, tmp_path: Path) -> None:
    assert run("quantize", copy, "--float16", "-q").status == 0
    graphs = [part for name in sorted(FLOAT16) for part in ("--graph", name)]
    arguments = ("--reference", copy, "--data", files / "data", *graphs, "--no-cache", "-q")
    done = run("parity", copy, *arguments, "-o", tmp_path / "parity", "--undecided", "pass")
    assert done.status == 0, done
    report = json.loads((tmp_path / "parity" / "report.json").read_text())
    assert "float16" in json.dumps(report)


def test_data_needs_both_towers(files: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    assert run("onnx", files / "checkpoint.pth", "--towers", "text", "-o", one).status == 0
    message = refused("quantize", one, "--float16", "--data", files / "data")
    assert "needs the vision tower" in message
    assert run("quantize", one, "--float16", "-q").status == 0


def test_float16_graphs_make_no_room_for_int8(copy: Path) -> None:
    assert run("quantize", copy, "--float16", "-q").status == 0
    dialects = named_dialects(("all",))
    assert not replaced_graphs(Bundle.open(copy), None, dialects)


@pytest.mark.slow
def test_int8_and_float16_graphs_keep_each_other(copy: Path, files: Path) -> None:
    int8 = ("--data", files / "data", "--held-back", files / "data", "--samples", 16)
    quick = ("--no-search", "--points", 0, "--dialect", "onnxruntime", "--undecided", "pass")
    assert run("quantize", copy, "--float16", "-q").status == 0
    before = Bundle.open(copy).manifest
    assert run("quantize", copy, *int8, *quick, "-q").status == 0
    both = Bundle.open(copy).manifest
    assert {name: both.files[name] for name in FLOAT16} == {n: before.files[n] for n in FLOAT16}
    assert set(before.graphs) < set(both.graphs)
    assert run("quantize", copy, "--float16", "-q").status == 0
    again = Bundle.open(copy).manifest
    assert (set(again.graphs), again.quantization) == (set(both.graphs), both.quantization)
    assert again.files == both.files
