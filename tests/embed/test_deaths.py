"""`embed` that dies at any change of the disk leaves the old output, the new one, or a way on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from commands import files_below
from deaths import changes, deaths
from embed_samples import ONNX, png

from mwa_export.bundle.bundle import Bundle
from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.embed import worker
from mwa_export.embed.run import Execution, run
from mwa_export.embed.update import Update
from mwa_export.vectors.job import EmbedOptions
from mwa_export.vectors.manifest import MANIFEST
from mwa_export.vectors.verify import verify

UPDATE = Update(vanished="keep", retry_failed=True)


class Sums:
    """A model of a few sums: a row's vector depends on the row alone."""

    image_size = 32

    def __init__(self, width: int) -> None:
        self._width = width

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        return self._unit(pixels.reshape(len(pixels), -1))

    def embed_texts(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self._unit(ids * (1 - mask))

    def _unit(self, rows: np.ndarray) -> np.ndarray:
        sums = [(rows.astype(np.int64) % (7 + n)).sum(axis=1) + 1 for n in range(self._width)]
        vectors = np.stack(sums, axis=1).astype(np.float32)
        found: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return found


Job = Callable[..., object]


@pytest.fixture
def job(files: Path, tmp_path: Path) -> Iterator[Job]:
    """Run the job of a folder of pictures, and a list of texts, with a model that is no work."""
    photos, lines = tmp_path / "photos", tmp_path / "lines.txt"
    photos.mkdir()
    for n in range(4):
        (photos / f"{n}.png").write_bytes(png(n) if n != 3 else b"<html>")
    bundle = Bundle.open(files / "bundle")

    def embed(out: Path, update: Update | None = None) -> None:
        sources = [open_source("image", str(photos), SourceOptions())]
        if lines.exists():
            sources.append(open_source("text", str(lines), SourceOptions()))
        how = Execution(update=update, workers=1)
        run(bundle, sources, out, options=EmbedOptions(shard_size=3), runtime=ONNX, how=how)

    opened = SimpleNamespace(backend=Sums(bundle.manifest.model.backbone.embed_dim))
    with mock.patch.object(worker, "open_backend", return_value=opened):
        yield embed


def change(tmp_path: Path) -> None:
    """Another state of the source: a picture mended, one gone and one new."""
    photos = tmp_path / "photos"
    (photos / "1.png").unlink()
    (photos / "3.png").write_bytes(png(33))
    (photos / "5.png").write_bytes(png(5))


def content(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_below(out).items() if not name.startswith(".lock")}


def is_whole(out: Path) -> bool:
    """Whether there is a finished output. One that is finished must be whole."""
    if not (out / MANIFEST).exists():
        return False
    assert verify(out).findings == ()
    return True


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bytes(job: Job, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("abc\nabc def\n\n")
    job(tmp_path / "whole")
    expected, out = content(tmp_path / "whole"), tmp_path / "out"
    for step in deaths(lambda: job(out)):
        finished = is_whole(out)
        assert not finished or content(out).items() >= expected.items()
        job(out)
        assert content(out) == expected, step
        shutil.rmtree(out)
    assert step > 60, step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "start"),
    [("update", "finished"), ("update", "unfinished"), ("retry", "finished")],
)
def test_an_update_leaves_the_old_output_or_the_new_one(
    job: Job, tmp_path: Path, start: str, what: str
) -> None:
    old, out = tmp_path / "old", tmp_path / "out"
    job(old)
    before = content(old)
    if start == "unfinished":
        stop_half_way(job, old)
    update = UPDATE if what == "update" else replace(UPDATE, source=False)
    if what == "update":
        change(tmp_path)
    shutil.copytree(old, out)
    job(out, update)
    expected = content(out)
    assert expected != before
    shutil.rmtree(out)
    shutil.copytree(old, out)
    for step in deaths(lambda: job(out, update)):
        if is_whole(out):
            visible = {n: d for n, d in content(out).items() if not n.startswith((".work", ".upd"))}
            assert visible in (before, expected), step
        job(out, update)
        assert content(out) == expected, step
        shutil.rmtree(out)
        shutil.copytree(old, out)
    assert step > 60, step


def stop_half_way(job: Job, out: Path) -> None:
    """Make the output one of a run that died in the middle."""
    shutil.rmtree(out)
    for _ in deaths(lambda: job(out)):
        if len(list(out.glob(".work/images-*.json"))) == 2:
            return
        shutil.rmtree(out, ignore_errors=True)


def test_what_the_ledger_names_is_on_the_disk(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = changes(lambda: job(out))
    names = [(change.name, change.paths[-1]) for change in done]
    for kind, number in (("images", 0), ("images", 1)):
        part, entry = f"{out}/{kind}/part-{number:05d}.parquet", f"{kind}-{number:05d}.json"
        moved = names.index(("replace", part))
        hidden = done[moved].paths[0]
        listed = names.index(("replace", f"{out}/.work/{entry}"))
        assert names.index(("write", hidden)) < names.index(("fsync", hidden)) < moved
        assert ("fsync", f"{out}/{kind}") in names[moved:listed]
