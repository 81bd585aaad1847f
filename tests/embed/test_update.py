"""An update computes new rows, reuses the rest, and gives a complete output."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from commands import files_below
from embed_samples import ONNX, ListSource, embed, errors, pictures, png, texts, vectors_of
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.data.rows import Row
from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.embed.plan import Slice
from mwa_export.embed.progress import MaxErrors
from mwa_export.embed.rehearse import rehearse
from mwa_export.embed.run import Execution
from mwa_export.embed.update import Update
from mwa_export.errors import DataError, OutputDamagedError, TooManyErrorsError, UsageError
from mwa_export.runtimes.onnxrt import OnnxBackend
from mwa_export.search.run import open_output
from mwa_export.vectors.job import EmbedOptions
from mwa_export.vectors.output import UPDATE as UPDATES
from mwa_export.vectors.output import Output
from mwa_export.vectors.verify import verify

UPDATE = Execution(update=Update())
KEEP = Execution(update=Update(vanished="keep"))
RETRY = Execution(update=Update(source=False, retry_failed=True))


@pytest.fixture(scope="module")
def bundle(files: Path) -> Path:
    return files / "bundle"


def changed(source: ListSource, items: Any, fingerprint: str = "beef") -> ListSource:
    return replace(source, items=list(items), fingerprint=fingerprint)


def by_id(out: Path, folder: str) -> dict[str, NDArray[Any]]:
    ids, vectors = vectors_of(out, folder)
    return dict(zip(ids, vectors, strict=True))


@contextmanager
def computed() -> Iterator[list[int]]:
    """Rows that the model gets, but for the conformance inputs."""
    seen: list[int] = []
    image, text = OnnxBackend.embed_images, OnnxBackend.embed_texts

    def embed_images(self: OnnxBackend, pixels: NDArray[Any]) -> NDArray[Any]:
        seen.append(len(pixels))
        return image(self, pixels)

    def embed_texts(self: OnnxBackend, ids: NDArray[Any], mask: NDArray[Any]) -> NDArray[Any]:
        seen.append(len(ids))
        return text(self, ids, mask)

    with (
        mock.patch.object(OnnxBackend, "embed_images", embed_images),
        mock.patch.object(OnnxBackend, "embed_texts", embed_texts),
        mock.patch("mwa_export.runtimes.onnxrt.check_graphs"),
    ):
        yield seen


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_only_new_and_changed_rows_are_computed(
    bundle: Path, tmp_path: Path, dtype: str, format: str
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"dtype": dtype, "format": format}
    old = pictures(21, bad=(3, 20))
    embed(bundle, [old], out, **options)
    before = by_id(out, "images")
    rows = [Row("new.png", png(77)), *old.items[1:10], Row("p10.png", png(78)), *old.items[11:]]
    new = changed(old, rows)
    with computed() as seen:
        summary = embed(bundle, [new], out, UPDATE, **options)
    assert (sum(seen), summary.kept, summary.complete) == (2, 19, True)
    after = by_id(out, "images")
    assert set(after) == {row.id for row in rows} - {"p3.png", "p20.png"}
    same = set(after) - {"new.png", "p10.png"}
    assert all((after[id] == before[id]).all() for id in same)
    assert (after["p10.png"] != before["p10.png"]).any()
    fresh = tmp_path / "fresh"
    embed(bundle, [new], fresh, **options)
    expected = by_id(fresh, "images")
    assert list(after) == list(expected)
    for id, vector in after.items():
        np.testing.assert_allclose(vector, expected[id], atol=0.02)
    assert errors(out) == errors(fresh)
    assert set(files_below(out)) == set(files_below(fresh))
    assert verify(out).findings == ()


def test_rows_that_moved_are_kept_by_their_content(bundle: Path, tmp_path: Path) -> None:
    out, old = tmp_path / "out", texts(30)
    embed(bundle, [old], out)
    moved = [Row(str(n), row.content, problem=row.problem) for n, row in enumerate(old.items[::-1])]
    with computed() as seen:
        embed(bundle, [changed(old, moved)], out, UPDATE)
    assert seen == []
    ids, vectors = vectors_of(out, "texts")
    assert ids == [str(n) for n in range(30) if n != 22]
    fresh = tmp_path / "fresh"
    embed(bundle, [changed(old, moved)], fresh)
    np.testing.assert_allclose(vectors, vectors_of(fresh, "texts")[1], atol=1e-5)


def test_an_unfinished_output_goes_on_after_a_change(bundle: Path, tmp_path: Path) -> None:
    out, old = tmp_path / "out", pictures(24, bad=(20,))
    embed(bundle, [old], out, Execution(part=Slice(1, 3)))  # the first 8 rows
    new = changed(old, [*old.items[1:], Row("late.png", png(99))])
    with pytest.raises(DataError, match=r"fingerprint: was f00d, is beef.*`update`"):
        embed(bundle, [new], out)
    with computed() as seen:
        summary = embed(bundle, [new], out, UPDATE)
    assert summary.complete
    assert sum(seen) == 24 - 1 - (8 - 1)
    assert verify(out).findings == ()
    assert embed(bundle, [new], out).embedded_now == 0


def test_an_update_that_was_given_up_is_not_lost(bundle: Path, tmp_path: Path) -> None:
    out, rows = tmp_path / "out", pictures(40, bad=(38,)).items
    old = pictures(8)
    embed(bundle, [old], out)
    second = changed(old, [*rows[8:], *rows[:8]], "second")
    stop = replace(UPDATE, max_errors=MaxErrors(0))
    with pytest.raises(TooManyErrorsError):
        embed(bundle, [second], out, stop)
    assert verify(out).findings == ()  # the old one, as long as there is no other
    assert embed(bundle, [old], out).embedded_now == 0
    with computed() as seen:
        embed(bundle, [changed(old, second.items[1:], "third")], out, UPDATE)
    assert sum(seen) <= 30 - 7  # the first part of the second at least was finished
    assert verify(out).findings == ()
    assert not (out / UPDATES).exists()


def test_readers_find_an_update_that_is_taking_the_place_of_the_output(
    bundle: Path, tmp_path: Path
) -> None:
    out, new = tmp_path / "out", texts(12, fingerprint="beef")
    embed(bundle, [texts(9)], out)
    with (
        mock.patch("mwa_export.vectors.install._link", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        embed(bundle, [new], out, UPDATE)
    assert verify(out).counts["text"].rows == 12
    assert open_output(out).output.folder.parent.name == ".update"
    assert embed(bundle, [new], out).complete  # without `update`: it was made already
    assert verify(out).findings == ()


def test_a_rehearsal_counts_what_is_new_and_writes_nothing(bundle: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", EmbedOptions(shard_size=8, batch=3)
    embed(bundle, [texts(20)], out)
    before = files_below(out)
    new, opened = texts(23, fingerprint="beef"), Bundle.open(bundle)
    for source, rows in ((texts(20), 0), (new, 3)):
        found = rehearse(opened, [source], out, options=options, runtime=ONNX, update=Update())
        assert found.rows == rows
    assert files_below(out) == before


def test_vanished_rows_are_dropped_or_kept(bundle: Path, tmp_path: Path) -> None:
    out, old = tmp_path / "out", texts(30, columns=("n",))
    old = replace(old, items=[replace(row, columns=(n,)) for n, row in enumerate(old.items)])
    embed(bundle, [old], out)
    before = by_id(out, "texts")
    new = changed(old, old.items[5:20])
    summary = embed(bundle, [new], out, KEEP)
    total = summary.counts["text"]
    assert (total.rows, total.embedded, total.failed) == (30, 29, 1)
    ids, _vectors = vectors_of(out, "texts")
    gone = [f"t{n}" for n in (*range(5), *range(20, 30))]
    assert ids == [row.id for row in new.items if row.content] + gone
    after = by_id(out, "texts")
    assert all((after[id] == before[id]).all() for id in before)
    output = Output.load(out)
    assert output is not None
    assert output.read("texts/part-00003").columns["n"] == [24, 25, 26, 27, 28, 29]
    assert sum(len(block.vectors) for block in open_output(out).blocks()) == 29
    assert verify(out).findings == ()
    assert embed(bundle, [new], out).embedded_now == 0  # the plain command reports it
    assert embed(bundle, [new], out, KEEP).embedded_now == 0
    assert embed(bundle, [new], out, UPDATE).counts["text"].rows == 15
    assert verify(out).findings == ()
    with pytest.raises(UsageError, match="vanished=keep"):
        embed(bundle, [changed(old, old.items[:4], "cafe")], out, KEEP, limit=3)


def test_failed_rows_are_tried_again_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    class Flaky(ListSource):
        def rows(self, start: int, stop: int) -> Iterator[Row]:
            for row in self.items[start:stop]:
                yield replace(row, content=Server(row.id, row.content, down), place=[row.id, 1, 1])

    down = {"p3.png", "p9.png", "p20.png"}
    out, source = tmp_path / "out", Flaky("image", pictures(21, bad=(20,)).items)
    embed(bundle, [source], out)
    down.clear()
    assert embed(bundle, [source], out, UPDATE).counts["image"].failed == 3
    with computed() as seen:
        summary = embed(bundle, [source], out, RETRY)
    assert (sum(seen), summary.counts["image"].failed, summary.kept) == (2, 1, 18)
    assert [e["id"] for e in errors(out)] == ["p20.png"]
    assert verify(out).findings == ()
    with pytest.raises(DataError, match="fingerprint"):
        embed(bundle, [changed(source, source.items)], out, RETRY)


class Server:
    """A picture that cannot be had while its name is in ``down``."""

    def __init__(self, name: str, data: Any, down: set[str]) -> None:
        self.name, self._data, self._down = name, data, down

    def read(self) -> bytes:
        from mwa_export.errors import ImageError

        if self.name in self._down:
            raise ImageError(f"{self.name}: the server is down.")
        return bytes(self._data)


@pytest.mark.parametrize(
    ("change", "found"),
    [({"dtype": "float16"}, "dtype: was float32"), ({"shard_size": 4}, "shard_size: was 8, is 4")],
)
def test_other_options_are_refused_and_leave_all_as_it_was(
    bundle: Path, tmp_path: Path, change: dict[str, Any], found: str
) -> None:
    out = tmp_path / "out"
    embed(bundle, [texts(9)], out)
    before = files_below(out)
    with pytest.raises(DataError, match=found):
        embed(bundle, [texts(12, fingerprint="beef")], out, UPDATE, **change)
    with pytest.raises(DataError, match="also contains texts"):
        embed(bundle, [pictures(3)], out, UPDATE)
    with pytest.raises(UsageError, match="`shard`"):
        embed(bundle, [texts(12)], out, replace(UPDATE, part=Slice(1, 2)))
    assert files_below(out) == before


def test_damaged_rows_are_not_taken_over(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed(bundle, [texts(20)], out)
    part = out / "texts/part-00001.parquet"
    data = bytearray(part.read_bytes())
    data[200] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(OutputDamagedError, match=r"part-00001.parquet: is missing or damaged"):
        embed(bundle, [texts(21, fingerprint="beef")], out, UPDATE)


def test_files_that_are_equal_lie_on_the_disk_once(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed(bundle, [texts(20)], out)
    first = out / "texts/part-00000.parquet"
    number = first.stat().st_ino
    embed(bundle, [texts(21, fingerprint="beef")], out, UPDATE)
    assert (first.stat().st_ino, first.stat().st_nlink) == (number, 1)


def test_a_touched_removed_and_added_file_of_a_folder_is_seen(bundle: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "photos", tmp_path / "out"
    root.mkdir()
    for n in range(10):
        (root / f"{n}.png").write_bytes(png(n))
    embed(bundle, [open_source("image", str(root), SourceOptions())], out)
    (root / "4.png").unlink()
    (root / "z.png").write_bytes(png(50))
    os.utime(root / "6.png", ns=(1, 1))
    with computed() as seen:
        summary = embed(bundle, [open_source("image", str(root), SourceOptions())], out, UPDATE)
    assert (sum(seen), summary.kept) == (2, 8)
    assert vectors_of(out, "images")[0] == [f"{n}.png" for n in range(10) if n != 4] + ["z.png"]
