"""Temporary files of killed runs are removed by the next run; those of live runs are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import files_below

from mwa_export.files import link_or_copy, new_file, new_folder, scratch_folder

MAKE = {
    "file": "new_file(Path(sys.argv[1]))",
    "folder": "new_folder(Path(sys.argv[1]), marker='m')",
    "scratch": "scratch_folder(Path(sys.argv[1]))",
}


@contextmanager
def other_run(make: str, target: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is in the middle of writing a target."""
    code = f"""
import sys
from pathlib import Path
from mwa_export.files import link_or_copy, new_file, new_folder, scratch_folder

with {MAKE[make]} as path:
    (path / "half" if path.is_dir() else path).write_text("half")
    print("writing", flush=True)
    sys.stdin.readline()
    (path / "m" if path.is_dir() else path).write_text("whole")
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.communicate("go\n")


@pytest.mark.parametrize("make", MAKE)
def test_what_a_killed_run_left_is_removed_by_the_next_for_the_same_target(
    make: str, tmp_path: Path
) -> None:
    with other_run(make, tmp_path / "target") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert len(os.listdir(tmp_path)) == 1
    with new_file(tmp_path / "another") as partial:
        partial.write_text("another")
    assert len(os.listdir(tmp_path)) == 2, "another target's leftovers are not touched"
    with new_folder(tmp_path / "target", marker="m") as folder:
        (folder / "m").write_text("new")
    assert files_below(tmp_path) == {"another": b"another", "target": b"", "target/m": b"new"}


@pytest.mark.parametrize("make", ["file", "scratch"])
def test_run_that_lives_keeps_its_files(make: str, tmp_path: Path) -> None:
    with other_run(make, tmp_path / "target") as process:
        for _ in range(2):
            with new_file(tmp_path / "target") as partial:
                partial.write_text("mine")
        assert len(os.listdir(tmp_path)) == 2
    assert process.returncode == 0
    content = (tmp_path / "target").read_text()
    assert content == {"file": "whole", "scratch": "mine"}[make]
    assert os.listdir(tmp_path) == ["target"]


def test_names_that_only_look_alike_are_kept(tmp_path: Path) -> None:
    names = (".target.0123456789ab.txt", ".target.0123456789AB", ".other.0123456789ab", ".target.x")
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".target.0123456789ab").symlink_to(tmp_path / ".target.x")
    with new_file(tmp_path / "target") as partial:
        partial.write_text("new")
    assert set(os.listdir(tmp_path)) == {*names, "target", ".target.0123456789ab"}


def test_scratch_folder_of_the_system_is_cleared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / ".mwa-export.0123456789ab").mkdir()
    with scratch_folder() as folder, scratch_folder() as second:
        assert {folder, second} == set(tmp_path.iterdir())
    assert os.listdir(tmp_path) == []


def test_link_or_copy_never_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    for _ in range(2):
        with pytest.raises(FileExistsError):
            link_or_copy(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "b").read_text() == "b"
        monkeypatch.setattr(os, "link", _other_disk)
    link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "a"


def _other_disk(*_: object) -> None:
    raise OSError(18, "Invalid cross-device link")
