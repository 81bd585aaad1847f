"""Compare engines of one tower: speed on this GPU, and layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import Engine
from mwa_export.trt.device import Device
from mwa_export.trt.install import load_tensorrt
from mwa_export.trt.layers import Inspection, read_inspection
from mwa_export.trt.run import open_runners
from mwa_export.trt.timing import Timing, batches_of, time_interleaved, usual_shape


@dataclass(frozen=True, slots=True)
class Compared:
    """Measurements of one of the engines."""

    timing: Timing
    inspection: Inspection


def compare_engines(
    engines: Mapping[str, tuple[Bundle, Engine]], device: Device
) -> dict[str, Compared]:
    """Time engines of one tower in turns, at the optimum shape of the first one.

    Args:
        engines: by a name of the caller's, each with the bundle, or the folder, that holds it.

    Raises:
        EngineError: one cannot be loaded or refuses to run.
        ProfileError: one was not built for that shape.
        DeviceMemoryError: they do not fit into the GPU together.
    """
    bundle, first = next(iter(engines.values()))
    rows, length = usual_shape(first.profiles[0])
    batches = batches_of(bundle, first.tower, rows, length)
    with open_runners(load_tensorrt(), device, engines) as runners:
        timings = time_interleaved(runners, batches)
        return {
            name: Compared(timings[name], read_inspection(runner.inspect()))
            for name, runner in runners.items()
        }
