"""Compare two models by what they retrieve: all measures and the verdict in one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.encoder import EncoderInfo
from mwa_export.errors import RecallError, UsageError, check_option
from mwa_export.metrics.agreement import check_embeddings, cosine_summary
from mwa_export.metrics.evidence import (
    objection_to_data,
    objection_to_reference,
    repeated_captions,
)
from mwa_export.metrics.ranking import KS, Ranking
from mwa_export.metrics.recall import Pairs, rank_both
from mwa_export.metrics.verdict import CONFIDENCE, whole
from mwa_export.parity.directions import Sampling, measure_direction, with_float32
from mwa_export.parity.examples import Labels, best_examples, worst_examples
from mwa_export.parity.gates import Gates, check_gates, pictures_for_verdict
from mwa_export.parity.result import (
    Cost,
    CrossCell,
    DataInfo,
    LayerSnr,
    Parity,
    Stage,
    Vectors,
    Which,
)
from mwa_export.progress import Progress, Silent
from mwa_export.version import __version__

_ARRAYS = "arrays"


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """Options of `compare`: gates, interval and seed."""

    gates: Gates = field(default_factory=Gates)
    confidence: float = CONFIDENCE  # of the intervals; a verdict's level is (1 - confidence) / 2
    resamples: int = 10_000
    seed: int = 0  # of the bootstrap
    examples: int = 12  # number of losses, and of gains, to list per direction

    def __post_init__(self) -> None:
        fits = 0.5 <= self.confidence < 1
        check_option("confidence", self.confidence, fits, "0.5 to below 1, such as 0.95")
        check_option("resamples", self.resamples, self.resamples >= 100, "at least 100")
        check_option("seed", self.seed, self.seed >= 0, "at least 0")
        check_option("examples", self.examples, self.examples >= 0, "at least 0")


@dataclass(frozen=True, slots=True)
class Context:
    """What is known about the two sides besides their embeddings."""

    reference: EncoderInfo
    candidate: EncoderInfo
    stages: tuple[Stage, ...] = ()
    layers: tuple[LayerSnr, ...] = ()
    costs: tuple[Cost, ...] = ()
    warnings: tuple[str, ...] = ()
    cut_captions: tuple[int, int] | None = None  # reference, candidate; None: unknown
    labels: Labels | None = None  # of arrays; None: row numbers
    float32: Vectors | None = None  # the candidate's in float32, before quantization


def compare(
    reference: Vectors | Sequence[Any],
    candidate: Vectors | Sequence[Any],
    data: RetrievalData | NDArray[Any] | Sequence[int],
    *,
    options: CompareOptions | None = None,
    progress: Progress | None = None,
) -> Parity:
    """Compare the embeddings of a candidate with those of a reference, made by any model.

    To embed and compare a bundle and its checkpoint, use `compare_models`.

    Args:
        reference: the embeddings to compare with. A pair (images, texts) of floats, of shapes
            (n_image, D) and (n_text, D), with rows of unit length.
        candidate: the embeddings to check. A pair of the same shapes.
        data: a test set, or the row of each caption's image, (n_text,) integers.
        options: gates, confidence, seed.
        progress: called for each step.

    Raises:
        RecallError: embeddings are not finite, not of unit length, or do not fit the data.
        UsageError: a side is not a pair.
    """
    sides = (
        EncoderInfo("reference", _ARRAYS, "", "", None),
        EncoderInfo("candidate", _ARRAYS, "", "", None),
    )
    return measure(_pair(reference), _pair(candidate), data, Context(*sides), options, progress)


def _pair(embeddings: Any) -> Vectors:
    try:
        if isinstance(embeddings, str):
            raise TypeError
        return Vectors(*embeddings)
    except TypeError as error:
        raise UsageError(
            f"compare() expects a pair (image embeddings, text embeddings) for each side, got "
            f"{type(embeddings).__name__}. For models, use compare_models()."
        ) from error


def measure(
    reference: Vectors,
    candidate: Vectors,
    data: RetrievalData | NDArray[Any] | Sequence[int],
    context: Context,
    options: CompareOptions | None = None,
    progress: Progress | None = None,
) -> Parity:
    """Compute all measures of two sets of embeddings, and the verdict. See `compare`."""
    options, progress = options or CompareOptions(), progress or Silent()
    labels, pairs = _labels_and_pairs(data)
    labels = context.labels or labels
    reference, candidate = _checked(reference, candidate, pairs)
    cosines = (
        cosine_summary("vision", reference.images, candidate.images),
        cosine_summary("text", reference.texts, candidate.texts),
    )
    same = all(summary.identical == summary.rows for summary in cosines)
    ranked = _rank_all(reference, candidate, pairs, progress, same=same)
    before, after = ranked["reference", "reference"], ranked["candidate", "candidate"]
    progress("compute confidence intervals")
    owners = pairs.rows()
    measured = Sampling(options.confidence, options.resamples, options.seed)
    directions = (
        measure_direction("tr", before[0], after[0], np.arange(len(pairs.image_ids)), measured),
        measure_direction("ir", before[1], after[1], owners, measured),
    )
    if context.float32 is not None:
        queries = len(pairs.image_ids) + len(pairs.caption_image_ids)
        progress("rank with the candidate's float32 graphs", queries)
        exact = rank_both(*context.float32, pairs, on_rows=progress.advance)
        directions = with_float32(directions[0], exact[0]), with_float32(directions[1], exact[1])
    about = _data_info(data, pairs, labels)
    objection = objection_to_data(
        about.images, about.captions, about.repeated_captions
    ) or objection_to_reference(before[1])
    gates = check_gates(options.gates, options.confidence, directions, cosines, objection)
    return Parity(
        verdict=whole(gate.verdict for gate in gates),
        pictures=pictures_for_verdict(gates),
        reference=context.reference,
        candidate=context.candidate,
        objection=objection,
        data=about,
        confidence=options.confidence,
        resamples=options.resamples,
        seed=options.seed,
        gates=gates,
        directions=directions,
        cosines=cosines,
        cross=tuple(
            CrossCell(images, texts, _recalls(tr), _recalls(ir))
            for (images, texts), (tr, ir) in ranked.items()
        ),
        stages=context.stages,
        layers=context.layers,
        costs=context.costs,
        examples=worst_examples(before, after, owners, labels, options.examples),
        improved=best_examples(before, after, owners, labels, options.examples),
        warnings=context.warnings,
        cut_captions=context.cut_captions,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=__version__,
    )


def _rank_all(
    reference: Vectors, candidate: Vectors, pairs: Pairs, progress: Progress, *, same: bool
) -> dict[tuple[Which, Which], tuple[Ranking, Ranking]]:
    """Rank the images of each side against the texts of each side.

    ``same``: the embeddings of both sides are identical, so that one ranking is enough.
    """
    sides: dict[Which, Vectors] = {"reference": reference, "candidate": candidate}
    queries = len(pairs.image_ids) + len(pairs.caption_image_ids)
    progress("rank every query", queries if same else 4 * queries)
    if same:
        once = rank_both(*reference, pairs, on_rows=progress.advance)
        return {(images, texts): once for images in sides for texts in sides}
    return {
        (images, texts): rank_both(ours.images, theirs.texts, pairs, on_rows=progress.advance)
        for images, ours in sides.items()
        for texts, theirs in sides.items()
    }


def _recalls(ranking: Ranking) -> tuple[float, ...]:
    return tuple(ranking.recall(k) for k in KS)


def _checked(reference: Vectors, candidate: Vectors, pairs: Pairs) -> tuple[Vectors, Vectors]:
    counts = len(pairs.image_ids), len(pairs.caption_image_ids)
    sides = [
        Vectors(
            check_embeddings(f"{side} image embeddings", vectors.images, counts[0]),
            check_embeddings(f"{side} text embeddings", vectors.texts, counts[1]),
        )
        for side, vectors in (("reference", reference), ("candidate", candidate))
    ]
    widths = {array.shape[1] for vectors in sides for array in vectors}
    if len(widths) > 1:
        raise RecallError(
            f"the embeddings have different widths: reference {sides[0].images.shape[1]} (images) "
            f"and {sides[0].texts.shape[1]} (texts), candidate {sides[1].images.shape[1]} and "
            f"{sides[1].texts.shape[1]}. Expected one width. Are they of the same model?"
        )
    return sides[0], sides[1]


def _labels_and_pairs(data: Any) -> tuple[Labels, Pairs]:
    if isinstance(data, RetrievalData):
        pairs = Pairs(data.image_ids, data.caption_image_ids)
        return Labels.of_data(data), pairs
    pairs = Pairs.of(data)
    return Labels.of_counts(len(pairs.image_ids), len(pairs.caption_image_ids)), pairs


def _data_info(data: Any, pairs: Pairs, labels: Labels) -> DataInfo:
    owners = pairs.rows()
    counts = np.bincount(owners)
    known = isinstance(data, RetrievalData)
    return DataInfo(
        name=data.name if known else _ARRAYS,
        images=len(pairs.image_ids),
        captions=len(pairs.caption_image_ids),
        fewest_captions=int(counts.min()),
        most_captions=int(counts.max()),
        repeated_captions=repeated_captions(labels.captions, owners.tolist()),
        excluded=data.excluded if known else (),
    )
