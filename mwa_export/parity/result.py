"""Result of a parity run as plain data, from which every report is made.

The candidate is checked against the reference. Recall is in percent. Differences are candidate
minus reference in percentage points, so a loss is negative. ``docs/report.md`` describes the JSON.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from mwa_export.data.test_set import Excluded
from mwa_export.encoder.encoder import EncoderInfo
from mwa_export.metrics.agreement import CosineSummary
from mwa_export.metrics.smoothed import SmoothedChange
from mwa_export.metrics.verdict import Verdict
from mwa_export.spec import Embeddings, Tower

SCHEMA = 2
Direction = Literal["tr", "ir"]
DIRECTION_NAMES: dict[Direction, str] = {"tr": "text retrieval", "ir": "image retrieval"}
Which = Literal["reference", "candidate"]
Contender = Literal["reference", "candidate", "float32"]


class Vectors(NamedTuple):
    """Embeddings of a test set."""

    images: Embeddings  # (n_image, D)
    texts: Embeddings  # (n_text, D)


@dataclass(frozen=True, slots=True)
class DataInfo:
    """The test set."""

    name: str
    images: int
    captions: int
    fewest_captions: int  # of an image
    most_captions: int
    repeated_captions: int  # captions whose text also occurs with another image
    excluded: tuple[Excluded, ...]


@dataclass(frozen=True, slots=True)
class RecallChange:
    """Recall@k of both sides, in percent, and the uncertainty of the difference.

    The difference is estimated twice: from the count of flips, and from the margins of all queries
    near the boundary. The estimate from margins is more precise and decides the gate.
    """

    k: int
    reference: float
    candidate: float
    difference: float  # points, from flips; exactly 0.0 if as many queries were won as lost
    low: float  # interval of the difference at the result's confidence, points
    high: float
    smoothed: SmoothedChange  # the difference estimated from margins
    smoothed_low: float  # its interval at the result's confidence, points
    smoothed_high: float
    won: int  # queries that only the candidate finds among its k best
    lost: int  # queries that only the reference finds
    p_value: float  # McNemar's exact test, two-sided
    float32: float | None = None  # of the candidate before its precision was reduced, percent


@dataclass(frozen=True, slots=True)
class Margins:
    """Score of the best right item minus that of the best wrong item, in the reference.

    Flips of queries with a small margin are near-ties; flips with a large margin are damage.
    """

    flipped: int  # queries that are right at rank 1 on one side only
    flipped_median: float | None  # median of the absolute margin; None: nothing flipped
    flipped_largest: float | None
    all_median: float  # median of the absolute margin over all queries


@dataclass(frozen=True, slots=True)
class DirectionResult:
    """Results of one direction: tr searches texts with images, ir searches images with texts."""

    direction: Direction
    queries: int
    gallery: int
    recalls: tuple[RecallChange, ...]  # k = 1, 5, 10
    mean_rank: tuple[float, float]  # reference, candidate; 1 is best
    median_rank: tuple[float, float]
    changed_ranks: int  # queries whose rank differs
    overlap: float  # mean share of the 10 best items that both sides have in common, 0 to 1
    margins: Margins


@dataclass(frozen=True, slots=True)
class CrossCell:
    """Recall when the images come from one side and the texts from another, in percent."""

    images: Which
    texts: Which
    tr: tuple[float, ...]  # at k = 1, 5, 10
    ir: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """Drift caused by one stage alone: tokenizer, preprocessing, graph or precision."""

    name: str
    state: Literal["same", "changed", "not measured"]
    detail: str  # what was compared, or why it was not measured
    vision_cosine: float | None = None  # mean over all images; None: the tower did not change
    text_cosine: float | None = None
    tr1: float | None = None  # change of TR@1, points; None if not measured
    ir1: float | None = None


@dataclass(frozen=True, slots=True)
class LayerSnr:
    """Signal-to-noise ratio of the residual stream after one block."""

    tower: Tower
    layer: str  # "block 0" ..., "embedding"
    snr_db: float | None  # None: no noise at all


@dataclass(frozen=True, slots=True)
class Cost:
    """Size of a model, and the time it took in this run."""

    side: Contender  # float32: the candidate before its precision was reduced
    model_bytes: int | None  # of the graph files, or of a checkpoint's weights; None: arrays
    image_ms: float | None  # per image, without decoding; None: all came from the cache
    text_ms: float | None  # per distinct caption, without tokenizing; None: see image_ms


@dataclass(frozen=True, slots=True)
class GateResult:
    """One condition of the verdict: ``found`` must be at least ``limit``."""

    name: str  # "TR@1 change", "vision cosine"
    limit: float  # points of a change: -0.2 allows a drop of 0.2
    found: float  # the measured value; a change is the estimate from margins
    verdict: Verdict
    message: str  # one sentence with both numbers
    pictures: int | None = None  # images that would probably decide an undecided gate


@dataclass(frozen=True, slots=True)
class Example:
    """A query whose rank changed. One side ranks the right answer better, the other worse."""

    direction: Direction
    query: int  # row of the image (tr) or of the caption (ir)
    rank_before: int  # in the reference
    rank_after: int  # in the candidate
    image: int  # row of the right image
    caption: str  # the right caption; for tr, the one that the better side ranks best
    winner_image: int  # image of the item that the worse side ranks first, row
    winner_caption: str  # tr: the caption ranked first; ir: a caption of the image ranked first
    picture: str  # name of the right image
    winner_picture: str


@dataclass(frozen=True, slots=True)
class Parity:
    """Result of a parity run: verdict, gates, all measures, and what was compared."""

    verdict: Verdict  # on all gates together; passes if there are none
    pictures: int | None  # images that would probably decide an undecided verdict; None: unknown
    objection: str | None  # why the data are not evidence about recall, so that nothing passes
    reference: EncoderInfo
    candidate: EncoderInfo
    data: DataInfo
    confidence: float  # of the intervals, 0.95
    resamples: int
    seed: int
    gates: tuple[GateResult, ...]
    directions: tuple[DirectionResult, ...]  # tr, ir
    cosines: tuple[CosineSummary, ...]  # vision, text
    cross: tuple[CrossCell, ...]  # 4 cells
    stages: tuple[Stage, ...]  # tokenizer, preprocessing, graph, precision; empty for arrays
    layers: tuple[LayerSnr, ...]  # empty unless requested
    costs: tuple[Cost, ...]  # reference, [float32 if precision was reduced], candidate; or empty
    examples: tuple[Example, ...]  # ranks that got worse, worst first, both directions
    improved: tuple[Example, ...]  # ranks that got better, best first, both directions
    warnings: tuple[str, ...]
    cut_captions: tuple[int, int] | None  # truncated captions of each side; None: unknown
    created: str  # UTC, ISO 8601
    version: str  # of mwa-export

    def direction(self, name: Direction) -> DirectionResult:
        """The result of one direction."""
        return next(d for d in self.directions if d.direction == name)

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}
