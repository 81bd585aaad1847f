"""Search the folder that `embed` wrote: its shards one after the other, by text or image."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import MANIFEST as BUNDLE
from mwa_export.encoder.encoder import Encoder
from mwa_export.encoder.open import load
from mwa_export.errors import DataError, UsageError
from mwa_export.inputs.pictures import Picture
from mwa_export.progress import ignore
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.search.result import Found, Hit, Where
from mwa_export.search.scan import Block, best_rows
from mwa_export.vectors.job import FOLDERS, Input, shards
from mwa_export.vectors.manifest import JOB, MANIFEST
from mwa_export.vectors.output import Output

_WILDCARD = re.compile(r"[*?\[{]")
Locate = Callable[[str], Picture | None]
"""A row's id -> the place of its image, if it is known."""


@dataclass(frozen=True, slots=True)
class Query:
    """A text, or an image file."""

    text: str | None = None
    image: Path | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise UsageError(
                "expected a text or an image (`image=FILE`) to search for, but not both."
            )
        if self.text is not None and not self.text.strip():
            raise UsageError("the text to search for is empty.")


@dataclass
class Searched:
    """One kind of rows in an output of `embed`, finished or not, and where they lie."""

    output: Output
    entry: Input  # of the kind that is searched
    # Shards that were read: name and number of rows. Their rows are counted through.
    read: list[tuple[str, int]] = field(default_factory=list)
    missing: int = 0  # shards that are not written yet

    @property
    def where(self) -> Where:
        """The part that is searched."""
        return "images" if self.entry.kind == "image" else "texts"

    def blocks(self) -> Iterator[Block]:
        """The rows of every shard that is there; one shard is in memory at a time.

        Raises:
            DataError: a shard is damaged, or is missing although the run was finished.
        """
        finished = self.output.finished
        for shard in shards(self.entry):
            path = self.output.rows_file(shard.stem)
            if not path.is_file():
                if finished:
                    raise DataError(
                        f"{path}: is missing, but {MANIFEST} says that the output is complete. "
                        "Copy the file again, or run `mwa-export embed` again."
                    )
                self.missing += 1
                continue
            stored = self.output.read(shard.stem)
            self.read.append((shard.stem, len(stored.vectors)))
            yield Block(stored.vectors, stored.scales)

    def hits(
        self, rows: NDArray[np.int64], scores: NDArray[np.float32], locate: Locate
    ) -> tuple[Hit, ...]:
        """Read ids and carried columns of rows, numbered as `blocks` counts them."""
        starts = np.cumsum([0, *(count for _, count in self.read)])
        shard_of = np.searchsorted(starts, rows, "right") - 1
        found: dict[int, Hit] = {}
        for number in np.unique(shard_of):
            stored = self.output.read(self.read[number][0])
            for rank in np.flatnonzero(shard_of == number).tolist():
                place = int(rows[rank] - starts[number])
                id = stored.ids[place]
                columns = {name: values[place] for name, values in stored.columns.items()}
                picture = locate(id) if self.entry.kind == "image" else None
                found[rank] = Hit(rank + 1, float(scores[rank]), id, columns, picture)
        return tuple(found[rank] for rank in sorted(found))

    def warnings(self, searched: int) -> tuple[str, ...]:
        """Warnings about rows that are not searched."""
        if not self.output.finished:
            written = f"{len(self.read)} of {len(self.read) + self.missing} shards are written"
            return (
                f"The output is unfinished: {written}, with {searched:,} of {self.entry.taken:,} "
                f"{self.where}. Run the same `mwa-export embed` again to finish it.",
            )
        lost = self.entry.taken - searched
        if not lost:
            return ()
        return (
            f"{lost:,} of {self.entry.taken:,} {self.where} could not be embedded, so they cannot "
            f"be found. {self.output.errors_file.name} says why.",
        )


