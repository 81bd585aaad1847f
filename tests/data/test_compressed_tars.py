"""Compressed tars yield the same samples as plain ones, in `embed` and in test sets."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from embed_samples import png
from tar_files import tar_of

from mwa_export.data.compressed import plain_copy
from mwa_export.data.rows import Source
from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.data.test_sets import read_data
from mwa_export.errors import DataError

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".TAR.XZ": lzma.compress,
}


def tar(start: int = 0) -> bytes:
    names = range(start, start + 3)
    return tar_of({f"{n}.{x}": c for n in names for x, c in (("png", png(n)), ("txt", b"a cat"))})


def rows_of(source: Source, work: Path) -> list[tuple[str, object]]:
    work.mkdir(exist_ok=True)
    rows = source.rows(0, source.scan(work).rows)
    return [(row.id, getattr(row.content, "read", lambda: None)()) for row in rows]


@pytest.mark.parametrize("suffix", PACK)
def test_pictures_are_those_of_the_plain_tar(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK[suffix](tar()))
    source = open_source("image", str(path), SourceOptions())
    found = rows_of(source, tmp_path / "work")
    assert found == [(str(n), png(n)) for n in range(3)]
    data = read_data(path)
    assert [picture.read() for picture in data.pictures] == [png(n) for n in range(3)]
    assert str(data.pictures[0]) == f"{path}:0.png", "not of the copy"


def test_folder_may_hold_plain_and_compressed_tars(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "a.tar").write_bytes(tar())
    (folder / "b.tar.gz").write_bytes(gzip.compress(tar(3)))
    source = open_source("image", str(folder), SourceOptions())
    assert len(rows_of(source, tmp_path / "work")) == 6


def test_damaged_compression_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    for content in (gzip.compress(tar())[:-20], b"no gzip", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.tar\.gz: "):
            read_data(path)


def test_tar_that_is_compressed_under_a_plain_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(gzip.compress(tar()))
    with pytest.raises(DataError, match=r"Rename it to end with \.gz"):
        read_data(tmp_path / "a.tar")


def test_copies_are_made_once(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar()))
    copy = plain_copy(str(tmp_path / "a.tar.gz"))
    assert copy.read_bytes() == tar()
    os.unlink(tmp_path / "a.tar.gz")
    assert plain_copy(str(tmp_path / "a.tar.gz")) == copy
