"""Damaged collections give one error, or rows that each have content or a reason."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embed_samples import png
from fuzzing import cases, little_memory, mutated, survived

from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.data.test_sets import DataOptions, read_data
from mwa_export.errors import MwaExportError
from mwa_export.inputs.content import Kind

pytestmark = pytest.mark.slow

ROWS = [("red.png", "a red square"), ("blue.png", 'a "blue", round\nthing'), ("sub/ü.png", "Maß")]


def _tar() -> bytes:
    with tarfile.open(mode="w", fileobj=(file := io.BytesIO())) as archive:
        for number, (_name, text) in enumerate(ROWS):
            for suffix, content in (("png", png(number)), ("txt", text.encode())):
                info = tarfile.TarInfo(f"{number:04}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def _parquet() -> bytes:
    table = pa.table({"image": [png(n) for n in range(3)], "caption": [t for _, t in ROWS]})
    pq.write_table(table, file := io.BytesIO())
    return file.getvalue()


def _table(separator: str) -> bytes:
    quoted = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row] for row in ROWS]
    lines = [["image", "caption"], *quoted]
    return "\r\n".join(separator.join(line) for line in lines).encode()


def _coco() -> bytes:
    images = [{"id": n, "file_name": name} for n, (name, _) in enumerate(ROWS)]
    annotations = [{"id": n, "image_id": n, "caption": t} for n, (_, t) in enumerate(ROWS)]
    return json.dumps({"images": images, "annotations": annotations}).encode()


def _karpathy() -> bytes:
    entries = [
        {"filename": name, "split": "test", "sentences": [{"raw": text}]} for name, text in ROWS
    ]
    return json.dumps({"images": entries}).encode()


def _lines() -> bytes:
    return "\n".join(json.dumps({"image": i, "caption": t}) for i, t in ROWS).encode()


FILES: dict[str, Callable[[], bytes]] = {
    "a.csv": lambda: _table(";"),
    "a.tsv": lambda: _table("\t"),
    "a.jsonl": _lines,
    "coco.json": _coco,
    "karpathy.json": _karpathy,
    "a.parquet": _parquet,
    "a.tar": _tar,
    "a.txt": lambda: "\n".join(text for _, text in ROWS).encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_collection_is_read_or_is_one_error(name: str, tmp_path: Path) -> None:
    path, whole = tmp_path / name, FILES[name]()
    with little_memory():
        for rng in cases(name, 600):
            path.write_bytes(mutated(rng, whole))
            kind: Kind = rng.choice(("image", "text"))
            with survived(rng, MwaExportError):
                _read_twice(kind, path, tmp_path / "work")
            with survived(rng, MwaExportError):
                read_data(path, DataOptions(max_excluded=1000))


def _read_twice(kind: Kind, path: Path, work: Path) -> None:
    """Every row is there, the same each time, with a content or a reason."""
    source = open_source(kind, str(path), SourceOptions())
    work.mkdir(exist_ok=True)
    count = source.scan(work).rows
    rows = list(source.rows(0, count))
    assert len(rows) == count
    assert [row.id for row in source.rows(0, count)] == [row.id for row in rows]
    assert all((row.content is None) == (row.problem is not None) for row in rows)
    assert [row.id for row in source.rows(count // 2, count)] == [r.id for r in rows[count // 2 :]]
