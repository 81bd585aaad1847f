"""A command that crashes leaves the old bundle or the new one, and the next run cleans up.

The disk is copied before every call that changes it, which is the state after a crash there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import run
from deaths import Deaths, deaths
from parity_files import write_test_set
from trt_fake_gpu import LateDriver, LateTensorRT

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import Manifest

pytestmark = pytest.mark.slow

FEW = (
    *("--samples", 16, "--no-search", "--points", 0, "--no-smooth"),
    *("--max-recall-drop", 100, "--undecided", "pass", "--dialect", "onnxruntime", "--threads", 1),
)


def watched(disk: Path, into: Path, *arguments: Any) -> Deaths:
    """Run a command that works, watching a folder."""
    with deaths(disk, into) as found:
        outcome = run(*arguments)
    assert outcome.status == 0, outcome
    return found


def opened(state: Path) -> Manifest | None:
    """The manifest of the bundle in a state, whose files all fit; None: there is none."""
    path = state / "bundle"
    return Bundle.open(path).manifest if path.exists() else None


def one_step(found: Deaths) -> list[Manifest | None]:
    """The outcomes of a death: the old state, and from one call on the new one."""
    outcomes = [opened(state) for state in found.states]
    new = outcomes.index(outcomes[-1])
    assert outcomes == [outcomes[0]] * new + [outcomes[-1]] * (len(outcomes) - new)
    assert 0 < new < len(outcomes)
    return [outcomes[0], outcomes[-1]]


@pytest.mark.parametrize("old", [False, True])
def test_export_that_dies(old: bool, checkpoint: Path, files: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if old:
        shutil.copytree(files / "bundle", disk / "bundle")
    export = ("onnx", checkpoint, "--force", "-o")
    found = watched(disk, tmp_path / "states", *export, disk / "bundle")
    before, after = one_step(found)
    assert (before is None) != old
    assert after is not None
    for state in found.states[len(found.states) // 2 :: 12]:
        assert run(*export, state / "bundle").status == 0
        assert Bundle.open(state / "bundle").manifest == after
        assert os.listdir(state) == ["bundle"]
        assert not [name for name in os.listdir(state / "bundle") if name.startswith(".")]


def test_quantization_that_dies(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "bundle", tmp_path / "disk" / "bundle")
    bundle, data = tmp_path / "disk" / "bundle", tmp_path / "data"
    write_test_set(data, pictures=36)
    for method in ("minmax", "percentile"):  # the second replaces graphs
        arguments = ("quantize", bundle, "--data", data, *FEW, "--method", method)
        found = watched(tmp_path / "disk", tmp_path / method, *arguments)
        before, after = one_step(found)
        assert before is not None
        assert after is not None
        assert (before.quantization is None) == (method == "minmax")
        assert before.files.keys() <= after.files.keys()


def test_engines_that_die(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = LateDriver()
    driver.install(monkeypatch)
    LateTensorRT(11, driver).install(monkeypatch)
    shutil.copytree(files / "bundle", tmp_path / "disk" / "bundle")
    bundle = tmp_path / "disk" / "bundle"
    found = watched(tmp_path / "disk", tmp_path / "states", "trt", bundle, "--fp16")
    counts = [len(manifest.engines) for s in found.states if (manifest := opened(s)) is not None]
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2}, "each engine is kept as soon as it is built"
    middle = found.states[counts.index(1)] / "bundle"
    assert run("trt", middle, "--fp16").status == 0
    assert Bundle.open(middle).manifest.engines == Bundle.open(bundle).manifest.engines
