"""Speed of an 8-bit engine compared with float16, in sentences."""

from __future__ import annotations

from dataclasses import dataclass

from mwa_export.bundle.engine import Engine
from mwa_export.trt.timing import Compared


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of an engine, compared with the float16 engine of its tower."""

    engine: Engine
    ours: Compared
    float16: Compared
    products: tuple[str, ...]  # nodes of the graph that should compute in 8 bits

    @property
    def ratio(self) -> float:
        """Speed relative to float16, excluding copies."""
        return self.float16.timing.median_ms / self.ours.timing.median_ms

    @property
    def sentence(self) -> str:
        """The comparison as a sentence."""
        timing = self.ours.timing
        of = f"{timing.batch} x {timing.length} tokens" if timing.length else f"{timing.batch} rows"
        return (
            f"{self.engine.tower} tower: {self.engine.precision} runs {self.ratio:.2f}x as fast "
            f"as float16 ({timing.median_ms:.2f} and {self.float16.timing.median_ms:.2f} ms for "
            f"{of}, excluding copies)"
        )

    @property
    def reasons(self) -> str:
        """Possible causes found by the engine inspector; "" if there are none."""
        return "; ".join(self.ours.inspection.reasons(self.engine.precision, self.products))


def too_slow(speed: Speed) -> str:
    """Message for an engine that is slower than float16, and would cost recall for nothing."""
    why = f" In the engine: {speed.reasons}." if speed.reasons else ""
    return (
        f"{speed.sentence}, so the engine is not added.{why} Build with "
        "`engine_precision=float16`, or with `best`, which keeps the fastest. To add it anyway, "
        f"use `engine_precision={speed.engine.precision}` with `allow_slow`; to skip the "
        "measurement, `no_speed_gate`."
    )
