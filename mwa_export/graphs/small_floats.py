"""Float types smaller than float32: their limits, numpy types, and rounding of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mwa_export.errors import BundleError, CalibrationError, MissingPackageError


@dataclass(frozen=True, slots=True)
class SmallFloat:
    """A float type with fewer bits than float32."""

    name: str  # for messages, and as a suffix of the names of cast values
    kind: int  # in TensorProto
    numpy: str  # name of its numpy type
    largest: float  # largest finite number
    normal: float  # smallest normal number
    tiny: float  # smallest subnormal number


FLOAT16 = SmallFloat("float16", TensorProto.FLOAT16, "float16", 65504.0, 2.0**-14, 2.0**-24)
BFLOAT16 = SmallFloat(
    "bfloat16", TensorProto.BFLOAT16, "bfloat16", 2.0**128 - 2.0**120, 2.0**-126, 2.0**-133
)
# E4M3 without infinities, the float8 type of GPU GEMMs.
FLOAT8 = SmallFloat("float8", TensorProto.FLOAT8E4M3FN, "float8_e4m3fn", 448.0, 2.0**-6, 2.0**-9)


def numpy_type(small: SmallFloat) -> np.dtype[Any]:
    """Return the numpy type of a small float; onnx provides those of bfloat16 and float8.

    Raises:
        MissingPackageError: the installed onnx is too old to have them.
    """
    found: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(small.kind)
    if found.name != small.numpy:
        raise MissingPackageError(
            f"onnx {onnx.__version__} does not support {small.name} weights. Run: pip install "
            '"onnx>=1.19"'
        )
    return found


def rounded(values: NDArray[np.float32], small: SmallFloat) -> NDArray[Any]:
    """Round to the nearest values of a type. Values out of range become NaN or infinite."""
    with np.errstate(over="ignore"):
        return values.astype(numpy_type(small))


def rounded_tensor(
    tensor: onnx.TensorProto, small: SmallFloat, *, scale: bool = False
) -> tuple[onnx.TensorProto, int]:
    """Convert a float32 tensor to a smaller type.

    ``scale``: whether it is a scale of Q/DQ, which must not become 0.

    Returns:
        The tensor, and how many of its values underflow: they lose digits or become 0.

    Raises:
        BundleError: a value overflows.
        CalibrationError: a scale is too small or too large.
    """
    exact = numpy_helper.to_array(tensor)
    sizes = np.abs(exact)
    largest = float(sizes.max(initial=0.0))
    least = float(exact.min(initial=small.largest))
    if scale and not (largest <= small.largest and least >= small.tiny):
        raise CalibrationError(
            f"{tensor.name}: has scales from {exact.min():.3g} to {exact.max():.3g}. Expected "
            f"{small.tiny:.1g} to {small.largest:g}, the range of {small.name}. Keep this layer in "
            "high precision."
        )
    values = rounded(exact, small)
    if not np.isfinite(values.astype(np.float32)).all():
        raise BundleError(
            f"{tensor.name}: has a value of magnitude {largest:.4g}, but the largest {small.name} "
            f"is {small.largest:g}. Keep the nodes that read it in float32, use the float32 graph, "
            "or build engines in bfloat16, whose range is almost that of float32 "
            "(`engine_precision=bfloat16`)."
        )
    lost = int(np.count_nonzero((sizes < small.normal) & (sizes > 0)))
    return numpy_helper.from_array(values, tensor.name), lost
