"""Compare vectors that are there already, of models of any kind: .npy files, outputs of `embed`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.encoder.encoder import EncoderInfo
from mwa_export.errors import DataError, UsageError
from mwa_export.inputs.content import Kind
from mwa_export.parity.examples import Labels
from mwa_export.parity.measure import CompareOptions, Context, measure
from mwa_export.parity.result import Parity, Vectors
from mwa_export.progress import Progress, Silent
from mwa_export.vectors.job import shards
from mwa_export.vectors.output import Output
from mwa_export.vectors.shards import restored

_SHOWN = 3  # ids in a message
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Vectors of one kind, with their ids where they have any."""

    vectors: NDArray[Any]  # (n, D)
    ids: tuple[str, ...] = ()
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def like(self, other: _Rows, what: str) -> _Rows:
        """The same rows in the order of another side."""
        if self.ids == other.ids:
            return self
        places = {id: place for place, id in enumerate(self.ids)}
        if self.ids and other.ids and places.keys() != set(other.ids):
            missing = sorted(set(other.ids) ^ places.keys())
            raise DataError(
                f"{what} of the two sides are not the same: {len(missing):,} ids are on one side "
                f"only, such as {', '.join(missing[:_SHOWN])}. Embed the same rows with both."
            )
        if not (self.ids and other.ids):
            return self
        return _Rows(self.vectors[[places[id] for id in other.ids]], other.ids)


@dataclass(frozen=True, slots=True)
class _Side:
    info: EncoderInfo
    images: _Rows
    texts: _Rows


def compare_vectors(
    reference: Sequence[Path],
    candidate: Sequence[Path],
    owners: Path | None = None,
    *,
    normalize: bool = False,
    options: CompareOptions | None = None,
    progress: Progress | None = None,
) -> Parity:
    """Compare two sets of vectors by what they retrieve.

    Args:
        reference: decides. Two .npy files, the images' of shape (n_image, D) and the texts' of
            shape (n_text, D), or the folder that `embed` wrote both to.
        candidate: is checked. The same.
        owners: .npy of the row of each text's image, (n_text,) integers. Outputs of `embed` need
            none if the texts' ids, or a column of theirs, name the images.
        normalize: scale every vector to unit length.
        options: see `compare`.
        progress: told about each step.

    Raises:
        DataError: a file cannot be read, or the sides do not have the same rows.
        RecallError: see `compare`.
        UsageError: wrong paths.
    """
    progress = progress or Silent()
    sides = []
    for name, paths in (("reference", reference), ("candidate", candidate)):
        progress(f"read the {name}'s vectors")
        sides.append(_side(name, paths, normalize=normalize))
    first, second = sides
    rows = _owners(first) if owners is None else _array(owners)
    candidate_rows = Vectors(
        second.images.like(first.images, "the images").vectors,
        second.texts.like(first.texts, "the texts").vectors,
    )
    images, texts = first.images, first.texts
    context = Context(
        first.info,
        second.info,
        labels=Labels(images.ids, _shown(texts)) if images.ids and texts.ids else None,
    )
    vectors = Vectors(images.vectors, texts.vectors)
    return measure(vectors, candidate_rows, rows, context, options, progress)


def _side(name: str, paths: Sequence[Path], *, normalize: bool) -> _Side:
    if len(paths) == 1:
        return _of_output(paths[0], normalize=normalize)
    if len(paths) != 2:
        raise UsageError(
            f"{len(paths)} paths for the {name}. Expected two .npy files, of the images and of "
            "the texts, or one folder that `embed` wrote."
        )
    images, texts = (_scaled(_array(path), path, normalize=normalize) for path in paths)
    source = " and ".join(map(str, paths))
    info = EncoderInfo(" and ".join(path.name for path in paths), source, "", "", None)
    return _Side(info, _Rows(images), _Rows(texts))


def _array(path: Path) -> NDArray[Any]:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as .npy ({error}).") from error
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path}: holds several arrays (.npz). Expected one (.npy).")
    return found


def _scaled(vectors: NDArray[Any], path: Path, *, normalize: bool) -> NDArray[Any]:
    """Vectors of floats, of unit length if that is asked for."""
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise DataError(
            f"{path}: holds {vectors.dtype} of shape {vectors.shape}. Expected floats of shape "
            "(rows, D)."
        )
    if not normalize:
        return vectors
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not (lengths > 0).all():
        row = int(np.argmin(lengths))
        raise DataError(f"{path}: row {row} is zero, so it has no direction.")
    return np.asarray(vectors / lengths, np.float32)


def _of_output(folder: Path, *, normalize: bool) -> _Side:
    output = Output.load(folder) if folder.is_dir() else None
    if output is None or not output.finished:
        found = "is not finished" if output else "is no output of `embed`"
        raise DataError(
            f"{folder}: {found}. Expected a finished folder with images and texts, or two .npy "
            "files for each side."
        )
    kinds = {entry.kind for entry in output.job.inputs}
    if kinds != {"image", "text"}:
        raise DataError(
            f"{folder}: holds {' and '.join(sorted(kinds))}s alone. Expected images and texts, "
            "embedded into one folder."
        )
    job = output.job
    info = EncoderInfo(folder.name, str(folder), job.runtime, job.precision, job.space_id)
    images, texts = (_read(output, kind, normalize=normalize) for kind in ("image", "text"))
    return _Side(info, images, texts)


def _read(output: Output, kind: Kind, *, normalize: bool) -> _Rows:
    parts = [output.read(shard.stem) for shard in shards(output.job.input(kind))]
    vectors = np.concatenate([restored(part.vectors, part.scales) for part in parts])
    rounded = output.job.dtype != "float32"  # which changes lengths a little
    columns: dict[str, list[Any]] = {}
    for part in parts:
        for name, values in part.columns.items():
            columns.setdefault(name, []).extend(values)
    scaled = _scaled(vectors, output.folder, normalize=normalize or rounded)
    return _Rows(scaled, tuple(id for part in parts for id in part.ids), columns)


def _owners(side: _Side) -> Ints:
    """The image row of each text, from ids: "ID#n" of captions, "ID", or a column with image ids.

    Raises:
        UsageError: no ids say so, or several columns do.
    """
    images = {id: row for row, id in enumerate(side.images.ids)}
    if not images:
        raise UsageError(
            "which text belongs to which image is not known. Give the row of each text's image: "
            "`owners=FILE.npy`"
        )
    named = {
        "id": [id.rpartition("#")[0] or id for id in side.texts.ids],
        **{name: [str(v) for v in values] for name, values in side.texts.columns.items()},
    }
    found = {n: values for n, values in named.items() if all(v in images for v in values)}
    choices = {tuple(values) for values in found.values()}
    if len(choices) != 1:
        said = "no column of the texts names images" if not found else "several columns name images"
        raise UsageError(
            f"{side.info.source}: {said} (ids, and {', '.join(side.texts.columns) or 'no column'}; "
            f"image ids are like {', '.join(side.images.ids[:_SHOWN])}). Embed the texts with "
            "`columns`, a column of the images' ids, or give `owners=FILE.npy`."
        )
    return np.array([images[id] for id in choices.pop()], np.int64)


def _shown(texts: _Rows) -> Sequence[str]:
    """What people may know a text by: its own words where they were carried along."""
    for name in ("caption", "text", "title"):
        if name in texts.columns:
            return [str(value) for value in texts.columns[name]]
    return texts.ids
