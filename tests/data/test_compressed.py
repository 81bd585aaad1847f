"""A compressed table yields the same rows as a plain one; a damaged one gives one error."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from embed_samples import png

from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.data.test_sets import parse_data
from mwa_export.errors import DataError
from mwa_export.inputs.content import Kind


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
    "GZ": gzip.compress,
}
TABLE = "image,caption\na.png,käfer\na.png,zwei\n"
FILES = {
    "t.csv": TABLE.encode(),
    "t.tsv": TABLE.replace(",", "\t").encode("utf-16"),
    "t.jsonl": b'{"image": "a.png", "captions": ["k\\u00e4fer", "zwei"]}\n',
    "k.json": json.dumps({"images": [{"filename": "a.png", "split": "test", "imgid": 0,
                          "sentences": [{"raw": "käfer"}, {"raw": "zwei"}]}]}).encode(),
}  # fmt: skip


def contents(kind: Kind, path: Path) -> list[object]:
    source = open_source(kind, str(path), SourceOptions())
    rows = list(source.rows(0, source.scan(path.parent).rows))
    assert not [row.problem for row in rows if row.problem]
    return [row.content for row in rows]


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", FILES)
def test_a_compressed_file_has_the_same_rows_for_all(
    name: str, suffix: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(PACKERS[suffix](FILES[name]))
    assert contents("text", path) == ["käfer", "zwei"]
    assert len(contents("image", path)) in (1, 2)
    assert parse_data(path).captions == ("käfer", "zwei")
    if name != "k.json":  # a folder is read if it has a table
        assert parse_data(tmp_path).captions == ("käfer", "zwei")


def test_compressed_lists_and_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "list.txt.gz").write_bytes(gzip.compress(b"a.png\n"))
    assert len(contents("image", tmp_path / "list.txt.gz")) == 1
    assert contents("text", tmp_path / "list.txt.gz") == ["a.png"]


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", ["t.csv", "k.json"])
def test_a_damaged_one_is_one_error(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.{suffix}"
    whole = PACKERS[suffix](FILES[name] * (500 if name == "t.csv" else 1))
    for data in (b"image,caption\na,b\n", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"cannot be (read|decompressed)|not a Karpathy"):
            parse_data(path)
