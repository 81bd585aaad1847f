"""Weights as int8 or float8, rounded to nearest. Knows nothing about graphs.

A weight is (in, out), w = scale * q. As int8 it has a scale for each output channel, and q is from
-127 to 127: the grid is symmetric, -128 is not used. As float8 it has one scale.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import CalibrationError
from mwa_export.graphs.float32_nodes import LIMIT
from mwa_export.graphs.small_floats import FLOAT8, FLOAT16, rounded

Floats = NDArray[np.float32]

LARGEST = 127
# A column of zeros is exact with any scale. This one is an ordinary number in float16 as well, so
# that no runtime divides by 0 or by a subnormal.
_SCALE_OF_ZEROS = np.float32(1 / LARGEST)


def weight_scales(weight: Floats) -> Floats:
    """The scale of each output channel, (in, out) -> (out,): the largest magnitude / 127.

    Raises:
        CalibrationError: a weight is not finite.
    """
    largest = np.abs(weight).max(axis=0)  # (out,)
    bad = np.flatnonzero(~np.isfinite(largest))
    if len(bad):
        raise CalibrationError(
            f"{len(bad)} of {len(largest)} output channels have weights that are not finite, the "
            f"first is channel {bad[0]}. Expected finite weights: the checkpoint is broken."
        )
    full = (largest / LARGEST).astype(np.float32)
    scales: Floats = np.where(full >= np.finfo(np.float32).tiny, full, _SCALE_OF_ZEROS)
    return scales


def quantize_weight(weight: Floats, scales: Floats) -> NDArray[np.int8]:
    """Round (in, out) to nearest by scales (out,), above 0. The result is from -127 to 127."""
    levels: NDArray[np.int8] = np.clip(np.rint(weight / scales), -LARGEST, LARGEST).astype(np.int8)
    return levels


def common_scale(scales: Floats, levels: NDArray[np.int8], amax: float) -> tuple[Floats, Floats]:
    """Write a scale for each column as one scale and a factor for each column.

    The scale is a power of two of the order of the columns' own. It is so small that the sums,
    times this scale and the activations', fit float16 whatever the activations are: at most
    ``amax`` times the largest sum of a column's magnitudes.

    Args:
        scales: (out,) of the columns.
        levels: (in, out) the weights.
        amax: the largest magnitude that the activations' grid represents.

    Returns:
        The scale, of shape (), and (out,) factors; their product is ``scales``.
    """
    usual = float(np.exp(np.log(scales.astype(np.float64)).mean()))
    most = amax * float(np.abs(levels.astype(np.int32)).sum(axis=0).max(initial=1))
    exponent = min(math.log2(usual), math.log2(LIMIT / most))
    scale = np.float32(2.0 ** max(math.floor(exponent), round(math.log2(FLOAT16.tiny))))
    return np.asarray(scale, np.float32), (scales / scale).astype(np.float32)


def float8_scale(largest: float) -> float:
    """The scale that brings a magnitude to the largest of float8, as float16 holds it.

    It is never below the normal numbers of float16. Smaller values than that need no larger
    numbers: with a floating point they keep their digits.

    Raises:
        CalibrationError: it is not finite, or beyond what a float16 scale can bring into range.
    """
    scale = largest / FLOAT8.largest
    if not scale <= FLOAT16.largest:
        raise CalibrationError(
            f"values of up to {largest:.4g} cannot be float8 with a float16 scale. Expected at "
            f"most {FLOAT8.largest * FLOAT16.largest:.3g}. Keep this layer in high precision."
        )
    return float(np.float16(max(scale, FLOAT16.normal)))


def float8_weight(weight: Floats, scale: Floats) -> NDArray[Any]:
    """Round (in, out) to nearest float8, finite, by one scale, as `float8_scale` gives it."""
    limit = FLOAT8.largest
    return rounded(np.clip(weight / scale, -limit, limit).astype(np.float32), FLOAT8)
