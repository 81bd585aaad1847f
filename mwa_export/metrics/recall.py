"""Recall@k from two embedding matrices. Knows nothing about models or files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import RecallError, check_option
from mwa_export.metrics.ranking import KS, Floats, Ranking, rank
from mwa_export.progress import ignore

MAX_RECALL_DROP = 0.2  # percentage points

SLACK = 1e-9  # points: one query of 500 is 0.2 and passes a gate of 0.2 despite rounding


def check_recall_drop(points: float | None) -> None:
    """Raise OptionsError unless the budget is 0 to 100 points or None (no limit)."""
    fits = points is None or 0 <= points <= 100
    check_option("max_recall_drop", points, fits, "0 to 100 points")


@dataclass(frozen=True, slots=True)
class Recall:
    """Recall in percent at k = 1, 5, 10.

    ``tr``: text retrieval, an image counts if one of its captions is among its k best texts.
    ``ir``: image retrieval, a caption counts if its image is among its k best images.
    """

    tr: dict[int, float]
    ir: dict[int, float]

    @property
    def average(self) -> float:
        """Mean of the six figures; the reference selects models by it."""
        return sum([*self.tr.values(), *self.ir.values()]) / (len(self.tr) + len(self.ir))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which images and captions belong together, by image id."""

    image_ids: NDArray[Any]  # (n_image,), unique
    caption_image_ids: NDArray[Any]  # (n_text,)

    def __post_init__(self) -> None:
        ids, owners = self.image_ids, self.caption_image_ids
        if ids.ndim != 1 or owners.ndim != 1 or not len(ids) or not len(owners):
            raise RecallError(
                f"image ids have shape {ids.shape} and the captions' image ids {owners.shape}. "
                "Expected two lists with at least one entry each."
            )
        if len(np.unique(ids)) != len(ids):
            repeated = len(ids) - len(np.unique(ids))
            raise RecallError(f"{repeated} image ids occur more than once. Expected unique ids.")
        unknown, silent = np.setdiff1d(owners, ids), np.setdiff1d(ids, owners)
        if len(unknown):
            raise RecallError(
                f"{int(np.isin(owners, unknown).sum())} captions belong to unknown images, ids "
                f"{unknown[:5].tolist()}. Expected ids of the images."
            )
        if len(silent):
            raise RecallError(
                f"{len(silent)} images have no caption, ids {silent[:5].tolist()}. "
                "Expected at least one caption per image."
            )

    def rows(self) -> NDArray[np.int64]:
        """Row of each caption's image, (n_text,) int64."""
        order = np.argsort(self.image_ids)
        return np.asarray(
            order[np.searchsorted(self.image_ids, self.caption_image_ids, sorter=order)]
        )

    @classmethod
    def of(cls, caption_image_ids: Any, image_ids: Any = None) -> Pairs:
        """Pair captions and images by image id; without ``image_ids``, ids are image rows."""
        owners = np.asarray(caption_image_ids)
        if image_ids is None:
            if owners.size and (owners.dtype.kind not in "iu" or owners.min() < 0):
                raise RecallError(
                    f"the captions' image ids are {owners.dtype}. Expected image rows, which are "
                    "integers from 0. For other ids, pass image_ids too."
                )
            return cls(np.arange(int(owners.max()) + 1 if owners.size else 0), owners)
        return cls(np.asarray(image_ids), owners)


def recall(
    image_embeddings: NDArray[np.float32],
    text_embeddings: NDArray[np.float32],
    text_image_ids: NDArray[np.int64],
    *,
    image_ids: NDArray[np.int64] | None = None,
    block: int | None = None,
) -> Recall:
    """Compute Recall@1, 5, 10 in both directions, as the reference evaluation defines them.

    Args:
        image_embeddings: (n_image, D) float32, unit length.
        text_embeddings: (n_text, D) float32, unit length. Captions per image may differ.
        text_image_ids: (n_text,) id of each caption's image.
        image_ids: (n_image,) id of each image, unique; None: 0 .. n_image - 1.
        block: queries scored at a time; None: as many as fit into 128 MiB of scores.

    Raises:
        RecallError: shapes do not fit, ids repeat or are unknown, an image has no caption, or an
            embedding is not finite.
    """
    pairs = Pairs.of(
        text_image_ids, np.arange(len(image_embeddings)) if image_ids is None else image_ids
    )
    tr, ir = rank_both(image_embeddings, text_embeddings, pairs, block=block)
    return Recall({k: tr.recall(k) for k in KS}, {k: ir.recall(k) for k in KS})


def rank_both(
    image_embeddings: NDArray[np.float32],
    text_embeddings: NDArray[np.float32],
    pairs: Pairs,
    *,
    block: int | None = None,
    on_rows: Callable[[int], None] = ignore,
) -> tuple[Ranking, Ranking]:
    """Rank text retrieval (images as queries) and image retrieval (captions as queries).

    Raises:
        RecallError: shapes do not fit the ids, or an embedding is not finite.
    """
    images = np.asarray(image_embeddings, dtype=np.float32)
    texts = np.asarray(text_embeddings, dtype=np.float32)
    _check(images, texts, pairs)
    ids, owners = pairs.image_ids, pairs.caption_image_ids
    return (
        rank(images, texts, ids, owners, block=block, on_rows=on_rows),
        rank(texts, images, owners, ids, block=block, on_rows=on_rows),
    )


def _check(images: Floats, texts: Floats, pairs: Pairs) -> None:
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise RecallError(
            f"image embeddings have shape {images.shape} and text embeddings {texts.shape}. "
            "Expected (n_image, D) and (n_text, D) with the same D."
        )
    for name, matrix, ids in (
        ("image", images, pairs.image_ids),
        ("text", texts, pairs.caption_image_ids),
    ):
        if len(matrix) != len(ids):
            raise RecallError(
                f"there are {len(matrix)} {name} embeddings, but {len(ids)} image ids for them. "
                "Expected one id per row."
            )
        bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        if len(bad):
            raise RecallError(
                f"{len(bad)} {name} embeddings are not finite, the first in row {bad[0]}."
            )
