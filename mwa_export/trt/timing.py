"""Compare engines of one tower: interleaved times after a warm-up, and layers."""

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
    """Times of one engine with one shape."""

    batch: int  # rows
    length: int | None  # tokens of each text; None: images
    milliseconds: tuple[float, ...]  # per run on the device, excluding copies; one per round
    called: tuple[float, ...]  # milliseconds per call, including copies; one per round

    @property
    def median_ms(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def rows_per_second(self) -> float:
        """Throughput on the device, excluding copies."""
        return 1000 * self.batch / self.median_ms


@dataclass(frozen=True, slots=True)
class Compared:
    """Measurements of one of the compared engines."""

    timing: Timing
    inspection: Inspection


def compare_engines(
    engines: Mapping[str, tuple[Bundle, Engine]], device: Device
) -> dict[str, Compared]:
    """Time engines of one tower, each of a bundle, with the optimum shape of the first engine.

    Raises:
        EngineError: an engine cannot be loaded or run.
        ProfileError: an engine was not built for that shape.
        DeviceMemoryError: the engines do not fit into the GPU's memory together.
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
    """Time engines of one tower, all of them in every round.

    Args:
        runners: engines by name.
        batches: SETS inputs of one shape, used in turn, so that no run finds its input in the
            caches.
        rounds: number of rounds that count.
        runs: runs of an engine in a round, whose mean is its time.
        warm_up: rounds before those that count.
        clock: returns the time in seconds.

    Raises:
        ProfileError: an engine was not built for these batches.
        EngineError: TensorRT cannot run an engine.
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
            loaded[name] = runner.load(batches[:SETS])  # the calls have overwritten the buffers
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
    """Random batches for `time_interleaved`: images, or texts of ``length`` tokens with EOS."""
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
    """Optimum number of rows of a profile, and of tokens in a text."""
    first = profile[0].opt
    return first[0], first[1] if len(first) == 2 else None
