"""What the held-back data decide: said before the work if they cannot, judged once after it."""

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
"""What an undecided verdict counts as; None: the graphs are added, and `auto` leaves them."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The budget, and what follows from a verdict on it."""

    max_recall_drop: float  # points
    undecided: Undecided

    def can_be_decided(self, pictures: int) -> bool:
        """Whether so many pictures would let an unchanged model pass."""
        needed = fewest_pictures(self.max_recall_drop)
        return needed is not None and pictures >= needed

    def doubts(self, data: RetrievalData, progress: Progress) -> tuple[str, ...]:
        """What keeps these data from deciding, said before the work starts."""
        pictures, needed = len(data.pictures), fewest_pictures(self.max_recall_drop)
        said = data_objection(data)
        if said is None and not self.can_be_decided(pictures):
            more = f"{needed:,} or more" if needed else "a larger budget"
            said = (
                f"{pictures:,} held-back pictures cannot show that a drop is smaller than "
                f"{self.max_recall_drop:g} points, even where nothing changes. Needed: {more}"
            )
        if said is None:
            return ()
        progress(f"note: {said}. The verdict will be undecided")
        return (f"{data.name}: {said}.",)

    def judge(self, trial: Trial, objection: str | None) -> Decision:
        """Decide on a measurement of the held-back data."""
        accept = self.undecided == "pass"
        return decide(trial.changes, self.max_recall_drop, objection=objection, accept=accept)

    def refuse(self, decision: Decision) -> None:
        """Raise ParityError for a choice that fails, or that may not stay undecided."""
        if decision.verdict == "passes":
            return
        if decision.verdict == "undecided" and self.undecided != "fail":
            return
        raise ParityError(
            f"the precisions that the search chose do not pass on the held-back data: "
            f"{decision.words()}, allowed to drop by {self.max_recall_drop:g}. The bundle is "
            "unchanged. Allow more (`max_recall_drop`), calibrate on more samples (`samples`), "
            "give more held-back pictures, or learn the rounding (`rounding=learned`)."
        )

    def nothing_fits(self, result: SearchResult) -> ParityError:
        """The error of a search that expects nothing with INT8 to pass."""
        tried = [trial.drop for trial in result.measured if trial.int8]
        least = f"the best that was tried drops {min(tried):.2f}" if tried else "none was tried"
        late = " before the time budget was used up" if result.stopped else ""
        return ParityError(
            f"no assignment with INT8 layers is expected to stay within {self.max_recall_drop:g} "
            f"points of recall{late}; {least}. The bundle is unchanged. Allow more "
            "(`max_recall_drop`), calibrate on more samples (`samples`), or learn the rounding "
            "(`rounding=learned`)."
        )


def cut_captions(side: Encoder, data: RetrievalData) -> tuple[str, ...]:
    """A warning about captions that the model does not see whole."""
    cut = side.count_cut(data.captions)
    if not cut:
        return ()
    return (f"{data.name}: {cut:,} captions of more than {side.max_length} tokens were cut",)
