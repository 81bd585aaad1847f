"""Refuse 8-bit engines that are slower than float16: they would cost recall for nothing."""

from __future__ import annotations

from dataclasses import dataclass

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import Engine
from mwa_export.errors import EngineError
from mwa_export.trt.device import Device
from mwa_export.trt.timing import Compared, compare_engines

GATED = ("int8", "float8")
"""Precisions whose engines are compared with float16."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of an engine, compared with the float16 engine of its tower."""

    engine: Engine
    ours: Compared
    float16: Compared

    @property
    def ratio(self) -> float:
        """Speed relative to float16, without copies."""
        return self.float16.timing.median_ms / self.ours.timing.median_ms

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        timing = self.ours.timing
        of = f"{timing.batch} x {timing.length} tokens" if timing.length else f"{timing.batch} rows"
        return (
            f"{self.engine.tower} tower: {self.engine.precision} runs {self.ratio:.2f}x as fast "
            f"as float16 ({timing.median_ms:.2f} and {self.float16.timing.median_ms:.2f} ms for "
            f"{of}, without copies)"
        )

    @property
    def reasons(self) -> str:
        """Possible causes that the inspector found, in words; "" if none."""
        return "; ".join(self.ours.inspection.reasons(self.engine.precision))


def measure_speed(
    ours: tuple[Bundle, Engine], float16: tuple[Bundle, Engine], device: Device
) -> Speed:
    """Time an engine and the float16 engine of its tower, in turns.

    Raises:
        EngineError, ProfileError, DeviceMemoryError: see `compare_engines`.
    """
    found = compare_engines({"ours": ours, "float16": float16}, device)
    return Speed(ours[1], found["ours"], found["float16"])


def check_speed(speed: Speed) -> None:
    """Raise EngineError if an engine is slower than float16, with possible causes."""
    if speed.ratio >= 1:
        return
    why = f" In the engine: {speed.reasons}." if speed.reasons else ""
    raise EngineError(
        f"{speed.sentence}, so the engine is not added.{why} Build with "
        "`engine_precision=float16`, or `best`, which keeps the fastest; "
        f"`engine_precision={speed.engine.precision}` with `allow_slow` adds it nevertheless, and "
        "`no_speed_gate` does not measure."
    )
