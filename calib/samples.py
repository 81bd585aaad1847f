"""Draw the pictures and captions of a calibration: seeded, hashed, and checked for noise."""

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

SAMPLES = 256  # pictures, and as many captions
LEAST = 16  # below this, ranges depend on which few pictures were taken
_BATCH = 8

# Neighbouring pixels of a picture are alike (correlation mostly above 0.9, and above 0.5 even for
# drawings); those of noise are not. Measured after the resize, on what the model will see.
_NOISE_CORRELATION = 0.25
# Of 500 tokens of text, few are new ones; ids drawn at random hardly repeat.
_RANDOM_DISTINCT = 0.9
_ENOUGH_TOKENS = 200

Inputs = tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class Samples:
    """The inputs of a calibration, ready to feed."""

    pixels: NDArray[np.uint8]  # (pictures, size, size, 3)
    sequences: tuple[tuple[int, ...], ...]  # token ids of each caption, BOS and EOS included
    sha256: str  # over pixels and token ids: what was seen, wherever it lay
    name: str  # of the data set, for people
    seed: int

    def batches(self, tower: str) -> Iterator[Inputs]:
        """Inputs of a tower: (pixels,), or (token_ids, padding_mask) sorted by length."""
        if tower == "vision":
            for start in range(0, len(self.pixels), _BATCH):
                yield (self.pixels[start : start + _BATCH],)
        else:
            for rows in batches_by_length(self.sequences, 2 * _BATCH):
                yield pad([self.sequences[row] for row in rows])

    def count(self, tower: str) -> int:
        """Rows that `batches` yields in all."""
        return len(self.pixels) if tower == "vision" else len(self.sequences)

    def first(self, rows: int) -> Samples:
        """Limit the samples to ``rows`` pictures and captions."""
        return replace(self, pixels=self.pixels[:rows], sequences=self.sequences[:rows])


def split_data(data: RetrievalData, samples: int, seed: int) -> tuple[RetrievalData, RetrievalData]:
    """Pictures to calibrate with, and the others with their captions, held back.

    Raises:
        CalibrationError: too few pictures for both.
    """
    count = len(data.pictures)
    if samples < LEAST:
        raise CalibrationError(
            f"`samples={samples}`: too few. Expected at least {LEAST} pictures; {SAMPLES} are "
            "usual."
        )
    if count < samples + LEAST:
        raise CalibrationError(
            f"{data.name}: has {count} pictures. Needed: {samples} to calibrate with and at least "
            f"{LEAST} more, held back to measure recall on. Give more data, fewer `samples`, or a "
            "set of its own to measure on: `held_back=DATA`"
        )
    return set_aside(data, samples, seed)


def set_aside(data: RetrievalData, pictures: int, seed: int) -> tuple[RetrievalData, RetrievalData]:
    """So many pictures drawn from the data, and the others."""
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
    """The data to calibrate with, to search with, and to decide on; None: there are none.

    Args:
        data: a set, or None.
        held_back: another one to decide on, or None: a part of ``data``.
        samples: pictures to calibrate with, and to search with.
        seed: of the draw.
        fit: ranges are needed. Otherwise an earlier calibration has them.
        search: the precisions are searched.

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
    """Draw pictures, all if there are fewer, and one caption of each; decode, encode, refuse noise.

    Raises:
        CalibrationError: too few samples, pictures of noise, or captions of random tokens.
        ImageError: a chosen picture cannot be read.
    """
    if len(data.pictures) < LEAST or samples < LEAST:
        found = min(len(data.pictures), samples)
        raise CalibrationError(
            f"{data.name}: {found} pictures to calibrate with. Needed: at least {LEAST}, with a "
            f"caption each; {SAMPLES} are usual (`samples`)."
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
        raise ImageError(f"{error} Remove it from the calibration data, or repair it.") from error


def _refuse_noise(pixels: NDArray[np.uint8], name: str) -> None:
    noisy = sum(_neighbour_correlation(picture) < _NOISE_CORRELATION for picture in pixels)
    if noisy > len(pixels) // 2:
        raise CalibrationError(
            f"{name}: {noisy} of {len(pixels)} pictures are noise (neighbouring pixels are "
            "unrelated). Ranges from random data do not fit real pictures. Give pictures like "
            "those that will be embedded."
        )


def _neighbour_correlation(pixels: NDArray[np.uint8]) -> float:
    """Correlation of horizontally neighbouring pixels; 1 for a picture of one colour."""
    grey = pixels.astype(np.float64).mean(axis=2)
    left, right = grey[:, :-1] - grey[:, :-1].mean(), grey[:, 1:] - grey[:, 1:].mean()
    scale = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / scale if scale > 0 else 1.0


def _refuse_random_tokens(sequences: Sequence[Sequence[int]], name: str) -> None:
    tokens = [token for ids in sequences for token in ids[1:-1]]
    if not tokens:
        raise CalibrationError(f"{name}: all captions are empty. Needed: texts to calibrate with.")
    if len(tokens) >= _ENOUGH_TOKENS and len(set(tokens)) > _RANDOM_DISTINCT * len(tokens):
        raise CalibrationError(
            f"{name}: the captions' {len(tokens)} tokens hold {len(set(tokens))} different ones, "
            "as random ids do and texts do not. Give captions like those that will be embedded."
        )
