"""Weights as int8 or float8, rounded to nearest. Knows nothing about graphs.

A weight is (in, out) with w = scale * q. In int8, each output channel has a scale, and q is from
-127 to 127 (a symmetric grid without -128). In float8, the whole weight has one scale.
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
# A column of zeros is exact with any scale. This one is a normal number in float16 too, so that no
# runtime divides by 0 or by a subnormal.
_SCALE_OF_ZEROS = np.float32(1 / LARGEST)


def weight_scales(weight: Floats) -> Floats:
    """Scale of each output channel, (in, out) -> (out,): its largest magnitude / 127.

    Raises:
        CalibrationError: a weight is not finite.
    """
    largest = np.abs(weight).max(axis=0)  # (out,)
    bad = np.flatnonzero(~np.isfinite(largest))
    if len(bad):
        raise CalibrationError(
            f"{len(bad)} of {len(largest)} output channels have weights that are not finite, the "
            f"first is channel {bad[0]}. Expected finite weights. Check the checkpoint."
        )
    full = (largest / LARGEST).astype(np.float32)
    scales: Floats = np.where(full >= np.finfo(np.float32).tiny, full, _SCALE_OF_ZEROS)
    return scales


def quantize_weight(weight: Floats, scales: Floats) -> NDArray[np.int8]:
    """Round (in, out) to nearest with positive scales (out,). Returns int8 from -127 to 127."""
    levels: NDArray[np.int8] = np.clip(np.rint(weight / scales), -LARGEST, LARGEST).astype(np.int8)
    return levels


def common_scale(scales: Floats, levels: NDArray[np.int8], amax: float) -> tuple[Floats, Floats]:
    """Split per-column scales into one common scale and a factor per column.

    The common scale is a power of two close to those of the columns. It is small enough for the
    scaled sums to fit float16 with any activations: they are at most ``amax`` times the largest sum
    of magnitudes in a column, times the scale.

    Args:
        scales: (out,) of the columns.
        levels: (in, out) quantized weights.
        amax: largest magnitude that the grid of the activations represents.

    Returns:
        The scale, of shape (), and the factors, (out,), both float32; their product is ``scales``.
    """
    usual = float(np.exp(np.log(scales.astype(np.float64)).mean()))
    most = amax * float(np.abs(levels.astype(np.int32)).sum(axis=0).max(initial=1))
    exponent = min(math.log2(usual), math.log2(LIMIT / most))
    scale = np.float32(2.0 ** max(math.floor(exponent), round(math.log2(FLOAT16.tiny))))
    return np.asarray(scale, np.float32), (scales / scale).astype(np.float32)


def float8_scale(largest: float) -> float:
    """Scale that maps a magnitude to the largest float8 number, rounded to float16.

    It is never below the smallest normal float16. Smaller values do not need a smaller scale,
    because floating-point numbers keep their precision.

    Raises:
        CalibrationError: the magnitude is not finite, or too large for a float16 scale.
    """
    scale = largest / FLOAT8.largest
    if not scale <= FLOAT16.largest:
        raise CalibrationError(
            f"values of up to {largest:.4g} do not fit float8 with a float16 scale. Expected at "
            f"most {FLOAT8.largest * FLOAT16.largest:.3g}. Keep this layer in high precision."
        )
    return float(np.float16(max(scale, FLOAT16.normal)))


def float8_weight(weight: Floats, scale: Floats | np.float32) -> NDArray[Any]:
    """Round (in, out) to the nearest finite float8 with one scale, from `float8_scale`."""
    limit = FLOAT8.largest
    return rounded(np.clip(weight / scale, -limit, limit).astype(np.float32), FLOAT8)
