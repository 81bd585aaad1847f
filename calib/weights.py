"""Weights as int8, one scale per output channel, rounded to nearest. Knows nothing about graphs.

A weight is (in, out), w = scale * q, q from -127 to 127. The grid is symmetric: -128 is not used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import CalibrationError

Floats = NDArray[np.float32]

LARGEST = 127
# A column of zeros is exact with any scale. This one is an ordinary number in float16 as well, so
# that no runtime divides by 0 or by a subnormal.
_SCALE_OF_ZEROS = np.float32(1 / LARGEST)
_SHRINK = np.linspace(0.99, 0.8, 20)  # of the largest weight, tried in the search


def weight_scales(weight: Floats, *, search: bool = False) -> Floats:
    """The scale of each output channel.

    Args:
        weight: (in, out), finite.
        search: also try grids that clip the largest weights of a channel, down to 0.8 of the
            largest, and take what makes the least squared error of the channel's weights.

    Returns:
        (out,) positive; largest magnitude / 127 without ``search``.

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
    if not search:
        return scales
    best: Floats = scales.copy()
    least = _squared_error(weight, scales)
    for ratio in _SHRINK:
        tried = np.maximum(scales * np.float32(ratio), np.finfo(np.float32).tiny)
        error = _squared_error(weight, tried)
        best[error < least] = tried[error < least]
        least = np.minimum(error, least)
    return best


def quantize_weight(weight: Floats, scales: Floats) -> NDArray[np.int8]:
    """Round to nearest.

    Args:
        weight: (in, out).
        scales: (out,) positive.

    Returns:
        (in, out), from -127 to 127.
    """
    levels: NDArray[np.int8] = np.clip(np.rint(weight / scales), -LARGEST, LARGEST).astype(np.int8)
    return levels


def _squared_error(weight: Floats, scales: Floats) -> NDArray[np.float64]:
    """(out,) of rounding to nearest."""
    difference = weight - quantize_weight(weight, scales) * scales
    return np.asarray(np.square(difference, dtype=np.float64).sum(axis=0))
