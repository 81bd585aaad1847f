"""Recall@k from two embedding matrices. Knows nothing about models or files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import RecallError

KS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Recall:
    """Recall in percent at k = 1, 5, 10.

    ``tr``: text retrieval, an image counts when one of its captions is among its k best texts.
    ``ir``: image retrieval, a caption counts when its image is among its k best images.
    """

    tr: dict[int, float]
    ir: dict[int, float]

    @property
    def average(self) -> float:
        """Mean of the six figures, the reference's model selection score."""
        return sum([*self.tr.values(), *self.ir.values()]) / (len(self.tr) + len(self.ir))


def recall(
    image_embeddings: NDArray[np.float32],
    text_embeddings: NDArray[np.float32],
    text_image_ids: NDArray[np.int64],
    *,
    image_ids: NDArray[np.int64] | None = None,
    block: int = 1024,
) -> Recall:
    """Recall@1, 5, 10 in both directions, as the reference evaluation defines them.

    Args:
        image_embeddings: (n_image, D), unit length.
        text_embeddings: (n_text, D), unit length. Captions per image may differ.
        text_image_ids: (n_text,) id of each caption's image.
        image_ids: (n_image,) id of each image, unique; 0 .. n_image - 1 if not given.
        block: rows scored at a time; memory is block x max(n_image, n_text) floats.

    Raises:
        RecallError: shapes do not fit, ids repeat or are unknown, an image has no caption, or an
            embedding is not finite.
    """
    images = np.asarray(image_embeddings, dtype=np.float32)
    texts = np.asarray(text_embeddings, dtype=np.float32)
    owners = np.asarray(text_image_ids)
    ids = np.arange(len(images)) if image_ids is None else np.asarray(image_ids)
    _check(images, texts, owners, ids)
    tr = _hits(images, texts, ids, owners, block)
    ir = _hits(texts, images, owners, ids, block)
    return Recall(tr, ir)


def _hits(
    queries: NDArray[np.float32],
    gallery: NDArray[np.float32],
    query_ids: NDArray[Any],
    gallery_ids: NDArray[Any],
    block: int,
) -> dict[int, float]:
    """Percent of queries with an item of the same id among the k best of the gallery."""
    found = dict.fromkeys(KS, 0)
    depth = min(max(KS), len(gallery))
    for start in range(0, len(queries), block):
        scores = queries[start : start + block] @ gallery.T  # (rows, n_gallery)
        best = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, 1)  # (rows, depth), best first
        match = gallery_ids[best] == query_ids[start : start + block, None]
        for k in KS:
            found[k] += int(match[:, :k].any(axis=1).sum())
    return {k: 100.0 * found[k] / len(queries) for k in KS}


def _check(
    images: NDArray[np.float32],
    texts: NDArray[np.float32],
    owners: NDArray[Any],
    ids: NDArray[Any],
) -> None:
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise RecallError(
            f"image embeddings have shape {images.shape} and text embeddings {texts.shape}. "
            "Expected (n_image, D) and (n_text, D) with the same D."
        )
    if owners.shape != (len(texts),) or ids.shape != (len(images),):
        raise RecallError(
            f"{owners.shape} image ids for {len(texts)} texts and {ids.shape} for {len(images)} "
            "images. Expected one id per row."
        )
    if not len(images) or not len(texts):
        raise RecallError(
            f"{len(images)} images and {len(texts)} texts. Expected at least one each."
        )
    for name, matrix in (("image", images), ("text", texts)):
        bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        if len(bad):
            raise RecallError(
                f"{len(bad)} {name} embeddings are not finite, the first in row {bad[0]}."
            )
    if len(np.unique(ids)) != len(ids):
        raise RecallError(f"{len(ids) - len(np.unique(ids))} image ids occur more than once.")
    unknown, silent = np.setdiff1d(owners, ids), np.setdiff1d(ids, owners)
    if len(unknown):
        raise RecallError(f"{len(unknown)} captions name an image that is absent: {unknown[:5]}.")
    if len(silent):
        raise RecallError(f"{len(silent)} images have no caption, ids {silent[:5]}.")
