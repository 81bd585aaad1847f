"""Slices for the GPU machine: cut, transferred in any order, damaged, and packed again."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import pytest
from gpu_carry import receive, slice_folder
from paths import ROOT

MOST = 80 * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What does not compress."""
    folder = tmp_path / "models"
    (folder / "base").mkdir(parents=True)
    (folder / "base" / "a").write_bytes(np.random.default_rng(0).bytes(40_000))
    (folder / "b").write_text("text")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    found.pop("SHA256SUMS", None)
    return found


def test_slices_stay_below_the_limit_and_replace_those_before(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "models.7").mkdir(parents=True)
    (tmp_path / "out" / "models-rtx.0").mkdir()
    slices = slice_folder(folder, tmp_path / "out", MOST)
    assert [path.name for path in slices] == ["models.0", "models.1", "models.2"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *(p.name for p in slices),
        "models-rtx.0",
    }
    for path in slices:
        assert sum(file.stat().st_size for file in path.iterdir()) <= MOST


def test_a_folder_arrives_in_any_order_and_more_than_once(folder: Path, tmp_path: Path) -> None:
    first, second, third = slice_folder(folder, tmp_path / "out", MOST)
    home = tmp_path / "home"
    assert "missing models.0, models.1" in receive(third, home)
    assert "missing models.1" in receive(first, home)
    assert "missing models.1" in receive(first, home)
    assert "unpacked" in receive(second, home)
    assert content(home / "models") == content(folder)
    (home / "models" / "made-there").write_text("kept")
    assert "already" in receive(second, home)
    assert (home / "models" / "made-there").exists()
    assert [path.name for path in home.iterdir()] == ["models"]


def test_a_damaged_slice_is_refused_and_can_be_carried_again(folder: Path, tmp_path: Path) -> None:
    slices = slice_folder(folder, tmp_path / "out", MOST)
    part = slices[1] / "part.001"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + b"?")
    receive(slices[0], tmp_path / "home")
    with pytest.raises(SystemExit, match=r"part\.001.*damaged"):
        receive(slices[1], tmp_path / "home")
    part.write_bytes(whole)
    receive(slices[1], tmp_path / "home")
    assert "unpacked" in receive(slices[2], tmp_path / "home")


def test_slices_of_another_packing_do_not_mix(folder: Path, tmp_path: Path) -> None:
    old = slice_folder(folder, tmp_path / "old", MOST)
    (folder / "b").write_text("changed")
    new = slice_folder(folder, tmp_path / "new", MOST)
    for path in (old[0], old[1], new[2], new[0]):
        receive(path, tmp_path / "home")
    assert "unpacked" in receive(new[1], tmp_path / "home")
    assert content(tmp_path / "home" / "models") == content(folder)


def test_a_slice_with_its_own_script_is_given_to_that(tmp_path: Path) -> None:
    kit = tmp_path / "s0"
    kit.mkdir()
    (kit / "recv_slice.sh").write_text('echo "kept in $TRT_DEST"; exit 3\n')
    script = ROOT / "benchmarks" / "gpu_carry.py"
    command: list[Any] = [sys.executable, script, "receive", kit, tmp_path / "home"]
    done = run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, f"kept in {tmp_path / 'home' / 'trt'}\n")
