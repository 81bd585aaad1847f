"""Compare engines of one tower: times in turns, after a warm-up, on more than one batch; layers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import Engine, Profile
from mwa_export.inputs.preprocess import arrays_of
from mwa_export.inputs.tokenizer import BOS, EOS
from mwa_export.spec import Tower
from mwa_export.trt.device import Device
from mwa_export.trt.install import load_tensorrt
from mwa_export.trt.layers import Inspection, read_inspection
from mwa_export.trt.profiles import Arrays
from mwa_export.trt.run import SETS, EngineRunner, open_runners

WARM_UP, ROUNDS, RUNS = 3, 9, 10


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one engine at one shape."""

    batch: int  # rows
    length: int | None  # tokens of each text; None: images
    milliseconds: tuple[float, ...]  # per run, on the device without copies; one per round
    called: tuple[float, ...]  # milliseconds per call, copies included; one per round

    @property
    def median_ms(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def rows_per_second(self) -> float:
        """Throughput on the device, without copies."""
        return 1000 * self.batch / self.median_ms


@dataclass(frozen=True, slots=True)
class Compared:
    """Measurements of one of the engines."""

    timing: Timing
    inspection: Inspection


def compare_engines(
    engines: Mapping[str, tuple[Bundle, Engine]], device: Device
) -> dict[str, Compared]:
    """Time engines of one tower, each of a bundle or its folder, at the first one's optimum shape.

    Raises:
        EngineError: one cannot be loaded or refuses to run.
        ProfileError: one was not built for that shape.
        DeviceMemoryError: they do not fit into the GPU together.
    """
    bundle, first = next(iter(engines.values()))
    batches = batches_of(bundle, first.tower, *usual_shape(first.profiles[0]))
    with open_runners(load_tensorrt(), device, engines) as runners:
        timings = time_interleaved(runners, batches)
        return {
            name: Compared(timings[name], read_inspection(runner.loaded.inspect()))
            for name, runner in runners.items()
        }


def time_interleaved(
    runners: Mapping[str, EngineRunner],
    batches: Sequence[Arrays],
    *,
    rounds: int = ROUNDS,
    runs: int = RUNS,
    warm_up: int = WARM_UP,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time engines of the same tower, each in every round.

    Args:
        batches: inputs of one shape, SETS of them; runs take turns on them, so that no run finds
            its own input in the caches.
        runs: of a turn; its time is their mean.
        warm_up: turns of each engine that do not count.

    Raises:
        ProfileError: batches that an engine was not built for.
        EngineError: TensorRT refuses to run.
    """
    loaded = {name: runner.load(batches[:SETS]) for name, runner in runners.items()}
    device: dict[str, list[float]] = {name: [] for name in runners}
    called: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(warm_up + rounds):
        for name, runner in runners.items():
            taken = runner.milliseconds(loaded[name], runs)
            start = clock()
            for arrays in batches:
                runner.run(arrays)
            seconds = (clock() - start) / len(batches)
            loaded[name] = runner.load(batches[:SETS])  # the calls have used the buffers
            if turn >= warm_up:
                device[name].append(taken)
                called[name].append(1000 * seconds)
    rows = len(batches[0][0])
    first = batches[0][0]
    length = first.shape[1] if first.ndim == 2 else None
    return {
        name: Timing(rows, length, tuple(device[name]), tuple(called[name])) for name in runners
    }


def batches_of(bundle: Bundle, tower: Tower, rows: int, length: int | None = None) -> list[Arrays]:
    """Random batches for `time_interleaved`: pictures, or texts of so many tokens, EOS included."""
    rng, backbone = np.random.default_rng(0), bundle.manifest.model.backbone
    size = backbone.image_size
    if tower == "vision":
        pixels = rng.integers(0, 256, (SETS, rows, size, size, 3), dtype=np.uint8)
        return [arrays_of(bundle.describe(tower).spec, (batch,)) for batch in pixels]
    shape = (SETS, rows, length or backbone.max_text_length)
    ids = rng.integers(EOS + 1, backbone.vocab_size, shape)
    ids[..., 0], ids[..., -1] = BOS, EOS
    return [(tokens, np.zeros_like(tokens)) for tokens in ids]


def usual_shape(profile: Profile) -> tuple[int, int | None]:
    """Optimum rows of a profile, and tokens of a text."""
    first = profile[0].opt
    return first[0], first[1] if len(first) == 2 else None
