"""`mwa-export embed` on a changed source, and its exit status when rows fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import refused, run
from embed_samples import png

pytestmark = pytest.mark.slow


@pytest.fixture
def command(files: Path, tmp_path: Path) -> list[object]:
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(4):
        (photos / f"{n}.png").write_bytes(png(n))
    named = ("embed", files / "bundle", "--images", photos, "-o", tmp_path / "out")
    return [*named, "--runtime", "onnxruntime", "--precision", "float32"]


def test_an_update_says_what_it_kept(command: list[object], tmp_path: Path) -> None:
    assert run(*command, "--update").status == 0  # also where there is nothing yet
    (tmp_path / "photos/0.png").unlink()
    (tmp_path / "photos/z.png").write_bytes(png(9))
    assert "--update" in refused(*command)
    outcome = run(*command, "--update", "--dry-run")
    assert "1 row in 1 shard" in outcome.stdout
    outcome = run(*command, "--update", "--vanished", "keep")
    assert outcome.status == 0, outcome
    assert "images: 5 embedded + 0 failed + 0 skipped = 5 rows" in outcome.stdout
    assert "4 rows kept" in outcome.stderr
    assert run("embed", "--verify", tmp_path / "out").status == 0


def test_many_failed_rows_are_no_success_and_can_be_tried_again(
    command: list[object], tmp_path: Path
) -> None:
    bad = tmp_path / "photos/3.png"
    good = bad.read_bytes()
    bad.write_bytes(b"x" * len(good))
    for _ in range(2):  # also once it is finished
        outcome = run(*command)
        assert outcome.status == 1
        assert "1 of 4 images failed" in outcome.stderr
        assert "images: 3 embedded + 1 failed" in outcome.stdout
    assert run(*command, "--max-errors", "1").status == 0
    state = bad.stat()
    bad.write_bytes(good)
    os.utime(bad, ns=(state.st_atime_ns, state.st_mtime_ns))  # as if a server were back
    outcome = run(*command, "--retry-failed")
    assert outcome.status == 0, outcome
    assert "images: 4 embedded + 0 failed" in outcome.stdout


def test_options_that_need_an_update_say_so(command: list[object]) -> None:
    assert "--vanished requires --update" in run(*command, "--vanished", "keep").stderr
    assert "--shard" in refused(*command, "--update", "--shard", "1/2")
