"""One section of a benchmark: all opened contenders on one tower at one batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mwa_export.bench.contenders import Contender, Kernel, Run, quiet, reason_of
from mwa_export.bench.figures import Timed, figures_from_turns
from mwa_export.bench.inputs import (
    TEXT_WINDOW,
    VISION_WINDOW,
    Pool,
    Split,
    captions_by_length,
    captions_padded,
    pictures_in_order,
)
from mwa_export.bench.result import Section, Skipped
from mwa_export.bench.timing import Entry, interleave, one_turn
from mwa_export.bundle.manifest import Manifest
from mwa_export.errors import MwaExportError
from mwa_export.progress import Progress
from mwa_export.spec import ModelConfig, Tower
from mwa_export.towers.forward import TowerPlan
from mwa_export.towers.macs import count_macs

SEED = 0  # of random inputs and of the order within rounds


Opened = tuple[Contender, Run]
"""A contender that was opened, and its function."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Work of a section, which is equal for all contenders."""

    manifest: Manifest
    tower: Tower
    batch: int
    pool: Pool

    @property
    def rows(self) -> int:
        """Number of rows in a round."""
        return window_rows(self.tower, self.batch)

    def split(self, contender: Contender) -> Split:
        """Cut a window into batches for this contender."""
        if self.tower == "vision":
            return pictures_in_order(self.batch)
        if contender.kind == "ours":
            return captions_by_length(self.batch)
        return captions_padded(self.batch, self.manifest.model.backbone.max_text_length)

    def operations(self, contender: Contender, window: Any) -> int:
        """Operations of this contender's GEMMs for a window, including padding."""
        if contender.kind == "ours":
            plan = merged_plan(self.manifest, self.tower)
        else:
            plan = unmerged_plan(self.manifest.model, self.tower)
        shapes = [batch[0].shape for _rows, batch in self.split(contender)(window)]
        text = self.tower == "text"
        return 2 * sum(count_macs(plan, s[0], s[1] if text else None) for s in shapes)


def measure_section(
    work: Workload,
    opened: Sequence[Opened],
    skipped: Sequence[Skipped],
    kernels: Sequence[Kernel],
    *,
    rounds: int,
    progress: Progress,
) -> Section:
    """Warm up all contenders, time them round by round, and compute the figures.

    A contender that fails at warm-up is added to ``skipped``.

    Raises:
        MwaExportError: no contender runs.
    """
    windows = work.pool.windows(work.rows, rounds)
    entries, failed = _warmed_up(work, opened, windows, progress)
    missing = (*skipped, *failed)
    if not entries:
        raise MwaExportError(
            f"no contender can run the {work.tower} tower on this machine. "
            + " ".join(f"{item.name}: {item.reason}." for item in missing)
        )
    contenders = [contender for contender, _run in opened if contender.name in entries]
    for kernel in kernels:
        entries[kernel.name] = Entry(lambda _: [None], _ignoring_input(kernel.run))
    estimate = sum(one_turn(entry, windows[0]).seconds for entry in entries.values())
    progress(
        f"time {len(contenders)} contenders, {work.tower}, batch {work.batch}: {rounds} rounds of "
        f"about {estimate:.2g} s",
        rounds * len(entries),
    )
    turns = interleave(entries, windows, seed=SEED, on_turn=lambda: progress.advance(1))
    timed = [
        Timed(
            contender,
            turns[contender.name],
            [[rows for rows, _ in work.split(contender)(window)] for window in windows],
            [work.operations(contender, window) for window in windows],
        )
        for contender in contenders
    ]
    figures, baseline, peaks = figures_from_turns(
        timed, kernels, turns, rows=work.rows, cosines=work.pool.real
    )
    mean = None
    if work.tower == "text":
        mean = sum(len(row) for window in windows for row in window) / (work.rows * rounds)
    return Section(work.tower, work.batch, work.rows, mean, baseline, figures, missing, peaks)


def window_rows(tower: Tower, batch: int) -> int:
    """Rows that every contender embeds in one round."""
    if tower == "vision":
        return batch * max(1, VISION_WINDOW // batch)
    return batch * TEXT_WINDOW


def errors_of(contender: Contender) -> type[Exception]:
    """Exceptions a contender may raise: any Exception for a peer, MwaExportError for ours."""
    return Exception if contender.kind == "peer" else MwaExportError


def _warmed_up(
    work: Workload, opened: Sequence[Opened], windows: Sequence[Any], progress: Progress
) -> tuple[dict[str, Entry[Any]], list[Skipped]]:
    """Run one batch of every shape that will be timed, as runtimes prepare for each shape."""
    entries: dict[str, Entry[Any]] = {}
    failed = []
    progress(f"warm up, {work.tower}, batch {work.batch}", len(opened))
    for contender, run in opened:
        split, seen = work.split(contender), set()
        try:
            with quiet():
                for part in (part for window in windows for part in split(window)):
                    shape = tuple(array.shape for array in part[1])
                    if shape not in seen:
                        seen.add(shape)
                        run(part[1])
            entries[contender.name] = Entry(split, _on_batch(run))
        except errors_of(contender) as error:
            failed.append(Skipped(contender.name, contender.kind, reason_of(error)))
        progress.advance(1)
    return entries, failed


def _on_batch(run: Run) -> Callable[[Any], Any]:
    return lambda part: run(part[1])


def _ignoring_input(run: Callable[[], object]) -> Callable[[Any], object]:
    return lambda _input: run()


def merged_plan(manifest: Manifest, tower: Tower) -> TowerPlan:
    """Structure of a bundle's own graphs."""
    return _plan(manifest.model, tower, frozenset(manifest.export.merges))


def unmerged_plan(config: ModelConfig, tower: Tower) -> TowerPlan:
    """Structure of the reference, and of its plain export."""
    return _plan(config, tower, frozenset())


def _plan(config: ModelConfig, tower: Tower, merges: frozenset[str]) -> TowerPlan:
    adapter = config.adapter
    if adapter is not None and not adapter.applies_to(tower):
        adapter = None
    return TowerPlan(tower, config.backbone, adapter, config.enhancer, merges)
