"""Sources in memory and finished outputs for tests of `embed`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mwa_export.bundle.bundle import Bundle
from mwa_export.data.rows import Row, Scan, Source
from mwa_export.embed.run import Execution, Summary, run
from mwa_export.inputs.content import Kind, Problem
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.vectors.job import EmbedOptions
from mwa_export.vectors.output import Output
from mwa_export.vectors.shards import restored

ONNX = RuntimeOptions("onnxruntime", "float32")


@dataclass(frozen=True)
class ListSource:
    """Rows in a list."""

    kind: Kind
    items: Sequence[Row]
    columns: tuple[str, ...] = ()
    fingerprint: str = "f00d"

    @property
    def name(self) -> str:
        return f"list of {self.kind}s"

    def scan(self, work: Path) -> Scan:
        assert work.is_dir()
        first: dict[str, int] = {}
        doubled = [n for n, row in enumerate(self.items) if first.setdefault(row.id, n) != n]
        return Scan(len(self.items), self.fingerprint, np.array(doubled, np.int64))

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        return iter(self.items[start:stop])


def png(seed: int) -> bytes:
    """A small picture; other seeds give other pictures."""
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def texts(count: int, **more: Any) -> ListSource:
    """Texts of different lengths, some of them identical; row 7 has nothing to embed."""
    letters = "abcdefghijklmnop"
    rows = []
    for number in range(count):
        starts = [(number * 7 + i) % 11 for i in range(number % 9)]
        words = [letters[start : start + 4] for start in starts]
        content = " ".join(["abc", *words])
        if number == 7:
            rows.append(Row(f"t{number}", None, problem=Problem("null", "the text is null")))
        else:
            rows.append(Row(f"t{number}", content))
    return ListSource("text", rows, **more)


def pictures(count: int, bad: Sequence[int] = (), **more: Any) -> ListSource:
    """Pictures, of which some cannot be decoded."""
    rows = [Row(f"p{n}.png", b"<html>" if n in bad else png(n)) for n in range(count)]
    return ListSource("image", rows, **more)


def embed(
    bundle: Path,
    sources: Sequence[Source],
    out: Path,
    how: Execution | None = None,
    **options: Any,
) -> Summary:
    """Run `embed` in this process, on ONNX Runtime."""
    return run(
        Bundle.open(bundle),
        sources,
        out,
        options=EmbedOptions(**({"shard_size": 8, "batch": 3} | options)),
        runtime=ONNX,
        how=how,
    )


def errors(out: Path) -> list[dict[str, Any]]:
    """The rows that failed."""
    if (out / "errors.jsonl").exists():
        return [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(out / "errors.parquet").to_pylist()
    return rows


def vectors_of(out: Path, folder: str) -> tuple[list[str], NDArray[Any]]:
    """Ids and restored vectors of a whole kind."""
    output = Output.load(out)
    assert output is not None
    stems = sorted({p.stem for p in (out / folder).iterdir()})
    parts = [output.read(f"{folder}/{stem}") for stem in stems]
    ids = [id for part in parts for id in part.ids]
    return ids, np.concatenate([restored(part.vectors, part.scales) for part in parts])
