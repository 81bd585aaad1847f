"""Speed of an engine of 8 bits beside float16, in words."""

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
    products: tuple[str, ...]  # of the graph, that should compute in 8 bits

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
        return "; ".join(self.ours.inspection.reasons(self.engine.precision, self.products))


def too_slow(speed: Speed) -> str:
    """Why an engine that is slower than float16 is refused: it would cost recall for nothing."""
    why = f" In the engine: {speed.reasons}." if speed.reasons else ""
    return (
        f"{speed.sentence}, so the engine is not added.{why} Build with "
        "`engine_precision=float16`, or `best`, which keeps the fastest; "
        f"`engine_precision={speed.engine.precision}` with `allow_slow` adds it nevertheless, and "
        "`no_speed_gate` does not measure."
    )
