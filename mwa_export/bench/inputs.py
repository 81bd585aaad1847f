"""Inputs of a benchmark: rows of a test set, or random inputs of plausible size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.batches import batches_by_length
from mwa_export.errors import UsageError
from mwa_export.inputs.decode import pixels_of
from mwa_export.inputs.noise import random_pixels
from mwa_export.inputs.tokenizer import BOS, EOS, encode_captions, pad

Batch = tuple[NDArray[Any], ...]  # (pixels,) uint8, or (token_ids, padding_mask) int64
Part = tuple[Sequence[int], Batch]  # rows of the window, and their batch
Split = Callable[[Any], list[Part]]
Row = TypeVar("Row")

COCO_MEAN, COCO_SPREAD, COCO_LEAST, COCO_MOST = 13.0, 3.0, 8, 30
"""Assumed length of COCO captions in tokens, with BOS and EOS: normal, rounded, clipped."""

VISION_WINDOW = 8  # least images in a round, so that batch 1 makes more than one call
TEXT_WINDOW = 8  # batches of captions in a round, so that sorting by length has an effect
CALIBRATION = 32  # rows that static quantizers calibrate with
_POOL = {"vision": 256, "text": 4096}  # most distinct rows; further windows repeat them


@dataclass(frozen=True, slots=True)
class Pool:
    """The rows of one tower: (H, W, 3) uint8 pixels, or token ids with BOS and EOS."""

    rows: Sequence[Any]
    calibration: Sequence[Any]
    real: bool  # rows of a test set, not random
    words: str  # description for the report

    def windows(self, size: int, count: int) -> list[list[Any]]:
        """Cut ``count`` windows of ``size`` consecutive rows, starting over after the last row."""
        n = len(self.rows)
        return [[self.rows[(w * size + i) % n] for i in range(size)] for w in range(count)]


def picture_pool(bundle: Bundle, data: RetrievalData | None, wanted: int, seed: int) -> Pool:
    """Return resized images of the test set for ``wanted`` rows at most; without one, noise.

    Raises:
        ImageError: an image cannot be read.
    """
    size = bundle.manifest.model.backbone.image_size
    count = min(wanted, _POOL["vision"])
    if data is None:
        noise = random_pixels(np.random.default_rng(seed), count + CALIBRATION, size)
        words = f"seeded random pixels, {size} x {size}"
        return Pool(list(noise[:count]), list(noise[count:]), False, words)
    timed, held_back = _apart(data.pictures, count)
    rows, calibration = ([pixels_of(p, str(p), size) for p in part] for part in (timed, held_back))
    words = f"{len(rows)} images of {data.name.split('/')[-1]}, {size} x {size}"
    return Pool(rows, calibration, True, words)


def caption_pool(
    bundle: Bundle, data: RetrievalData | None, lengths: str | None, wanted: int, seed: int
) -> Pool:
    """Return captions of the test set; without one, or with ``lengths``, random token ids.

    ``lengths``: "coco", a number of tokens, or None: those of the test set, else "coco".

    Raises:
        UsageError: the length does not fit the model.
        BundleError: captions are texts, and the bundle has no tokenizer.
        DataError: stored ids are not in the vocabulary.
    """
    backbone = bundle.manifest.model.backbone
    count = min(wanted, _POOL["text"])
    if data is not None and lengths is None:
        timed, held_back = _apart(data.captions, count)
        texts = any(isinstance(caption, str) for caption in data.captions)
        tokenizer = bundle.tokenizer() if texts else None
        rows, calibration = (
            encode_captions(part, tokenizer, backbone, str(bundle.path))
            for part in (timed, held_back)
        )
        words = f"{len(rows)} captions of {data.name.split('/')[-1]}"
        return Pool(rows, calibration, True, words)
    rng = np.random.default_rng(seed)
    drawn, words = _lengths(rng, lengths or "coco", count + CALIBRATION, backbone.max_text_length)
    low = min(4, backbone.vocab_size - 1)
    rows = [[BOS, *rng.integers(low, backbone.vocab_size, n - 2).tolist(), EOS] for n in drawn]
    return Pool(rows[:count], rows[count:], False, f"random ids, {words}")


def pictures_in_order(batch: int) -> Split:
    """Cut a window of images into batches of (B, H, W, 3) uint8."""

    def split(window: Sequence[NDArray[np.uint8]]) -> list[Part]:
        return [(rows, (np.stack(items),)) for rows, items in _in_order(window, batch)]

    return split


def captions_by_length(batch: int) -> Split:
    """Sort a window by length and pad each batch to its longest, as mwa-export does."""

    def split(window: Sequence[Sequence[int]]) -> list[Part]:
        return [
            (rows, pad([window[row] for row in rows])) for rows in batches_by_length(window, batch)
        ]

    return split


def captions_padded(batch: int, length: int) -> Split:
    """Pad every caption to ``length`` and keep the order, as the reference does."""

    def split(window: Sequence[Sequence[int]]) -> list[Part]:
        return [(rows, padded(items, length)) for rows, items in _in_order(window, batch)]

    return split


def _in_order(window: Sequence[Row], batch: int) -> Iterator[tuple[range, Sequence[Row]]]:
    """Yield consecutive rows, ``batch`` at a time, with their numbers."""
    for start in range(0, len(window), batch):
        rows = range(start, min(start + batch, len(window)))
        yield rows, window[start : rows.stop]


def padded(sequences: Sequence[Sequence[int]], length: int) -> Batch:
    """Pad sequences to ``length``. Returns (token_ids, padding_mask), both (B, length) int64."""
    ids, mask = pad([*sequences, [0] * length])  # a full row sets the width and is dropped below
    return ids[:-1], mask[:-1]


def _apart(rows: Sequence[Row], count: int) -> tuple[Sequence[Row], Sequence[Row]]:
    """Split into rows to time and rows to calibrate with, disjoint if there are enough."""
    held_back = min(CALIBRATION, max(1, len(rows) // 2))
    timed = rows[: max(1, min(count, len(rows) - held_back))]
    return timed, rows[-held_back:]


def _lengths(
    rng: np.random.Generator, lengths: str, count: int, most: int
) -> tuple[list[int], str]:
    """Return the number of tokens of each caption, with BOS and EOS, and a description."""
    if lengths == "coco":
        drawn = np.clip(np.rint(rng.normal(COCO_MEAN, COCO_SPREAD, count)), COCO_LEAST, COCO_MOST)
        words = (
            f"lengths assumed for COCO: normal, mean {COCO_MEAN:g}, deviation {COCO_SPREAD:g}, "
            f"{COCO_LEAST} to {COCO_MOST} tokens"
        )
        return [min(int(n), most) for n in drawn], words
    if not lengths.isdecimal() or not 3 <= int(lengths) <= most:
        raise UsageError(
            f"`lengths={lengths}`: expected `coco`, or a number of tokens from 3 to {most}, the "
            "longest text of this model."
        )
    return [int(lengths)] * count, f"{int(lengths)} tokens each"
