"""Dialects: the forms of quantized graphs that the runtimes expect, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from mwa_export.cpu import fast_int8, instruction_sets
from mwa_export.errors import check_option


@dataclass(frozen=True, slots=True)
class Dialect:
    """Number formats and placement of Q/DQ that a runtime expects."""

    name: str
    runtime: str  # for display
    activation: Literal["uint8", "int8", "float8"]  # weights are int8, or float8 with float8
    zero_point: int  # of activations; the grid is symmetric in any case
    # Cut a GEMM whose output is split into one GEMM per part, so that what follows (GELU) can be
    # fused into each. Other runtimes are faster with one large GEMM.
    cut_joint: bool = False
    # Weights have a single scale, and the columns of the product are multiplied by factors after
    # it. With per-column scales, TensorRT keeps the sums of int8 products as float16, which
    # overflows, and dequantizes joint GEMMs that it cuts (`benchmarks/trt_kernels.py`).
    column_factors: bool = False
    typed: bool = False  # strongly typed: everything else is float16, including scales
    opset: int = 17

    @property
    def suffix(self) -> str:
        """Part of the file name, as in `vision.int8.openvino.onnx`."""
        return f"int8.{self.name}"

    @property
    def for_tensorrt(self) -> bool:
        """Whether TensorRT reads it."""
        return self.name.startswith("tensorrt")


DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        # Its kernels multiply uint8 by int8; shifting the grid by 128 avoids a slower path.
        Dialect("onnxruntime", "ONNX Runtime on CPU", "uint8", 128),
        Dialect("openvino", "OpenVINO", "int8", 0, cut_joint=True),
        Dialect(
            "tensorrt", "TensorRT 10 and 11", "int8", 0, column_factors=True, typed=True, opset=19
        ),
        Dialect("tensorrt8", "TensorRT 8.6", "int8", 0),
    )
}
"""Dialects of the INT8 graphs that bundles contain, by name."""
FLOAT8 = Dialect("tensorrt-float8", "TensorRT 10 and 11", "float8", 0, typed=True, opset=19)
"""Dialect of float8 graphs, from which engines are compiled; bundles do not contain them."""
CPU_DIALECTS = ("openvino", "onnxruntime")
"""Dialects of CPUs and names of their packages, fastest first on CPUs with INT8 instructions."""


def named_dialects(names: Sequence[str]) -> tuple[Dialect, ...]:
    """Return the named dialects; if none are named, those of the installed CPU runtimes."""
    if "all" in names:
        names = tuple(DIALECTS)
    if not names:
        names = tuple(name for name in CPU_DIALECTS if find_spec(name) is not None)
    for name in names:
        check_option("dialects", name, name in DIALECTS, ", ".join((*DIALECTS, "all")))
    return tuple(DIALECTS[name] for name in dict.fromkeys(names))


def primary_dialect(dialects: Sequence[Dialect]) -> Dialect:
    """Return the dialect that the search measures: of the fastest CPU runtime among these."""
    named = {dialect.name for dialect in dialects}
    # Without INT8 instructions, OpenVINO is slow at INT8 and less exact.
    slow = fast_int8(instruction_sets()) is False
    for name in reversed(CPU_DIALECTS) if slow else CPU_DIALECTS:
        if name in named and find_spec(name) is not None:
            return DIALECTS[name]
    return DIALECTS["onnxruntime"]
