"""GPTQ: round weights so that the layer's output changes least (arXiv 2210.17323).

Rows of the weight are rounded one after the other, and later rows compensate as much of the earlier
error as they can. How much they can follows from the Gram matrix XᵀX of the layer's input.

The paper updates the remaining rows with the Cholesky factor of the inverse, XᵀX⁻¹ = UᵀU. Here the
triangular factor R = U⁻¹ of XᵀX = R Rᵀ is used directly, which gives the same rounding without an
inverse: the error is |Rᵀ D|² for the difference D between exact and rounded weights. As Rᵀ is lower
triangular, row i of Rᵀ D depends only on row i of D and the rows before it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mwa_export.calib.weights import LARGEST, quantize_weight
from mwa_export.errors import CalibrationError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_MOST_DAMPING = 10.0  # of the mean diagonal; beyond that, correlations have no effect


def learned_rounding(
    weight: Floats,
    scales: Floats,
    gram: NDArray[np.float32] | Doubles,
    *,
    damping: float = 0.01,
    block: int = 128,
) -> NDArray[np.int8]:
    """Round a weight so that the output for its inputs changes least.

    Args:
        weight: (in, out) float32.
        scales: (out,) positive, one grid per output channel.
        gram: (in, in) XᵀX of the inputs X, (tokens, in). Channels that were always 0 are rounded
            to nearest.
        damping: share of the mean diagonal that is added to the diagonal; a larger share trusts
            the samples less. It is raised tenfold until the matrix can be factorized.
        block: rows whose corrections are summed one by one; those of all rows before them are one
            matrix product.

    Returns:
        (in, out) int8 from -127 to 127. No column has a larger error than with rounding to nearest.

    Raises:
        CalibrationError: the Gram matrix is not finite, or far from positive semidefinite.
    """
    exact = gram.astype(np.float64)
    nearest = quantize_weight(weight, scales)
    # Rows that matter most are rounded first, while many rows are left to compensate.
    order = np.argsort(-np.diagonal(exact), kind="stable")
    factor = _factor(exact[np.ix_(order, order)], damping)
    learned = np.empty_like(nearest)
    learned[order] = _round_rows(weight[order], scales, factor, block)
    better = _errors(weight, learned, scales, exact) < _errors(weight, nearest, scales, exact)
    return np.where(better, learned, nearest)


def _errors(weight: Floats, quantized: NDArray[np.int8], scales: Floats, gram: Doubles) -> Doubles:
    """Squared error of each output channel, (out,)."""
    difference = weight - quantized * scales.astype(np.float64)
    return np.asarray(np.einsum("io,io->o", difference, gram @ difference))


def _factor(gram: Doubles, damping: float) -> Doubles:
    """Factorize the damped matrix as R Rᵀ. Returns R, upper triangular, (in, in)."""
    diagonal = np.diagonal(gram)
    if not (np.isfinite(gram).all() and (diagonal >= 0).all()):
        raise CalibrationError(
            "the Gram matrix of the activations is not finite, or has a negative diagonal. "
            "Calibrate again."
        )
    live = diagonal > 0
    mean = float(diagonal[live].mean()) if live.any() else 1.0
    share = damping
    while True:
        # The row of a channel that was always 0 is zero; any positive diagonal leaves it alone.
        damped = gram + np.diag(np.where(live, share * mean, mean))
        try:
            # numpy factorizes into lower times upper; reversing all axes gives upper times lower.
            return np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError:
            share = max(10 * share, 1e-6)
        if share > _MOST_DAMPING:
            raise CalibrationError(
                "the Gram matrix of the activations is not positive semidefinite, even with "
                f"{share / 10:g} of the mean diagonal added. Calibrate again."
            )


def _round_rows(weight: Floats, scales: Floats, factor: Doubles, block: int) -> NDArray[np.int8]:
    """Round row by row; ``weight`` and ``factor`` are in that order.

    Row i of RᵀD is R_ii times (d_i + the sum of R_ji / R_ii * d_j over the rows j before it), so
    row i has to compensate that sum.
    """
    shares = factor / np.diagonal(factor)  # column i divided by R_ii
    quantized = np.empty(weight.shape, np.int8)
    difference = np.empty(weight.shape, np.float64)
    for start in range(0, len(weight), block):
        stop = min(start + block, len(weight))
        before = shares[:start, start:stop].T @ difference[:start]  # (block, out)
        for row in range(start, stop):
            inside = shares[start:row, row] @ difference[start:row]  # (out,)
            wanted = (weight[row] + before[row - start] + inside).astype(np.float32)
            # In float32 like `quantize_weight`, so that results agree if there are no correlations.
            levels = np.clip(np.rint(wanted / scales), -LARGEST, LARGEST)
            quantized[row] = levels
            difference[row] = weight[row] - levels * scales.astype(np.float64)
    return quantized
