"""Compare existing vectors of any two models: .npy files, or output folders of `embed`."""

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
    """Vectors of one kind, with their ids and columns if there are any."""

    vectors: NDArray[Any]  # (n, D)
    ids: tuple[str, ...] = ()
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def like(self, other: _Rows, what: str) -> _Rows:
        """Return the rows in the order of the other side."""
        if self.ids == other.ids:
            return self
        places = {id: place for place, id in enumerate(self.ids)}
        if self.ids and other.ids and places.keys() != set(other.ids):
            missing = sorted(set(other.ids) ^ places.keys())
            raise DataError(
                f"{what} of the two sides differ: {len(missing):,} ids are on one side only, such "
                f"as {', '.join(missing[:_SHOWN])}. Embed the same rows with both models."
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
        reference: the vectors to compare with. Either two .npy files of floats, images of shape
            (n_image, D) and texts of shape (n_text, D), or one folder that `embed` wrote both to.
        candidate: the vectors to check, given in the same way.
        owners: .npy file with the row of each text's image, (n_text,) integers. Not needed for
            output folders of `embed` if the ids of the texts, or one of their columns, name the
            images.
        normalize: scale every vector to unit length.
        options: see `compare`.
        progress: called for each step.

    Raises:
        DataError: a file cannot be read, or the two sides have different rows.
        RecallError: see `compare`.
        UsageError: wrong number of paths, or the images of the texts are unknown.
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
            f"the {name} has {len(paths)} paths. Expected two .npy files (image vectors and text "
            "vectors), or one folder that `embed` wrote."
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
        raise DataError(f"{path}: expected one array (.npy), found an archive of arrays (.npz).")
    return found


def _scaled(vectors: NDArray[Any], path: Path, *, normalize: bool) -> NDArray[Any]:
    """Check that vectors are floats of shape (rows, D), and scale them to unit length if asked."""
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise DataError(
            f"{path}: found {vectors.dtype} of shape {vectors.shape}. Expected floats of shape "
            "(rows, D)."
        )
    if not normalize:
        return vectors
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not (lengths > 0).all():
        row = int(np.argmin(lengths))
        raise DataError(f"{path}: row {row} is all zeros and cannot be normalized.")
    return np.asarray(vectors / lengths, np.float32)


def _of_output(folder: Path, *, normalize: bool) -> _Side:
    output = Output.load(folder) if folder.is_dir() else None
    if output is None or not output.finished:
        found = "is not finished" if output else "is not an output folder of `embed`"
        raise DataError(
            f"{folder}: {found}. Pass a finished folder with images and texts, or two .npy files "
            "for each side."
        )
    kinds = {entry.kind for entry in output.job.inputs}
    if kinds != {"image", "text"}:
        raise DataError(
            f"{folder}: contains only {' and '.join(sorted(kinds))}s. Embed images and texts into "
            "one folder."
        )
    job = output.job
    info = EncoderInfo(folder.name, str(folder), job.runtime, job.precision, job.space_id)
    images, texts = (_read(output, kind, normalize=normalize) for kind in ("image", "text"))
    return _Side(info, images, texts)


def _read(output: Output, kind: Kind, *, normalize: bool) -> _Rows:
    parts = [output.read(shard.stem) for shard in shards(output.job.input(kind))]
    vectors = np.concatenate([restored(part.vectors, part.scales) for part in parts])
    rounded = output.job.dtype != "float32"  # rounding changes the lengths a little
    columns: dict[str, list[Any]] = {}
    for part in parts:
        for name, values in part.columns.items():
            columns.setdefault(name, []).extend(values)
    scaled = _scaled(vectors, output.folder, normalize=normalize or rounded)
    return _Rows(scaled, tuple(id for part in parts for id in part.ids), columns)


def _owners(side: _Side) -> Ints:
    """Find the image row of each text by ids: "ID#n" or "ID" of the text, or a column of image ids.

    Raises:
        UsageError: no ids or column name the images, or several columns do.
    """
    images = {id: row for row, id in enumerate(side.images.ids)}
    if not images:
        raise UsageError(
            "it is unknown which text belongs to which image. Pass the row of each text's image: "
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
            f"{side.info.source}: {said} (columns: id, {', '.join(side.texts.columns) or 'no more'}"
            f"; image ids: {', '.join(side.images.ids[:_SHOWN])}, ...). Pass `owners=FILE.npy`, "
            "or embed the texts again with `columns` set to a column of image ids."
        )
    return np.array([images[id] for id in choices.pop()], np.int64)


def _shown(texts: _Rows) -> Sequence[str]:
    """Labels of the texts: a column with their words if there is one, otherwise their ids."""
    for name in ("caption", "text", "title"):
        if name in texts.columns:
            return [str(value) for value in texts.columns[name]]
    return texts.ids
