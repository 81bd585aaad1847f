"""Options that decide which engines are built, and checks of what they require."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import FLOAT8_ATTENTION, EnginePrecision
from mwa_export.calib.samples import Samples, take_samples
from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.open import open_bundle
from mwa_export.engines.graphs import CALIBRATED, needs_calibration
from mwa_export.errors import UsageError, check_option
from mwa_export.spec import TOWERS
from mwa_export.trt.build import BuildOptions
from mwa_export.trt.profiles import Span
from mwa_export.trt.versions import TensorRt

BATCH = Span(1, 32, 128)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of `build_engines`."""

    precision: EnginePrecision = "float16"
    batches: tuple[Span, ...] = (BATCH,)  # one profile per range
    lengths: Span | None = None  # of texts; None: all lengths of the model
    device: int = 0
    build: BuildOptions = field(default_factory=BuildOptions)
    rebuild: bool = False  # also build engines that the bundle already has
    samples: int = 64  # images and captions to measure value ranges on
    seed: int = 0
    speed_gate: bool = True  # compare the speed of 8-bit engines with float16
    allow_slow: bool = False  # keep 8-bit engines that are slower than float16
    capabilities: tuple[tuple[int, int], ...] = ()  # of RTX cards, for TensorRT-RTX; else empty
    float8_attention: bool = False  # also attention in float8, with int8 or float8 layers

    def __post_init__(self) -> None:
        if self.float8_attention and self.precision not in CALIBRATED:
            raise UsageError(
                "`float8_attention`: applies to 8-bit engines only, `engine_precision=int8` or "
                "`engine_precision=float8`."
            )
        check_option("samples", self.samples, self.samples >= 1, "at least 1")
        check_option("seed", self.seed, self.seed >= 0, "at least 0")
        # Sorted and without duplicates, so that equal cards give equal engines.
        object.__setattr__(self, "capabilities", tuple(sorted(set(self.capabilities))))
        pairs = all(isinstance(c, tuple) and len(c) == 2 for c in self.capabilities)
        check_option("capabilities", self.capabilities, pairs, "pairs of numbers: ((8, 6), (8, 9))")
        if self.capabilities and (self.build.flags or self.build.timing_cache):
            names = [*self.build.flags, *(["timing_cache"] if self.build.timing_cache else [])]
            raise UsageError(
                f"`{names[0]}`: not supported by TensorRT-RTX, which builds for the given compute "
                "capabilities and selects kernels on the card. Omit the option."
            )

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags that the manifest records for these engines."""
        return (*self.build.flags, *((FLOAT8_ATTENTION,) if self.float8_attention else ()))

    @property
    def words(self) -> str:
        """Options that select these engines, for messages."""
        cards = ",".join(f"{major}{minor}" for major, minor in self.capabilities)
        attention = " `float8_attention`" if self.float8_attention else ""
        rtx = f" `rtx` `capabilities={cards}`" if cards else ""
        return f"`engine_precision={self.precision}`{attention}{rtx}"

    def check_gpu(self, tensorrt: TensorRt, capability: tuple[int, int], gpu: str) -> None:
        """Raise UsageError if a TensorRT or a GPU does not support these engines' precision."""
        tensorrt.check_precision(self.precision, capability, gpu)
        if self.float8_attention:
            instead = "Omit the option"
            option = "`float8_attention`"
            tensorrt.check_precision("float8", capability, gpu, option=option, instead=instead)

    def check_bundle(self, bundle: Bundle, data: RetrievalData | None) -> None:
        """Raise BundleError or CalibrationError if a bundle lacks what these engines need."""
        if self.precision in CALIBRATED:
            bundle.require(*TOWERS, what="calibration")
            needs_calibration(bundle)
        if data is not None:
            bundle.require(*TOWERS, what="measuring engines")

    def draw(self, path: str | os.PathLike[str], data: RetrievalData | None) -> Samples | None:
        """Draw samples to measure value ranges on; None: there is nothing to measure."""
        if data is None or self.precision == "bfloat16":
            return None
        return take_samples(open_bundle(path), data, self.samples, self.seed)
