"""TensorRT engines as described in the manifest. Plain data, independent of TensorRT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mwa_export.bundle.quantization import HeldBackData, RecallFigures
from mwa_export.errors import ProfileError
from mwa_export.metrics.verdict import Decision
from mwa_export.spec import Tower

EnginePrecision = Literal["float16", "bfloat16", "int8", "float8"]
Compiler = Literal["tensorrt", "tensorrt-rtx"]
TENSORRT: Compiler = "tensorrt"
TENSORRT_RTX: Compiler = "tensorrt-rtx"  # builds without a GPU, for RTX cards
COMPILERS: dict[Compiler, str] = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT-RTX"}
"""Compiler -> its name in messages."""
ENGINES = "engines"  # the bundle's folder of engines
VERSION_COMPATIBLE, HARDWARE_COMPATIBLE = "version_compatible", "hardware_compatible"
REFIT = "refit"
FLOAT8_ATTENTION = "float8_attention"  # these four are possible Engine.flags
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes that an engine accepts for one input, and the shape that it is optimized for."""

    name: str  # of the input
    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        shapes = (self.min, self.opt, self.max)
        if len({len(shape) for shape in shapes}) != 1:
            raise ProfileError(
                f"{self.name}: the shapes {self.min}, {self.opt} and {self.max} differ in rank. "
                "Expected shapes of the same rank."
            )
        for axis, (low, usual, high) in enumerate(zip(*shapes, strict=True)):
            if not 0 <= low <= usual <= high:
                raise ProfileError(
                    f"{self.name}: axis {axis} has min {low}, opt {usual} and max {high}. Expected "
                    "0 <= min <= opt <= max."
                )


Profile = tuple[ShapeRange, ...]
"""Shape ranges of all inputs of a tower."""


@dataclass(frozen=True, slots=True)
class RunTime:
    """GPU time of one run, without copies."""

    batch: int  # rows
    length: int | None  # tokens of each text; None: images
    run: float  # milliseconds


@dataclass(frozen=True, slots=True)
class MeasuredEngines:
    """Recall and speed of a pair of engines, compared with float32."""

    decision: Decision  # whether recall stays within the budget
    max_recall_drop: float  # the budget
    mean_cosine: Mapping[Tower, float]
    recall: RecallFigures
    held_back: HeldBackData | None
    milliseconds: Mapping[Tower, RunTime]


@dataclass(frozen=True, slots=True)
class Engine:
    """One TensorRT engine."""

    file: str  # relative to the bundle
    sha256: str
    tower: Tower
    precision: EnginePrecision
    tensorrt: str  # version of the compiler that built it
    gpu: str  # name of the GPU it was built on; "": built by TensorRT-RTX without a GPU
    capability: tuple[int, int]  # compute capability of that GPU, or lowest of ``capabilities``
    profiles: tuple[Profile, ...]
    sources: tuple[str, ...]  # sha256 of the bundle's files that it was built from
    graph: str  # sha256 of the compiled graph, which is 16-bit or has Q/DQ
    flags: tuple[str, ...]  # build options that matter later
    seconds: float  # build time
    measured: MeasuredEngines | None = None
    float32: tuple[str, ...] | None = None  # float32 nodes of a 16-bit graph; None: not recorded
    # Compute capabilities that TensorRT-RTX built it for; None: built by TensorRT for ``gpu``
    capabilities: tuple[tuple[int, int], ...] | None = None

    @property
    def compiler(self) -> Compiler:
        """Compiler that built the engine and is needed to run it."""
        return TENSORRT if self.capabilities is None else TENSORRT_RTX

    @property
    def made_by(self) -> str:
        """Compiler, version and target, for messages."""
        cards = ", ".join(map(dotted, self.capabilities or ()))
        for_ = self.gpu or f"compute capability {cards}"
        return f"{COMPILERS[self.compiler]} {self.tensorrt} for {for_}"


def dotted(capability: tuple[int, int]) -> str:
    """Format a compute capability like NVIDIA: "8.9"."""
    return f"{capability[0]}.{capability[1]}"


def with_engines(old: Iterable[Engine], new: Iterable[Engine]) -> tuple[Engine, ...]:
    """Combine two lists of engines; new engines replace old ones with the same file."""
    added = tuple(new)
    files = {engine.file for engine in added}
    return (*(engine for engine in old if engine.file not in files), *added)
