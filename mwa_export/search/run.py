"""Search the output of `embed` by text or image, one shard at a time."""

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
from mwa_export.errors import BundleError, DataError, UsageError
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
"""Maps a row's id to its image file, or to None if unknown."""


@dataclass(frozen=True, slots=True)
class Query:
    """The query of a search: a text or an image file, not both.

    Raises:
        UsageError: both or neither are given, or the text is empty.
    """

    text: str | None = None
    image: Path | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise UsageError(
                "expected either a text or an image (`image=FILE`) to search for, not both."
            )
        if self.text is not None and not self.text.strip():
            raise UsageError("the text to search for is empty.")


@dataclass
class Searched:
    """The images or the texts of an output of `embed`, finished or not."""

    output: Output
    entry: Input  # the kind that is searched
    # Shards that were read: stem and number of rows. Rows are numbered across them.
    read: list[tuple[str, int]] = field(default_factory=list)
    missing: int = 0  # shards that are not written yet

    @property
    def where(self) -> Where:
        """Which part is searched: "images" or "texts"."""
        return "images" if self.entry.kind == "image" else "texts"

    def blocks(self) -> Iterator[Block]:
        """Yield the rows of every shard that is written, holding one shard in memory.

        Raises:
            DataError: a shard is damaged, or is missing from a finished output.
        """
        finished = self.output.finished
        for shard in shards(self.entry):
            path = self.output.rows_file(shard.stem)
            if not path.is_file():
                if finished:
                    raise DataError(
                        f"{path}: is missing, but {MANIFEST} says that the output is complete. "
                        "Restore the file, or run `mwa-export embed` again."
                    )
                self.missing += 1
                continue
            stored = self.output.read(shard.stem)
            self.read.append((shard.stem, len(stored.vectors)))
            yield Block(stored.vectors, stored.scales)

    def hits(
        self, rows: NDArray[np.int64], scores: NDArray[np.float32], locate: Locate
    ) -> tuple[Hit, ...]:
        """Read the ids and carried columns of rows (k,), which are numbered as in `blocks`."""
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
        """Return warnings about rows that are not searched."""
        if not self.output.finished:
            written = f"{len(self.read)} of {len(self.read) + self.missing} shards are written"
            return (
                f"The output is unfinished: {written}, with {searched:,} of {self.entry.taken:,} "
                f"{self.where}. To finish it, run the same `mwa-export embed` command again.",
            )
        lost = self.entry.taken - searched
        if not lost:
            return ()
        return (
            f"{lost:,} of {self.entry.taken:,} {self.where} could not be embedded, so they cannot "
            f"be found. {self.output.errors_file.name} lists the reasons.",
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
    """Find the k rows of an output of `embed` that are most similar to a text or an image.

    The search is exact: scores are inner products with every row.

    Args:
        folder: the output; if it is unfinished, the result has a warning.
        query: the text or image to search for.
        where: "images" or "texts"; None: the images if there are any.
        k: rows to find, at least 1.
        bundle: the bundle that embeds the query; None: the one recorded in the output.
        runtime: runtime, precision and threads of the bundle.

    Raises:
        DataError: not an output of `embed`, one without that part, or a damaged one.
        UsageError: the bundle has another embedding space, or lacks the query's tower.
        BundleError: the bundle cannot be opened.
        ImageError: the query's image cannot be read.
    """
    part = open_output(Path(folder), where)
    return search_output(part, query, k=k, bundle=bundle, runtime=runtime)


def open_output(folder: Path, where: str | None = None) -> Searched:
    """Open the images or texts of an output; None: the images if there are any.

    Raises:
        DataError: not an output of `embed`, or one without that part.
    """
    output = Output.load(folder) if (folder / JOB).is_file() else None
    if output is None:
        found = "it is a bundle" if (folder / BUNDLE).is_file() else f"{JOB} is missing"
        raise DataError(
            f"{folder}: expected a folder that `mwa-export embed` wrote ({found}). Pass the output "
            "of `embed`."
        )
    have = {FOLDERS[entry.kind]: entry for entry in output.job.inputs}
    if where is None:
        where = next(iter(have))
    if where not in have:
        named = " and ".join(have)
        raise DataError(f"{folder}: contains {named}, but no {where}. Pass `where={named}`.")
    return Searched(output, have[where])


def encoder_of(
    output: Output, query: Query, path: Path | None, options: RuntimeOptions | None
) -> Encoder:
    """Open the bundle that embeds the query. ``path``: None for the one recorded in the output.

    Raises:
        UsageError: it has another embedding space, or lacks the query's tower.
        BundleError: it does not exist or is damaged.
    """
    try:
        bundle = Bundle.open(path or output.job.bundle)
    except BundleError as error:
        if path is not None or Path(output.job.bundle).exists():
            raise
        raise BundleError(
            f"{output.job.bundle}: does not exist. {output.folder} was embedded with this bundle. "
            "If it has moved, pass `bundle`."
        ) from error
    if bundle.manifest.space_id != output.job.space_id:
        raise UsageError(
            f"{bundle.path}: has embedding space {bundle.manifest.space_id[:16]}, but "
            f"{output.folder} has {output.job.space_id[:16]}, so their vectors cannot be "
            "compared. Pass the bundle that made the vectors, or another export of that model, as "
            "`bundle`."
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
    """Find the k rows that are most similar to a text or an image.

    Args:
        searched: from `open_output`; if it is unfinished, the result has a warning.
        bundle: the bundle that embeds the query; None: the one recorded in the output.
        pictures: the folder that image ids are relative to; None: see `picture_of`.

    Raises:
        DataError: the output is damaged.
        UsageError: the bundle has another embedding space, or lacks the query's tower.
        BundleError: the bundle cannot be opened.
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
    """Return a function that finds images by id, in ``folder`` or else in the source."""
    named = _WILDCARD.split(entry.source, maxsplit=1)
    source = Path(named[0]) if len(named) == 1 else Path(os.path.dirname(named[0]))
    roots = [source, source.parent] if folder is None else [folder]

    def locate(id: str) -> Picture | None:
        for root in roots:
            try:
                if (root / id).is_file():
                    return Picture(root / id)
            except (OSError, ValueError):  # the id is not a valid file name
                continue
        return None if folder is None else Picture(folder / id)

    return locate
