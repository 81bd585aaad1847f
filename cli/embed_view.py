"""Output of `embed`: progress with its bottleneck, JSON lines and the summary."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from mwa_export.cli import console
from mwa_export.errors import BundleError, OutputDamagedError
from mwa_export.report.numbers import counted
from mwa_export.typed_json import json_from_value
from mwa_export.vectors.job import FOLDERS

if TYPE_CHECKING:
    from mwa_export.embed.plan import Plan
    from mwa_export.embed.progress import Snapshot
    from mwa_export.embed.rehearse import Rehearsal
    from mwa_export.embed.run import Summary
    from mwa_export.vectors.entries import Entry
    from mwa_export.vectors.manifest import Counts
    from mwa_export.vectors.verify import Proof

_TERMINAL_SECONDS, _PLAIN_SECONDS, _JSON_SECONDS = 0.2, 10.0, 1.0
_SHOWN = 20  # findings


class Watchers:
    """Report a run on the terminal and as JSON lines."""

    def __init__(self, status: Any, log: TextIO | None) -> None:
        self._status = status  # None: not a terminal, or -q
        self._log = log
        self._lock = threading.Lock()
        self._shown = self._logged = time.monotonic()
        self._start = time.monotonic()
        self._first = True

    def planned(self, plan: Plan, todo: int, shards: int) -> None:
        job, choice = plan.job, plan.choice
        console.say(choice.reason)
        for reason in choice.rejected:
            console.say(f"  not {reason}")
        for entry, scan in zip(job.inputs, plan.scans, strict=True):
            console.say(f"{FOLDERS[entry.kind]}: {counted(entry.rows, 'row')} of {entry.source}")
            if scan.skipped:
                console.say(f"  not rows: {_counted(scan.skipped)}")
        total = sum(entry.taken for entry in job.inputs)
        console.say(f"{counted(todo, 'row')} to do" + ("" if todo == total else f" of {total:,}"))
        self._write(
            "start",
            rows_to_do=todo,
            shards=shards,
            runtime=job.runtime,
            precision=job.precision,
            reason=choice.reason,
            inputs={
                FOLDERS[entry.kind]: {
                    "rows": entry.rows,
                    "source": entry.source,
                    "skipped": scan.skipped,
                }
                for entry, scan in zip(job.inputs, plan.scans, strict=True)
            },
        )

    def progress(self, snapshot: Snapshot) -> None:
        now = time.monotonic()
        if self._first:
            self._first = False
            self._write("first-rows", seconds_since_start=round(now - self._start, 3))
        if now - self._logged >= _JSON_SECONDS:
            self._logged = now
            self._write("progress", **snapshot.to_json())
        period = _PLAIN_SECONDS if self._status is None else _TERMINAL_SECONDS
        if now - self._shown >= period:
            self._shown = now
            if self._status is None:
                console.say(progress_line(snapshot))
            else:
                self._status.update(progress_line(snapshot))

    def shard(self, entry: Entry) -> None:
        self._write(
            "shard",
            shard=entry.shard.stem,
            embedded=entry.embedded,
            failed=len(entry.errors),
            files=json_from_value(entry.files),
        )

    def finished(self, summary: Summary) -> None:
        """Report that the run is complete."""
        self._write(
            "finish",
            complete=summary.complete,
            rows_done=summary.embedded_now,
            losses=summary.losses,
            rows_kept=summary.kept,
            seconds=round(summary.seconds, 3),
            counts={
                FOLDERS[kind]: json_from_value(total) for kind, total in summary.counts.items()
            },
        )

    def stopped(self, error: BaseException) -> None:
        """Report that the run was stopped or failed."""
        self._write("stop", error=str(error) or type(error).__name__)

    def _write(self, event: str, **fields: Any) -> None:
        if self._log is not None:
            with self._lock:
                try:
                    self._log.write(json.dumps({"event": event, **fields}) + "\n")
                    self._log.flush()
                except OSError as error:
                    error.filename = error.filename or self._log.name
                    raise


@contextmanager
def watching(log: str | None) -> Iterator[Watchers]:
    """Yield the reporter of a run. ``log``: file for JSON lines; "-": stdout; None: none."""
    with ExitStack() as stack:
        file: TextIO | None = None
        if log == "-":
            file = sys.stdout
        elif log is not None:
            try:
                raw: Any = stack.enter_context(Path(log).open("ab", buffering=0))
            except OSError as error:
                raise BundleError(f"--log-json {log}: {error.strerror}.") from error
            # Unbuffered, so that closing it after a failed write does not fail again.
            file = io.TextIOWrapper(raw, "utf-8", write_through=True)
        watch = Watchers(stack.enter_context(console.status()), file)
        try:
            yield watch
        except BaseException as error:
            watch.stopped(error)
            raise


def progress_line(snapshot: Snapshot) -> str:
    """Format rows, speed, time left, failures and the slowest stage in one line."""
    parts = [
        f"{snapshot.done:,} of {counted(snapshot.total, 'row')}",
        f"{snapshot.rate:,.0f} rows/s",
    ]
    if snapshot.eta is not None and snapshot.seconds > 3:
        parts.append(f"{console.clock(snapshot.eta)} left")
    parts.append(f"{snapshot.failed:,} failed")
    if snapshot.bottleneck is not None:
        parts.append(f"limited by {snapshot.bottleneck}")
    return ", ".join(parts)


def show(summary: Summary, *, quiet: bool) -> None:
    """Print what became of the rows, and where the output is."""
    if not quiet:
        for kind, total in summary.counts.items():
            click.echo(_account(FOLDERS[kind], total, complete=summary.complete))
        click.echo(summary.out)
    if summary.kept:
        console.say(f"{counted(summary.kept, 'row')} kept unchanged")
    if (rows := summary.embedded_now - summary.kept) and summary.seconds > 0:
        rate = rows / summary.seconds
        console.say(f"{counted(rows, 'row')} in {summary.seconds:.1f} s, {rate:,.0f} rows/s")
    for lost, rows in summary.losses.items():
        noun, what = lost.split(": ", 1)
        console.say(f"{counted(rows, noun)}: {what}, as for the model's training")
    if not summary.complete:
        console.say(
            f"{counted(summary.left, 'shard')} left for other machines; the last one to finish "
            "writes the manifest"
        )
    failed = sum(total.failed for total in summary.counts.values())
    if failed and summary.complete:
        reasons = summary.out / summary.errors
        console.warn(f"{counted(failed, 'row')} failed; the reasons are in {reasons}")


def _account(folder: str, total: Counts, *, complete: bool) -> str:
    """Format the number of rows by outcome."""
    parts = f"{total.embedded:,} embedded + {total.failed:,} failed + {total.skipped:,} skipped"
    if complete:
        return f"{folder}: {parts} = {counted(total.rows, 'row')}"
    return f"{folder}: {parts} of {counted(total.rows, 'row')} so far"


def show_rehearsal(rehearsal: Rehearsal) -> None:
    """Print what a run would do."""
    plan = rehearsal.plan
    rows: list[tuple[str, str]] = []
    for entry, scan in zip(plan.job.inputs, plan.scans, strict=True):
        rows.append((FOLDERS[entry.kind], entry.source))
        rows.append(("", f"{counted(entry.rows, 'row')}, {entry.taken:,} to embed"))
        duplicates = counted(len(scan.duplicates), "duplicate id")
        rows.append(("", f"{duplicates}, {counted(entry.shard_count, 'shard')}"))
        if scan.skipped:
            rows.append(("", f"not rows: {_counted(scan.skipped)}"))
    rows.append(("runtime", plan.choice.reason))
    todo = f"{counted(rehearsal.rows, 'row')} in {counted(rehearsal.todo, 'shard')}"
    rows.append(("to do", todo))
    console.table(rows)


def _counted(skipped: Mapping[str, int]) -> str:
    """Format what a scan skipped, the most frequent first."""
    ordered = sorted(skipped.items(), key=lambda item: -item[1])
    rest = sum(number for _what, number in ordered[_SHOWN:])
    shown = [f"{number:,} {what}" for what, number in ordered[:_SHOWN]]
    return ", ".join(shown + ([f"{rest:,} others"] if rest else []))


def show_proof(out: Path, proof: Proof) -> None:
    """Print the result of --verify.

    Raises:
        OutputDamagedError: something is wrong; the message has the findings.
    """
    if not proof.whole:
        shown = "; ".join(proof.findings[:_SHOWN])
        more = len(proof.findings) - _SHOWN
        rest = f"; and {more:,} more" if more > 0 else ""
        raise OutputDamagedError(
            f"{out}: differs from its manifest: {shown}{rest}. Restore the files, or embed again "
            "into a new folder."
        )
    for kind, total in proof.counts.items():
        click.echo(_account(FOLDERS[kind], total, complete=True))
    click.echo(f"{out}: complete: {counted(proof.files, 'file')}, every row accounted for")
