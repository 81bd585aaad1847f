"""If `embed` dies at any change of the disk, the old or new output remains, or it can resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from commands import files_below
from deaths import deaths
from embed_samples import ONNX, png
from numpy.typing import NDArray

import mwa_export.files
from mwa_export.bundle.bundle import Bundle
from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.embed import worker
from mwa_export.embed.run import Execution, run
from mwa_export.embed.update import Update
from mwa_export.search.run import open_output
from mwa_export.vectors.job import EmbedOptions
from mwa_export.vectors.manifest import MANIFEST
from mwa_export.vectors.output import Output
from mwa_export.vectors.verify import verify

UPDATE = Update(vanished="keep", retry_failed=True)


class Sums:
    """A model of a few sums: a row's vector depends on the row alone."""

    image_size = 32

    def __init__(self, width: int) -> None:
        self._width = width

    def embed_images(self, pixels: NDArray[Any]) -> NDArray[Any]:
        return self._unit(pixels.reshape(len(pixels), -1))

    def embed_texts(self, ids: NDArray[Any], mask: NDArray[Any]) -> NDArray[Any]:
        return self._unit(ids * (1 - mask))

    def _unit(self, rows: NDArray[Any]) -> NDArray[Any]:
        sums = [(rows.astype(np.int64) % (7 + n)).sum(axis=1) + 1 for n in range(self._width)]
        vectors = np.stack(sums, axis=1).astype(np.float32)
        found: NDArray[Any] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return found


Job = Callable[..., object]


@pytest.fixture(scope="module", name="bundle")
def opened_bundle(files: Path) -> Bundle:
    return Bundle.open(files / "bundle")


@pytest.fixture
def job(bundle: Bundle, tmp_path: Path) -> Iterator[Job]:
    """Run the job of a folder of pictures, and a list of texts, with a model that is no work."""
    photos, lines = tmp_path / "photos", tmp_path / "lines.txt"
    photos.mkdir()
    for n in range(4):
        (photos / f"{n}.png").write_bytes(png(n) if n != 3 else b"<html>")

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


def read(out: Path) -> bytes | None:
    """The manifest of the output that `verify` and `search` find, which must be whole."""
    output = Output.load(out)
    if output is None or not output.finished:
        return None
    assert verify(out).findings == ()
    assert open_output(out).output.folder == output.folder
    return (output.folder / MANIFEST).read_bytes()


def states(action: Callable[[], object], out: Path, into: Path) -> list[Path]:
    """The disk as a death before each of its changes leaves it, the last one without a death."""
    with deaths(out.parent, into) as found:
        action()
    return [state / out.name for state in found.states]


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bytes(job: Job, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("abc\nabc def\n\n")
    out = tmp_path / "disk" / "out"
    out.parent.mkdir()
    left = states(lambda: job(out), out, tmp_path / "states")
    expected = content(out)
    assert len(left) > 60
    for state in left:
        assert not is_whole(state) or content(state).items() >= expected.items()
        job(state)
        assert content(state) == expected, state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "start"),
    [("update", "finished"), ("update", "unfinished"), ("retry", "finished")],
)
def test_an_update_leaves_the_old_output_or_the_new_one(
    job: Job, tmp_path: Path, start: str, what: str
) -> None:
    out = tmp_path / "disk" / "out"
    out.parent.mkdir()
    left = states(lambda: job(out), out, tmp_path / "first")
    if start == "unfinished":
        shutil.rmtree(out)
        listed = [s for s in left if len(list(s.glob(".work/images-*.json"))) == 1]
        shutil.copytree(listed[0], out)
    before = content(out)
    update = UPDATE if what == "update" else replace(UPDATE, source=False)
    if what == "update":
        change(tmp_path)
    left = states(lambda: job(out, update), out, tmp_path / "second")
    expected = content(out)
    assert expected != before
    assert len(left) > 60
    found = [read(state) for state in left]
    new = found.index(found[-1])
    assert found == [found[0]] * new + [found[-1]] * (len(found) - new), "one call decides"
    assert found[0] == (None if start == "unfinished" else before["manifest.json"])
    for state in left:
        job(state, update)
        assert content(state) == expected, state


@pytest.mark.slow
def test_an_update_that_never_took_its_place_does_not_take_that_of_a_later_one(
    job: Job, tmp_path: Path
) -> None:
    out = tmp_path / "disk" / "out"
    out.parent.mkdir()
    job(out)
    change(tmp_path)
    left = states(lambda: job(out, UPDATE), out, tmp_path / "first")
    made = [s for s in left if (s / MANIFEST).exists() and list(s.glob(f".update/*/{MANIFEST}"))]
    shutil.rmtree(out)
    shutil.copytree(made[-1], out)
    (stale,) = (path.parent for path in out.glob(f".update/*/{MANIFEST}"))
    stale.rename(stale.with_name("0" * 16))  # the first that a reader would find
    (tmp_path / "photos" / "6.png").write_bytes(png(6))
    found = [read(s) for s in states(lambda: job(out, UPDATE), out, tmp_path / "second")]
    assert set(found) == {found[0], found[-1]}
    assert found[0] == (made[-1] / MANIFEST).read_bytes()


def test_what_the_ledger_names_is_on_the_disk(job: Job, tmp_path: Path) -> None:
    out, done = tmp_path / "out", list[str]()
    replace_, sync = Path.replace, mwa_export.files.sync

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"rename {target}")
        return replace_(path, target)

    def synced(path: Path) -> None:
        done.append(f"sync {path}")
        sync(path)

    with mock.patch.object(Path, "replace", renamed), mock.patch("mwa_export.files.sync", synced):
        job(out)
    for number in (0, 1):
        moved = done.index(f"rename {out}/images/part-{number:05d}.parquet")
        listed = done.index(f"rename {out}/.work/images-{number:05d}.json")
        assert f".part-{number:05d}.parquet." in done[moved - 1]
        assert done[moved - 1].startswith("sync ")
        assert f"sync {out}/images" in done[moved:listed]
