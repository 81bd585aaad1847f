"""Draw the images and captions of a calibration: seeded, hashed, and checked for noise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.batches import batches_by_length
from mwa_export.encoder.encoder import Encoder
from mwa_export.errors import CalibrationError, ImageError
from mwa_export.inputs.tokenizer import pad

SAMPLES = 256  # images, and as many captions
LEAST = 16  # with fewer, ranges depend on which images were drawn
_BATCH = 8

# Neighbouring pixels of an image are similar (correlation mostly above 0.9, and above 0.5 even for
# drawings); those of noise are not. Measured after resizing, on what the model will see.
_NOISE_CORRELATION = 0.25
# Tokens of texts repeat often, ids drawn at random hardly ever.
_RANDOM_DISTINCT = 0.9
_ENOUGH_TOKENS = 200

Inputs = tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs of a calibration, ready to be fed to the graphs."""

    pixels: NDArray[np.uint8]  # (images, size, size, 3)
    sequences: tuple[tuple[int, ...], ...]  # token ids of each caption, with BOS and EOS
    sha256: str  # over pixels and token ids, independent of where the files are
    name: str  # of the data set, for display
    seed: int

    def batches(self, tower: str) -> Iterator[Inputs]:
        """Yield inputs of a tower: (pixels,), or (token_ids, padding_mask) sorted by length."""
        if tower == "vision":
            for start in range(0, len(self.pixels), _BATCH):
                yield (self.pixels[start : start + _BATCH],)
        else:
            for rows in batches_by_length(self.sequences, 2 * _BATCH):
                yield pad([self.sequences[row] for row in rows])

    def count(self, tower: str) -> int:
        """Total number of rows that `batches` yields."""
        return len(self.pixels) if tower == "vision" else len(self.sequences)

    def first(self, rows: int) -> Samples:
        """Limit the samples to the first ``rows`` images and captions."""
        return replace(self, pixels=self.pixels[:rows], sequences=self.sequences[:rows])


def split_data(data: RetrievalData, samples: int, seed: int) -> tuple[RetrievalData, RetrievalData]:
    """Split into ``samples`` images to calibrate with, and held-back images; captions follow.

    Raises:
        CalibrationError: there are too few images for both.
    """
    count = len(data.pictures)
    if samples < LEAST:
        raise CalibrationError(
            f"`samples={samples}`: too few. Expected at least {LEAST} images; {SAMPLES} are usual."
        )
    if count < samples + LEAST:
        raise CalibrationError(
            f"{data.name}: has {count} images. Expected {samples} for calibration, and at least "
            f"{LEAST} more that are held back to measure recall. Pass more data, lower `samples`, "
            "or pass a separate set to measure recall on: `held_back=DATA`"
        )
    return set_aside(data, samples, seed)


def set_aside(data: RetrievalData, pictures: int, seed: int) -> tuple[RetrievalData, RetrievalData]:
    """Split into ``pictures`` images that are drawn at random, and the others."""
    mask = np.zeros(len(data.pictures), bool)
    mask[np.random.default_rng(seed).permutation(len(mask))[:pictures]] = True
    return data.only(mask), data.only(~mask)


def divided(
    data: RetrievalData | None,
    held_back: RetrievalData | None,
    samples: int,
    seed: int,
    *,
    fit: bool,
    search: bool,
) -> tuple[RetrievalData | None, RetrievalData | None, RetrievalData | None]:
    """Divide the data into those to calibrate with, to search with, and to decide on; or None.

    Args:
        data: a test set, or None.
        held_back: a separate set to decide on; None: a part of ``data`` is held back.
        samples: images to calibrate with, and to search with.
        seed: of the random draw.
        fit: whether ranges are needed; False: an earlier calibration has them.
        search: whether precisions are searched.

    Raises:
        CalibrationError: see `split_data`.
    """
    if fit and held_back is None:
        assert data is not None
        data, held_back = split_data(data, samples, seed)
        return data, data, held_back
    if data is not None and held_back is not None:
        return data, set_aside(data, samples, seed)[0], held_back
    only = data or held_back
    if only is None or not search:
        return None, None, only
    trying, rest = set_aside(only, min(samples, len(only.pictures) // 2), seed)
    return None, trying, rest


def take_samples(encoder: Encoder, data: RetrievalData, samples: int, seed: int) -> Samples:
    """Draw ``samples`` images (or all, if fewer) with one caption each, and prepare them.

    Raises:
        CalibrationError: too few samples, images of noise, or captions of random tokens.
        ImageError: a drawn image cannot be read.
    """
    if len(data.pictures) < LEAST or samples < LEAST:
        few = samples < LEAST
        found = f"`samples={samples}`" if few else f"{data.name}: has {len(data.pictures)} images"
        raise CalibrationError(
            f"{found}: too few. Expected at least {LEAST} images with captions; {SAMPLES} are "
            "usual."
        )
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(data.pictures))[:samples])
    captions = []
    for row in rows:
        own = np.flatnonzero(data.caption_image_ids == data.image_ids[row])
        captions.append(data.captions[int(rng.choice(own))])
    pixels = np.stack([_pixels(encoder, data, int(row)) for row in rows])
    sequences = encoder.encode(captions)
    _refuse_noise(pixels, data.name)
    _refuse_random_tokens(sequences, data.name)
    digest = hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes())
    digest.update(repr(sequences).encode())
    frozen = tuple(tuple(ids) for ids in sequences)
    return Samples(pixels, frozen, digest.hexdigest(), data.name, seed)


def _pixels(encoder: Encoder, data: RetrievalData, row: int) -> NDArray[np.uint8]:
    picture = data.pictures[row]
    try:
        return encoder.pixels(picture, str(picture))
    except ImageError as error:
        raise ImageError(f"{error} Remove it from the data, or repair it.") from error


def _refuse_noise(pixels: NDArray[np.uint8], name: str) -> None:
    noisy = sum(_neighbour_correlation(picture) < _NOISE_CORRELATION for picture in pixels)
    if noisy > len(pixels) // 2:
        raise CalibrationError(
            f"{name}: {noisy} of {len(pixels)} images are noise (neighbouring pixels are "
            "unrelated). Value ranges of noise do not fit real images. Pass images like those "
            "that will be embedded."
        )


def _neighbour_correlation(pixels: NDArray[np.uint8]) -> float:
    """Correlation of horizontally neighbouring pixels; 1 for an image of a single colour."""
    grey = pixels.astype(np.float64).mean(axis=2)
    left, right = grey[:, :-1] - grey[:, :-1].mean(), grey[:, 1:] - grey[:, 1:].mean()
    scale = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / scale if scale > 0 else 1.0


def _refuse_random_tokens(sequences: Sequence[Sequence[int]], name: str) -> None:
    tokens = [token for ids in sequences for token in ids[1:-1]]
    if not tokens:
        raise CalibrationError(f"{name}: all captions are empty. Expected captions with text.")
    if len(tokens) >= _ENOUGH_TOKENS and len(set(tokens)) > _RANDOM_DISTINCT * len(tokens):
        raise CalibrationError(
            f"{name}: the captions look random, with {len(set(tokens))} different tokens among "
            f"{len(tokens)}. Pass captions like those that will be embedded."
        )
