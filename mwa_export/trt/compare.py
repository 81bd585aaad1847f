"""Engines of one tower side by side: how fast each is on this GPU, and what it is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mwa_export.bundle.bundle import Bundle
from mwa_export.trt.buffers import Gpu
from mwa_export.trt.device import Device, open_driver
from mwa_export.trt.engine import Engine, load_engine
from mwa_export.trt.install import load_tensorrt
from mwa_export.trt.layers import Inspection, read_inspection
from mwa_export.trt.log import Messages
from mwa_export.trt.run import EngineRunner
from mwa_export.trt.timing import Timing, batches_of, time_interleaved, usual_shape


@dataclass(frozen=True, slots=True)
class Compared:
    """One engine among others."""

    timing: Timing
    inspection: Inspection


def compare_engines(
    engines: Mapping[str, tuple[Bundle, Engine]], device: Device
) -> dict[str, Compared]:
    """Time engines of one tower in turns, at the shape that the first one is fastest at.

    Args:
        engines: by a name of the caller's, each with the bundle, or the folder, that holds it.
        device: the current GPU.

    Raises:
        EngineError: one cannot be loaded or refuses to run.
        ProfileError: one was not built for that shape.
        DeviceMemoryError: they do not fit into the GPU together.
    """
    bundle, first = next(iter(engines.values()))
    rows, length = usual_shape(first.profiles[0])
    batches = batches_of(bundle, first.tower, rows, length)
    trt = load_tensorrt()
    with _opened(engines, device) as runners:
        timings = time_interleaved(runners, batches)
        return {
            name: Compared(timings[name], read_inspection(runner.inspect(trt)))
            for name, runner in runners.items()
        }


@contextmanager
def _opened(
    engines: Mapping[str, tuple[Bundle, Engine]], device: Device
) -> Iterator[dict[str, EngineRunner]]:
    trt, gpu = load_tensorrt(), Gpu(open_driver(), device)
    kept = []  # a runtime must outlive its engine
    runners: dict[str, EngineRunner] = {}
    try:
        for name, (bundle, engine) in engines.items():
            messages = Messages()
            runtime, loaded = load_engine(trt, bundle, engine, device, messages)
            kept.append((runtime, loaded))
            spec = bundle.graph(engine.tower)[1].spec
            runners[name] = EngineRunner(trt, gpu, loaded, engine, spec, messages)
        yield runners
    finally:
        for runner in runners.values():
            runner.close()
        runners.clear()
        while kept:
            runtime, loaded = kept.pop()
            del loaded
            del runtime
        gpu.close()
