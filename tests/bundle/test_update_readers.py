"""Readers of a bundle see the old or the new state during an update."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from updates import FIRST, SECOND, change, content, first

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import (
    PENDING,
)
from mwa_export.bundle.update import changed_bundle
from mwa_export.errors import BundleError


def test_pending_files_of_others_content_are_not_read(tmp_path: Path) -> None:
    bundle = first(tmp_path / "bundle")
    (bundle.path / PENDING).mkdir()
    (bundle.path / PENDING / "a.onnx").write_text("old a.onnx")
    (bundle.path / "a.onnx").write_text("bad a.onnx")
    assert Bundle.open(bundle.path).file("a.onnx").parent.name == PENDING
    (bundle.path / PENDING / "a.onnx").write_text("bad a.onnx")
    with pytest.raises(BundleError, match="is not the file"):
        Bundle.open(bundle.path)


def test_manifest_is_read_again_if_a_change_comes_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = first(tmp_path / "bundle")
    check = Bundle.file
    changed: list[str] = []

    def file(self: Bundle, name: str) -> Path:
        if not changed:
            changed.append(name)
            change(bundle.path)
        return check(self, name)

    monkeypatch.setattr(Bundle, "file", file)
    assert content(Bundle.open(bundle.path)) == SECOND


def test_files_are_checked_where_they_are_loaded(tmp_path: Path) -> None:
    bundle = first(tmp_path / "bundle")
    os.utime(bundle.path / "a.onnx")
    assert bundle.graph("text")[0].name == "a.onnx", "only touched"
    (bundle.path / "a.onnx.data").write_text("Old a.onnx.data")
    with pytest.raises(BundleError, match=r"a\.onnx\.data: is not the file"):
        bundle.graph("text")


def test_readers_are_not_turned_away_by_changes(tmp_path: Path) -> None:
    base = first(tmp_path / "base")
    path = first(tmp_path / "bundle").path
    ended = threading.Event()

    def read() -> int:
        count = 0
        while not ended.is_set():
            assert Bundle.open(path).manifest.files.keys() in (FIRST.keys(), SECOND.keys())
            count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for _ in range(10):
            change(path)
            with changed_bundle(base, path, force=True) as prepared:
                prepared.write(base.manifest)
        ended.set()
        assert reader.result() > 10
