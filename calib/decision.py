"""The verdict on a quantization from held-back data, and a warning if they cannot give one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mwa_export.calib.evaluate import data_objection
from mwa_export.calib.precision_search import SearchResult, Trial
from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.encoder import Encoder
from mwa_export.errors import ParityError
from mwa_export.metrics.verdict import Decision, decide, fewest_pictures
from mwa_export.progress import Progress

Undecided = Literal["pass", "fail"] | None
"""What an undecided verdict counts as; None: graphs are added, but `auto` does not choose them."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The recall budget, and what an undecided verdict counts as."""

    max_recall_drop: float  # points
    undecided: Undecided

    def can_be_decided(self, pictures: int) -> bool:
        """Whether an unchanged model could pass with this number of images."""
        needed = fewest_pictures(self.max_recall_drop)
        return needed is not None and pictures >= needed

    def doubts(self, data: RetrievalData, progress: Progress) -> tuple[str, ...]:
        """Report, before the work starts, why these data cannot decide; empty if they can."""
        pictures, needed = len(data.pictures), fewest_pictures(self.max_recall_drop)
        said = data_objection(data)
        if said is None and not self.can_be_decided(pictures):
            more = f"Use at least {needed:,}" if needed else "Allow a larger drop"
            said = (
                f"{pictures:,} held-back images cannot show that a drop is below "
                f"{self.max_recall_drop:g} points, even if nothing changes. {more}"
            )
        if said is None:
            return ()
        progress(f"note: the verdict will be undecided: {said}")
        return (f"{data.name}: {said}.",)

    def judge(self, trial: Trial, objection: str | None) -> Decision:
        """Decide on a measurement of the held-back data."""
        accept = self.undecided == "pass"
        return decide(trial.changes, self.max_recall_drop, objection=objection, accept=accept)

    def refuse(self, decision: Decision) -> None:
        """Raise ParityError for a choice that fails, or is undecided if that counts as failing."""
        if decision.verdict == "passes":
            return
        if decision.verdict == "undecided" and self.undecided != "fail":
            return
        raise ParityError(
            f"the chosen precisions do not pass on the held-back data: "
            f"{decision.words()}, allowed drop {self.max_recall_drop:g}. The bundle is unchanged. "
            "Allow a larger drop (`max_recall_drop`), calibrate on more samples (`samples`), "
            "pass more held-back images, or learn the rounding (`rounding=learned`)."
        )

    def nothing_fits(self, result: SearchResult) -> ParityError:
        """Make the error for a search in which no INT8 layer is expected to pass."""
        tried = [trial.drop for trial in result.measured if trial.int8]
        least = f"the best one tried drops {min(tried):.2f}" if tried else "none was tried"
        late = " within the time budget" if result.stopped else ""
        return ParityError(
            f"found no assignment with INT8 layers{late} that is expected to drop recall by at "
            f"most {self.max_recall_drop:g} points; {least}. The bundle is unchanged. Allow a "
            "larger drop (`max_recall_drop`), calibrate on more samples (`samples`), or learn the "
            "rounding (`rounding=learned`)."
        )


def cut_captions(side: Encoder, data: RetrievalData) -> tuple[str, ...]:
    """Warn about captions that the model truncates."""
    cut = side.count_cut(data.captions)
    if not cut:
        return ()
    return (f"{data.name}: {cut:,} captions of more than {side.max_length} tokens were truncated",)
