"""Forms in which the runtimes want a quantized graph, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from mwa_export.cpu import fast_int8, instruction_sets
from mwa_export.errors import check_option


@dataclass(frozen=True, slots=True)
class Dialect:
    """Number formats and placement of Q/DQ that a runtime wants."""

    name: str
    runtime: str  # for people
    activation: Literal["uint8", "int8", "float8"]  # float8: weights as well; else they are int8
    zero_point: int  # of activations; the grid is symmetric in either case
    # GEMMs whose outputs go different ways are cut apart, so that what follows (GELU) can be fused
    # into each; elsewhere one large GEMM is better.
    cut_joint: bool = False
    # Weights have one scale in all, and the product's columns are multiplied behind it. With a
    # scale for each column TensorRT keeps the bare sums of int8 products as float16, which they
    # overflow, and dequantizes joint GEMMs that it cuts (`benchmarks/trt_kernels.py`).
    column_factors: bool = False
    typed: bool = False  # strongly typed: everything else in float16, scales too
    opset: int = 17

    @property
    def suffix(self) -> str:
        """Part of the file's name: `vision.int8.openvino.onnx`."""
        return f"int8.{self.name}"

    @property
    def for_tensorrt(self) -> bool:
        """Whether TensorRT reads it."""
        return self.name.startswith("tensorrt")


DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        # Its kernels multiply uint8 by int8; the same grid shifted by 128 avoids a slower path.
        Dialect("onnxruntime", "ONNX Runtime on CPU", "uint8", 128),
        Dialect("openvino", "OpenVINO", "int8", 0, cut_joint=True),
        Dialect(
            "tensorrt", "TensorRT 10 and 11", "int8", 0, column_factors=True, typed=True, opset=19
        ),
        Dialect("tensorrt8", "TensorRT 8.6", "int8", 0),
    )
}
"""Those of INT8 graphs, which bundles hold."""
FLOAT8 = Dialect("tensorrt-float8", "TensorRT 10 and 11", "float8", 0, typed=True, opset=19)
"""Engines are compiled from it; no bundle holds it."""
CPU_DIALECTS = ("openvino", "onnxruntime")
"""Those of CPUs, the fastest first where there are INT8 instructions. Packages have these names."""


def named_dialects(names: Sequence[str]) -> tuple[Dialect, ...]:
    """The dialects asked for, or those of the CPU runtimes that are installed."""
    if "all" in names:
        names = tuple(DIALECTS)
    if not names:
        names = tuple(name for name in CPU_DIALECTS if find_spec(name) is not None)
    for name in names:
        check_option("dialects", name, name in DIALECTS, ", ".join((*DIALECTS, "all")))
    return tuple(DIALECTS[name] for name in dict.fromkeys(names))


def primary_dialect(dialects: Sequence[Dialect]) -> Dialect:
    """The dialect that the search measures: of the fastest runtime here that was asked for."""
    named = {dialect.name for dialect in dialects}
    # Without INT8 instructions OpenVINO is slow at it, and less exact.
    slow = fast_int8(instruction_sets()) is False
    for name in reversed(CPU_DIALECTS) if slow else CPU_DIALECTS:
        if name in named and find_spec(name) is not None:
            return DIALECTS[name]
    return DIALECTS["onnxruntime"]
