"""Embeddings with a known relation, and simple ways to rank them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from mwa_export.parity.measure import CompareOptions
from mwa_export.parity.result import Parity, RecallChange, Vectors

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
SEEDS = st.integers(0, 2**32 - 1)
FAST = CompareOptions(resamples=500)


def unit(rows: NDArray[Any]) -> Floats:
    values = rows.astype(np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray((values / lengths).astype(np.float32))


def noisy(rng: np.random.Generator, rows: NDArray[Any], strength: float) -> Floats:
    """The rows with noise that is ``strength`` times as long as they are."""
    noise = rng.standard_normal(rows.shape) / rows.shape[1] ** 0.5
    return unit(rows.astype(np.float64) + strength * noise)


def random_owners(rng: np.random.Generator, images: int, extra: int) -> Ints:
    """Rows of the captions' images: one caption each, and others as they fall, in any order."""
    owners: Ints = np.concatenate([np.arange(images), rng.integers(0, images, extra)])
    rng.shuffle(owners)
    return owners


def random_side(rng: np.random.Generator, owners: Ints, *, noise: float, width: int) -> Vectors:
    """Images, and captions that are found more or less."""
    images = unit(rng.standard_normal((int(owners.max()) + 1, width)))
    return Vectors(images, noisy(rng, images[owners], noise))


def damaged(rng: np.random.Generator, side: Vectors, strength: float) -> Vectors:
    return Vectors(noisy(rng, side.images, strength), noisy(rng, side.texts, strength))


def perfect(images: int, captions: int) -> tuple[Vectors, Ints]:
    """Every image at right angles to the others and equal to its captions."""
    owners = np.repeat(np.arange(images), captions)
    eye = np.eye(images, dtype=np.float32)
    return Vectors(eye, eye[owners]), owners


def changes(result: Parity) -> Iterator[tuple[int, RecallChange]]:
    """The number of queries and the change of each of the six figures."""
    for direction in result.directions:
        for change in direction.recalls:
            yield direction.queries, change


def first(result: Parity) -> tuple[RecallChange, RecallChange]:
    """Recall@1 in both directions."""
    return result.directions[0].recalls[0], result.directions[1].recalls[0]


def naive_order(queries: Floats, gallery: Floats) -> Ints:
    return np.argsort(-(queries @ gallery.T), axis=1, kind="stable")


def naive_ranks(order: Ints, right: list[set[int]]) -> list[int]:
    return [
        next(place for place, item in enumerate(row, 1) if item in mine)
        for row, mine in zip(order.tolist(), right, strict=True)
    ]
