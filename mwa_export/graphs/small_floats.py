"""The floats below float32: their limits, their numpy types, and tensors rounded to them."""

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
    """A type of fewer bits than float32."""

    name: str  # for people, and at the end of the names of values that are cast
    kind: int  # in TensorProto
    numpy: str  # the name of its numpy type
    largest: float
    normal: float  # the least magnitude with all digits
    tiny: float  # the least above 0


FLOAT16 = SmallFloat("float16", TensorProto.FLOAT16, "float16", 65504.0, 2.0**-14, 2.0**-24)
BFLOAT16 = SmallFloat(
    "bfloat16", TensorProto.BFLOAT16, "bfloat16", 2.0**128 - 2.0**120, 2.0**-126, 2.0**-133
)
# E4M3 without infinities, the float8 that GPUs multiply.
FLOAT8 = SmallFloat("float8", TensorProto.FLOAT8E4M3FN, "float8_e4m3fn", 448.0, 2.0**-6, 2.0**-9)


def numpy_type(small: SmallFloat) -> np.dtype[Any]:
    """Its numpy type; for bfloat16 and float8 it comes with onnx.

    Raises:
        MissingPackageError: an onnx from before numpy had them.
    """
    found: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(small.kind)
    if found.name != small.numpy:
        raise MissingPackageError(
            f"onnx {onnx.__version__} cannot hold {small.name} weights. Run: pip install "
            '"onnx>=1.19"'
        )
    return found


def rounded(values: NDArray[np.float32], small: SmallFloat) -> NDArray[Any]:
    """The nearest values of a type; what is larger than all of them is not finite afterwards."""
    with np.errstate(over="ignore"):
        return values.astype(numpy_type(small))


def rounded_tensor(
    tensor: onnx.TensorProto, small: SmallFloat, *, scale: bool = False
) -> tuple[onnx.TensorProto, int]:
    """A float32 tensor in a smaller type, and how many of its values lose digits or become 0.

    ``scale``: whether it is what Q/DQ divide by, which must not become 0.

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
            f"{tensor.name}: scales between {exact.min():.3g} and {exact.max():.3g}. "
            f"{small.name.capitalize()} holds {small.tiny:.1g} to {small.largest:g}. Keep this "
            "layer in high precision."
        )
    values = rounded(exact, small)
    if not np.isfinite(values.astype(np.float32)).all():
        raise BundleError(
            f"{tensor.name}: has a value of magnitude {largest:.4g}, and {small.name} ends at "
            f"{small.largest:g}. Keep the nodes that read it in float32, use the float32 graph, or "
            "build engines in bfloat16, which has almost its range (`engine_precision=bfloat16`)."
        )
    lost = int(np.count_nonzero((sizes < small.normal) & (sizes > 0)))
    return numpy_helper.from_array(values, tensor.name), lost
