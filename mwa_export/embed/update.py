"""Update an output: plan it so that unchanged rows are reused, and choose its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mwa_export.data.rows import Row, SourceAround
from mwa_export.embed.kept import Earlier
from mwa_export.embed.plan import Plan
from mwa_export.embed.rows import Known, KnownRow, fingerprint_of
from mwa_export.errors import DataError, MwaExportError, UsageError
from mwa_export.inputs.content import Kind
from mwa_export.vectors.columns import valid_text
from mwa_export.vectors.job import FOLDERS, Input, Job, differences
from mwa_export.vectors.output import UPDATE, Output, clean_folder
from mwa_export.vectors.shards import read_column

Vanished = Literal["drop", "keep"]
_ROWS = 64  # rows looked up at a time
_VERSIONS = r"versions\..*"
_SOURCE = r"inputs\.\w+\.(fingerprint|rows|taken|columns.*)"


@dataclass(frozen=True, slots=True)
class Update:
    """What an update may change."""

    source: bool = True  # embed rows that are new or whose content changed
    retry_failed: bool = False  # try failed rows again
    vanished: Vanished = "drop"  # drop or keep rows that are no longer in the source


@dataclass(frozen=True, slots=True)
class Renewal:
    """A planned update, and the folder in which it is built."""

    plan: Plan
    folder: Path

    def output(self, base: Path) -> Output:
        """Start or continue building the update of the output in ``base``."""
        Output.prepare(self.folder)
        clean_folder(self.folder)
        return replace(Output.claim(self.folder, self.plan.job), base=base)


def renew(planned: Plan, old: Output, update: Update) -> Renewal | None:
    """Plan an update of an output; None if it would change nothing.

    Raises:
        DataError: the model, options or kinds of sources differ from those of the output.
        UsageError: `vanished=keep` is combined with a limit.
        OutputDamagedError: a file of a shard is missing or damaged.
    """
    _check(old.job, planned.job, update)
    keep = not update.source or update.vanished == "keep"
    gone = {kind: _gone(planned, kind, old) for kind in _kinds(old.job) if keep}
    inputs = tuple(_with(entry, gone.get(entry.kind, _NOTHING)) for entry in planned.job.inputs)
    earlier = {json.dumps(dict(v)): v for v in (*old.job.earlier, old.job.versions)}
    job = replace(planned.job, inputs=inputs, earlier=tuple(earlier.values()))
    if not _changes(old, job, update):
        return None
    old.check_files()
    mark = json.dumps([job.to_json(), update.retry_failed])
    folder = old.folder / UPDATE / hashlib.sha256(mark.encode()).hexdigest()[:16]
    outputs = [old, *_unfinished(old, job, folder)]
    sources = tuple(
        RenewedSource(
            source,
            entry.rows - entry.kept,
            Earlier(entry.kind, outputs, not update.retry_failed),
            gone.get(entry.kind, _NOTHING),
        )
        for entry, source in zip(inputs, planned.sources, strict=True)
    )
    return Renewal(replace(planned, job=job, sources=sources), folder)


def _check(old: Job, new: Job, update: Update) -> None:
    """Refuse to mix vectors of different models, or to lose a whole source."""
    if lost := sorted({FOLDERS[kind] for kind in _kinds(old) - _kinds(new)}):
        raise DataError(
            f"the output also contains {' and '.join(lost)}, and an update must cover all of it. "
            "Pass that source too."
        )
    allowed = _VERSIONS
    if update.source:
        added = "|".join(rf"inputs\.{FOLDERS[kind]}\..*" for kind in _kinds(new) - _kinds(old))
        allowed = "|".join(filter(None, (_VERSIONS, _SOURCE, added)))
    if changed := differences(old, new, allowed=allowed):
        source = "" if update.source else ". If only the source has changed, pass `update` as well"
        raise DataError(
            "an update requires the model and options that the output was made with. "
            f"{'; '.join(changed)}. Pass those, or embed into a new folder{source}."
        )


def _changes(old: Output, job: Job, update: Update) -> bool:
    allowed = _VERSIONS if old.finished else ""
    kept = {entry.kind: entry.kept for entry in old.job.inputs}
    failed = (error for kind in _kinds(old.job) for error in old.failures(kind))
    return (
        bool(differences(old.job, job, allowed=allowed))
        or any(entry.kept != kept.get(entry.kind, 0) for entry in job.inputs)
        or (update.retry_failed and next(failed, None) is not None)
    )


def _kinds(job: Job) -> set[Kind]:
    return {entry.kind for entry in job.inputs}


def _with(entry: Input, gone: NDArray[np.int64]) -> Input:
    """Return an input whose own rows are followed by the vanished rows that are kept."""
    if len(gone) and entry.taken < entry.rows:
        raise UsageError(
            "`vanished=keep` and `limit` cannot be combined: kept rows would be beyond the limit."
        )
    rows = entry.rows + len(gone)
    return replace(entry, rows=rows, taken=entry.taken + len(gone), kept=len(gone))


def _unfinished(old: Output, job: Job, mine: Path) -> Iterator[Output]:
    """Yield abandoned updates of the same model, whose vectors can be reused."""
    for folder in sorted((old.folder / UPDATE).glob("*")):
        try:
            found = None if folder == mine else Output.load(folder)
        except MwaExportError:
            continue
        if found is None or found.job.versions not in (job.versions, *job.earlier):
            continue
        if not differences(found.job, job, allowed=rf"{_VERSIONS}|inputs\..*"):
            found.check_files()
            yield found


_NOTHING: NDArray[np.int64] = np.empty((0, 2), np.int64)


def _gone(planned: Plan, kind: Kind, old: Output) -> NDArray[np.int64]:
    """Find rows that are no longer in the source, by id: (k, 2), shard and position in it."""
    source = next(source for source in planned.sources if source.kind == kind)
    present = (row.id for row in source.rows(0, planned.job.input(kind).rows))
    have = np.sort(np.fromiter(map(_hash, present), "S16"))
    found = [_NOTHING]
    for number, part in enumerate(old.parts(kind)):
        ids = read_column(old.folder, old.job, part.stem, "id")
        hashes = np.array([_hash(id) for id in ids], "S16")
        places = np.flatnonzero(~np.isin(hashes, have))
        found.append(np.stack([np.full_like(places, number), places], axis=1))
    return np.concatenate(found)


def _hash(id: str) -> bytes:
    return hashlib.blake2b(valid_text(id).encode(), digest_size=16).digest()


@dataclass(frozen=True, eq=False)
class RenewedSource(SourceAround):
    """A scanned source with known outcomes for unchanged rows, followed by vanished rows."""

    own: int  # rows of the source
    earlier: Earlier
    gone: NDArray[np.int64]  # (k, 2), from `_gone`: rows of the first output

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield rows of the source, then those that vanished."""
        if start < self.own:
            rows = self.source.rows(start, min(stop, self.own))
            while chunk := list(islice(rows, _ROWS)):
                prints = [fingerprint_of(row) for row in chunk]
                known = self.earlier.find([row.id for row in chunk], prints)
                yield from map(_noted, chunk, prints, known)
        for number, place in self.gone[max(start - self.own, 0) : max(stop - self.own, 0)].tolist():
            yield self.earlier.row(number, place, self.columns)


def _noted(row: Row, fingerprint: bytes, known: Known | None) -> Row:
    if known is None:
        return row
    more = (row.content, row.columns, row.problem, row.place)
    return KnownRow(row.id, *more, known=known, fingerprint=fingerprint)