def search(
    folder: str | os.PathLike[str],
    query: Query,
    *,
    where: Where | None = None,
    k: int = 5,
    bundle: Path | None = None,
    runtime: RuntimeOptions | None = None,
) -> Found:
    """Find the k rows of an output of `embed` that are most like a text or an image. Exact.

    Args:
        folder: what `embed` wrote; it may be unfinished, which the result says.
        query: what to look for.
        where: "images" or "texts"; None: the images if there are any.
        k: rows to find, at least 1.
        bundle: embeds the query; None: the one that the output names.
        runtime: what the bundle runs on.

    Raises:
        DataError: not an output of `embed`, one without that part, or a damaged one.
        UsageError: the bundle makes vectors of another embedding space.
        ImageError: the query's image cannot be read.
    """
    part = open_output(Path(folder), where)
    return search_output(part, query, k=k, bundle=bundle, runtime=runtime)


def open_output(folder: Path, where: str | None = None) -> Searched:
    """Open the part of an output that is searched; None: its first, the images if it has any.

    Raises:
        DataError: not an output of `embed`, or one without that part.
    """
    output = Output.load(folder) if (folder / JOB).is_file() else None
    if output is None:
        found = "it is a bundle" if (folder / BUNDLE).is_file() else f"{JOB} is missing"
        raise DataError(
            f"{folder}: is not the output of `mwa-export embed` ({found}). Expected the folder "
            "that it wrote."
        )
    have = {FOLDERS[entry.kind]: entry for entry in output.job.inputs}
    if where is None:
        where = next(iter(have))
    if where not in have:
        named = " and ".join(have)
        raise DataError(
            f"{folder}: holds no {where}, it holds {named}. Search there: `where={named}`"
        )
    return Searched(output, have[where])


def encoder_of(
    output: Output, query: Query, path: Path | None, options: RuntimeOptions | None
) -> Encoder:
    """Open the bundle that embeds the query: one that is named, or the one that the output names.

    Raises:
        UsageError: it makes vectors of another embedding space, or lacks the query's tower.
        BundleError: it is not there any more.
    """
    bundle = Bundle.open(path or output.job.bundle)
    if bundle.manifest.space_id != output.job.space_id:
        raise UsageError(
            f"{bundle.path}: makes vectors of the embedding space "
            f"{bundle.manifest.space_id[:16]}, and {output.folder} holds vectors of "
            f"{output.job.space_id[:16]}. They cannot be compared. Name the bundle that made "
            "them, or another form of the same model: `bundle`"
        )
    bundle.require("text" if query.text is not None else "vision", what="this query")
    return load(bundle, options)


def search_output(
    searched: Searched,
    query: Query,
    *,
    k: int = 5,
    bundle: Path | None = None,
    runtime: RuntimeOptions | None = None,
    pictures: Path | None = None,
    on_rows: Callable[[int], None] = ignore,
) -> Found:
    """Find the k rows that are most like a text or an image.

    Args:
        searched: from `open_output`; it may be unfinished, which the result says.
        bundle: embeds the query; None: the one that the output names.
        pictures: the folder that the ids of the images are relative to; None: see `picture_of`.

    Raises:
        DataError: a damaged output.
        UsageError: the bundle makes vectors of another embedding space.
        ImageError: the query's image cannot be read.
    """
    encoder = encoder_of(searched.output, query, bundle, runtime)
    if query.image is not None:
        vectors = encoder.embed_images([query.image])
    else:
        vectors = encoder.embed_texts([query.text or ""])
    best = best_rows(vectors[0], searched.blocks(), k, on_rows=on_rows)
    return Found(
        query=str(query.image or query.text),
        query_picture=None if query.image is None else Picture(query.image),
        where=searched.where,
        hits=searched.hits(best.rows, best.scores, picture_of(searched.entry, pictures)),
        searched=best.searched,
        output=str(searched.output.folder),
        bundle=encoder.info.source,
        runtime=f"{encoder.info.runtime} with {encoder.info.precision}",
        space_id=searched.output.job.space_id,
        warnings=searched.warnings(best.searched),
    )


def picture_of(entry: Input, folder: Path | None = None) -> Locate:
    """Find images by their ids: below ``folder``, or below the source."""
    named = _WILDCARD.split(entry.source, maxsplit=1)
    source = Path(named[0]) if len(named) == 1 else Path(os.path.dirname(named[0]))
    roots = [source, source.parent] if folder is None else [folder]

    def locate(id: str) -> Picture | None:
        for root in roots:
            try:
                if (root / id).is_file():
                    return Picture(root / id)
            except (OSError, ValueError):  # an id that can be no name of a file
                continue
        return None if folder is None else Picture(folder / id)

    return locate
