"""Parquet: a bad value costs one row, slices bound memory, and folders become columns."""

from __future__ import annotations

import datetime
import io
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from embed_samples import png

from mwa_export.data.arrow import Column, opened
from mwa_export.data.rows import Row
from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.data.test_sets import DataOptions, parse_data, read_data
from mwa_export.errors import DataError, ImageError
from mwa_export.inputs.content import Kind


def write(path: Path, rows: int = 3, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows)
    return path


def not_utf8(*values: bytes) -> Any:
    return pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())


def read(kind: Kind, spec: object, work: Path, **options: Any) -> list[Row]:
    source = open_source(kind, str(spec), SourceOptions(**options))
    rows = list(source.rows(0, source.scan(work).rows))
    for start in range(len(rows)):
        assert list(source.rows(start, len(rows))) == rows[start:]
    return rows


def codes(rows: list[Row]) -> list[str | None]:
    return [row.problem and row.problem.code for row in rows]


NOT_UTF8 = not_utf8(b"a", b"caf\xe9", b"c")
FAR = pyarrow.array([1, 10_000_000, 3], pyarrow.int32()).cast(pyarrow.date32())


@pytest.mark.parametrize(
    ("columns", "options", "code"),
    [
        ({"text": NOT_UTF8}, {}, "not-text"),
        ({"text": list("abc"), "d": FAR}, {"columns": ("d",)}, "malformed"),
        ({"text": list("abc"), "k": NOT_UTF8}, {"id_column": "k"}, "not-text"),
        ({"text": list("abc"), "k": NOT_UTF8}, {"columns": ("k",)}, "not-text"),
    ],
)
def test_a_value_that_python_cannot_have_costs_its_row(
    columns: dict[str, Any], options: dict[str, Any], code: str, tmp_path: Path
) -> None:
    rows = read("text", write(tmp_path / "t.parquet", **columns), tmp_path, **options)
    assert codes(rows) == [None, code, None]
    assert rows[0].content == "a"


def test_each_of_several_captions_fails_beside_a_bad_column(tmp_path: Path) -> None:
    texts = [["a", "b"], ["c", "d"], ["e"]]
    path = write(tmp_path / "t.parquet", text=texts, d=FAR)
    rows = read("text", path, tmp_path, columns=("d",))
    assert codes(rows) == [None, None, "malformed", "malformed", None]
    assert [row.id for row in rows] == ["0#0", "0#1", "1#0", "1#1", "2"]
    assert rows[4].columns == (datetime.date(1970, 1, 4),)


def test_a_path_that_is_not_utf8_fails_and_a_test_set_names_it(tmp_path: Path) -> None:
    for name in "ac":
        (tmp_path / name).write_bytes(png(1))
    path = write(tmp_path / "t.parquet", image=NOT_UTF8, caption=list("xyz"))
    assert codes(read("image", path, tmp_path)) == [None, "not-text", None]
    with pytest.raises(DataError, match='row 1: "image" is not UTF-8'):
        parse_data(path)


def test_rows_behind_a_damaged_page_fail_and_those_of_other_groups_do_not(tmp_path: Path) -> None:
    pictures = [png(n) for n in range(9)]
    path = write(tmp_path / "t.parquet", image=pictures, key=[f"k{n}" for n in range(9)])
    with opened(str(path)) as parquet:
        place = parquet.metadata.row_group(1).column(0)
    start = place.dictionary_page_offset or place.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + place.total_compressed_size] = bytes(place.total_compressed_size)
    path.write_bytes(data)
    rows = read("image", path, tmp_path, id_column="key")
    assert codes(rows) == [None] * 3 + ["unreadable"] * 3 + [None] * 3
    assert [row.id for row in rows] == [f"k{n}" for n in range(9)]
    assert [row.id for row in read("image", path, tmp_path)] == [str(n) for n in range(9)]


class Watched(io.FileIO):
    """A file that remembers the longest read."""

    longest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(-1 if size is None else size) or b""
        Watched.longest = max(Watched.longest, len(found))
        return found


def test_a_large_row_group_is_read_in_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, size = 1024, 1 << 16
    pictures = [bytes([n % 256]) * size for n in range(rows)]
    path = tmp_path / "t.parquet"
    pages: dict[str, Any] = {"use_dictionary": False, "compression": "none", "write_batch_size": 16}
    pyarrow.parquet.write_table(pyarrow.table({"image": pictures}), path, **pages)
    source = open_source("image", str(path), SourceOptions())
    assert source.scan(tmp_path).rows == rows
    monkeypatch.setattr("mwa_export.data.arrow.open_file", Watched)
    column, most, before = Column(str(path), 0, "image"), 0, pyarrow.total_allocated_bytes()
    for row, _ in enumerate(source.rows(0, rows)):
        assert column.value(row)[0] == row % 256
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert column.value(5)[0] == 5
    assert 0 < most < rows * size / 3
    assert 0 < Watched.longest < rows * size / 8


def test_pictures_of_a_test_set_are_read_in_any_order_and_changes_noticed(tmp_path: Path) -> None:
    pictures = [png(n) for n in range(150)]
    captions = [f"c{n}" for n in range(150)]
    path = write(tmp_path / "t.parquet", 100, image=pictures, caption=captions)
    data = read_data(path)
    for n in (0, 149, 70, 3, 99, 100, 63, 64, 63):
        assert data.pictures[n].read() == pictures[n]
    write(path, 100, image=pictures[:2], caption=captions[:2])
    fresh = read_data(path).pictures[1]
    write(path, 100, image=pictures[:1], caption=captions[:1])
    from mwa_export.data import parquet

    parquet._column.cache_clear()
    with pytest.raises(ImageError, match="no row 1"):
        fresh.read()


@pytest.fixture
def hive(tmp_path: Path) -> Path:
    for lang, split in (("de", "x"), ("en", "x"), ("en", "y%20z")):
        text = f"{lang} {split}"
        write(
            tmp_path / "set" / f"lang={lang}" / f"split={split}" / "0.parquet",
            text=[text], image=[text.encode()],
        )  # fmt: skip
    (tmp_path / "set" / "_SUCCESS").write_text("")
    return tmp_path / "set"


def test_folders_of_hive_are_columns_of_their_files(hive: Path, tmp_path: Path) -> None:
    for spec in (hive, f"{hive}/*/*/*.parquet"):
        rows = read("text", spec, tmp_path, columns=("lang", "split"))
        assert [row.content for row in rows] == ["de x", "en x", "en y%20z"]
        assert [row.columns for row in rows] == [("de", "x"), ("en", "x"), ("en", "y z")]
    rows = read("text", hive, tmp_path, id_column="lang")
    assert [row.id for row in rows] == ["de", "en", "en"]
    assert parse_data(hive, DataOptions(split="x")).captions == ("de x", "en x")


def test_a_moved_partition_is_another_source(hive: Path, tmp_path: Path) -> None:
    before = open_source("text", str(hive), SourceOptions()).scan(tmp_path).fingerprint
    (hive / "lang=de").rename(hive / "lang=da")
    assert open_source("text", str(hive), SourceOptions()).scan(tmp_path).fingerprint != before


def test_an_unknown_time_zone_is_named(tmp_path: Path) -> None:
    zoned = pyarrow.array([1], pyarrow.timestamp("us", "Mars/Base"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "at": zoned}), tmp_path / "t.parquet")
    source = open_source("text", str(tmp_path / "t.parquet"), SourceOptions(columns=("at",)))
    [row] = source.rows(0, source.scan(tmp_path).rows)
    assert "the time zone Mars/Base" in str(row.problem)
