"""A planted loss in embeddings gets a verdict in the right direction."""

from __future__ import annotations

import numpy as np
import pytest
from parity_arrays import Ints, noisy, random_side, unit

from mwa_export.parity.gates import Gates
from mwa_export.parity.measure import CompareOptions, compare
from mwa_export.parity.result import Parity, Vectors

pytestmark = pytest.mark.slow

IMAGES, CAPTIONS = 1500, 2
OPTIONS = CompareOptions(Gates(0.5), resamples=100, examples=0)


def sides(seed: int) -> tuple[np.random.Generator, Vectors, Ints]:
    """A model that finds about two in three, and whose margins are smooth."""
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(IMAGES), CAPTIONS)
    return rng, random_side(rng, owners, noise=2.0, width=48), owners


def verdict(side: Vectors, candidate: Vectors, owners: Ints) -> Parity:
    return compare(side, candidate, owners, options=OPTIONS)


@pytest.mark.parametrize("seed", range(4))
def test_rounding_noise_passes(seed: int) -> None:
    rng, side, owners = sides(seed)
    rounded = Vectors(noisy(rng, side.images, 0.004), noisy(rng, side.texts, 0.004))
    result = verdict(side, rounded, owners)
    assert result.verdict == "passes", [gate.message for gate in result.gates]


@pytest.mark.parametrize("seed", range(4))
def test_pictures_that_a_fault_breaks_fail(seed: int) -> None:
    """Of 3% of the pictures nothing is left: about two points of recall at rank 1."""
    rng, side, owners = sides(seed)
    broken = side.images.copy()
    rows = rng.choice(IMAGES, round(0.03 * IMAGES), replace=False)
    broken[rows] = unit(rng.standard_normal((len(rows), side.images.shape[1])))
    result = verdict(side, Vectors(broken, side.texts), owners)
    assert result.verdict == "fails", [gate.message for gate in result.gates]


@pytest.mark.parametrize("seed", range(4))
def test_loss_that_is_spread_over_all_pictures_fails(seed: int) -> None:
    rng, side, owners = sides(seed)
    worse = Vectors(side.images, noisy(rng, side.texts, 0.35))
    result = verdict(side, worse, owners)
    assert result.verdict == "fails", [gate.message for gate in result.gates]


@pytest.mark.parametrize("seed", range(4))
def test_loss_of_the_size_of_the_budget_never_passes(seed: int) -> None:
    rng, side, owners = sides(seed)
    broken = side.images.copy()
    rows = rng.choice(IMAGES, round(0.01 * IMAGES), replace=False)
    broken[rows] = unit(rng.standard_normal((len(rows), side.images.shape[1])))
    assert verdict(side, Vectors(broken, side.texts), owners).verdict != "passes"
