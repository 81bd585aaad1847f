"""Drift by stage: tokenizer, preprocessing, graph and precision, each changed alone.

The way from the reference to the candidate is walked in four steps, each of which changes one
thing and keeps the rest; what a step does to embeddings and recall is that thing's doing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mwa_export.agreement import cosine_distances
from mwa_export.backend import Embeddings
from mwa_export.embedder import Embedder
from mwa_export.parity_result import Stage
from mwa_export.recall import Pairs, rank_both
from mwa_export.retrieval_data import RetrievalData
from mwa_export.sides import Side


@dataclass(frozen=True, slots=True)
class Variant:
    """Embeddings on the way from the reference to the candidate."""

    images: Embeddings
    texts: Embeddings


def drift_by_stage(
    reference: Side,
    candidate: Side,
    data: RetrievalData,
    first: Variant,
    last: Variant,
    embed: Embedder,
) -> tuple[Stage, ...]:
    """Measure the four stages. Only what a stage really changes is embedded again.

    Args:
        reference: where the way begins.
        candidate: where it ends.
        data: the test set.
        first: the reference's embeddings.
        last: the candidate's.
        embed: embeds what lies between.
    """
    pairs = Pairs(data.image_ids, data.caption_image_ids)
    stages = []
    variant = first

    stage, variant = _tokenizer(reference, candidate, data, variant, embed, pairs)
    stages.append(stage)
    stage, variant = _preprocessing(reference, candidate, data, variant, embed, pairs)
    stages.append(stage)
    if candidate.float32 is None:
        stages.append(_step("graph", _graphs(reference, candidate), variant, last, pairs))
        detail = f"{candidate.info.source} runs in float32"
        stages.append(Stage("precision", "same", detail))
        return tuple(stages)
    exact = Variant(
        embed.pictures(candidate, data, backend=candidate.float32)[0],
        embed.texts(candidate, data, backend=candidate.float32),
    )
    stages.append(_step("graph", _graphs(reference, candidate), variant, exact, pairs))
    detail = f"float32 against {candidate.info.precision}, both on {candidate.info.runtime}"
    stages.append(_step("precision", detail, exact, last, pairs))
    return tuple(stages)


def _tokenizer(
    reference: Side,
    candidate: Side,
    data: RetrievalData,
    variant: Variant,
    embed: Embedder,
    pairs: Pairs,
) -> tuple[Stage, Variant]:
    ours, theirs = reference.encode(data.captions), candidate.encode(data.captions)
    differing = sum(one != other for one, other in zip(ours, theirs, strict=True))
    if not differing:
        detail = f"all {len(ours)} captions have the same token ids on both sides"
        return Stage("tokenizer", "same", detail), variant
    detail = f"{differing} of {len(ours)} captions have other token ids"
    vocabulary = reference.config.backbone.vocab_size
    longest = max(map(len, theirs))
    if max(map(max, theirs)) >= vocabulary or longest > reference.max_length:
        detail += "; the reference cannot read them, so their effect counts under graph"
        return Stage("tokenizer", "not measured", detail), variant
    changed = Variant(variant.images, embed.texts(reference, data, encoded_by=candidate))
    return _step("tokenizer", detail, variant, changed, pairs), changed


def _preprocessing(
    reference: Side,
    candidate: Side,
    data: RetrievalData,
    variant: Variant,
    embed: Embedder,
    pairs: Pairs,
) -> tuple[Stage, Variant]:
    ours, theirs = dict(reference.image), dict(candidate.image)
    if ours == theirs:
        detail = f"{ours['colour']}, {ours['resize']}, {ours['size']} pixels on both sides"
        return Stage("preprocessing", "same", detail), variant
    differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    detail = "; ".join(f"{n}: {ours.get(n)} against {theirs.get(n)}" for n in differing)
    if ours["size"] != theirs["size"]:
        detail += "; the reference cannot read that size, so its effect counts under graph"
        return Stage("preprocessing", "not measured", detail), variant
    changed = Variant(embed.pictures(reference, data, prepared_by=candidate)[0], variant.texts)
    return _step("preprocessing", detail, variant, changed, pairs), changed


def _graphs(reference: Side, candidate: Side) -> str:
    return f"{reference.info.runtime} against {candidate.info.runtime}, same inputs, float32"


def _step(name: str, detail: str, before: Variant, after: Variant, pairs: Pairs) -> Stage:
    """What one stage changed. Towers whose embeddings are equal bit by bit are untouched."""
    if np.array_equal(before.images, after.images) and np.array_equal(before.texts, after.texts):
        return Stage(name, "same", f"{detail}: no embedding differs", tr1=0.0, ir1=0.0)
    old = rank_both(before.images, before.texts, pairs)
    new = rank_both(after.images, after.texts, pairs)
    return Stage(
        name=name,
        state="changed",
        detail=detail,
        vision_cosine=_cosine(before.images, after.images),
        text_cosine=_cosine(before.texts, after.texts),
        tr1=new[0].recall(1) - old[0].recall(1),
        ir1=new[1].recall(1) - old[1].recall(1),
    )


def _cosine(before: Embeddings, after: Embeddings) -> float | None:
    """Mean cosine; None if nothing changed, or if the widths differ."""
    if before.shape != after.shape or np.array_equal(before, after):
        return None
    return float(1 - cosine_distances(before, after).mean())
