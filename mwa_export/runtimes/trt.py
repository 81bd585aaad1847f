"""TensorRT backend: runs the engines of a bundle on the GPU of this machine. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import COMPILERS, FLOAT8_ATTENTION, Engine, EnginePrecision
from mwa_export.bundle.manifest import GraphFile
from mwa_export.errors import EngineError
from mwa_export.inputs.preprocess import arrays_of
from mwa_export.runtimes.backend import (
    BFLOAT16_COSINE,
    OneAtATime,
    check_conformance,
    measured_cosine,
)
from mwa_export.spec import Embeddings, Tower
from mwa_export.trt.engine import usable_engines
from mwa_export.trt.install import engine_host, find_tensorrt
from mwa_export.trt.run import EngineRunner, open_runners

# Least cosine of 8-bit engines if quantize measured none. It only rules out garbage.
LEAST_8_BITS = 0.9
_16_BITS = ("float16", "bfloat16")


class TensorRtBackend:
    """Runs the engines of both towers on a GPU. One caller at a time; `close` releases memory."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: EnginePrecision = "float16",
        engines: Sequence[Engine] = (),
        device: int = 0,
        graphs: bool = True,
        check: bool = True,
    ) -> None:
        """Load both towers' engines.

        Args:
            bundle: contains the engines.
            precision: of the engines; the newest of that precision are loaded.
            engines: engines of one precision to load instead.
            device: number of the GPU.
            graphs: record repeated shapes as CUDA graphs, which saves CPU time.
            check: check that the conformance vectors are reproduced.

        Raises:
            MissingPackageError: TensorRT is not installed.
            RuntimeUnavailableError: no GPU, a driver that is too old, or too little memory.
            EngineError: the bundle has no engine for this machine, or one cannot be loaded.
            BundleError: an engine is not the file that the manifest describes.
            VerificationError: results of the engines differ from the reference.
        """
        self.image_size = bundle.manifest.model.backbone.image_size
        chosen = engines or _newest(bundle, precision, device)
        tensorrt, self.device = find_tensorrt(device, chosen[0].compiler)
        self.engines: dict[Tower, Engine] = {engine.tower: engine for engine in chosen}
        self.precision = chosen[0].precision
        floats = {tower: bundle.describe(tower) for tower in bundle.manifest.towers}
        self.graphs: dict[Tower, GraphFile] = {}
        for tower, engine in self.engines.items():
            graph = replace(floats[tower], file=engine.file, precision=engine.precision)
            self.graphs[tower] = bundle.path / engine.file, replace(graph, dialect="tensorrt")
        self._one = OneAtATime()  # a runner has one set of buffers
        held = {tower: (bundle, engine) for tower, engine in self.engines.items()}
        with ExitStack() as stack:
            self.runners: dict[Tower, EngineRunner] = stack.enter_context(
                open_runners(tensorrt, self.device, held, graphs=graphs)
            )
            if check:
                self.check(bundle)
            self._opened = stack.pop_all()

    def check(self, bundle: Bundle) -> None:
        """Check that a bundle's conformance vectors are reproduced, as far as texts fit the engine.

        Raises:
            VerificationError: results of the engines differ from the reference.
        """
        longest = None
        if "text" in self.engines:
            profiles = self.engines["text"].profiles
            longest = max(entry.max[1] for profile in profiles for entry in profile)
        least = {tower: least_cosine_of(bundle, e) for tower, e in self.engines.items()}
        check_conformance(self, bundle, towers=[*self.engines], least=least, longest=longest)

    @property
    def name(self) -> str:
        compiler = COMPILERS[next(iter(self.engines.values())).compiler]
        return f"{compiler} {self.precision} on {self.device.name}"

    @property
    def cuda_graphs(self) -> bool:
        """Whether CUDA graphs are used; also False if the driver cannot record one."""
        return all(runner.graphs for runner in self.runners.values())

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        spec = self.graphs["vision"][1].spec
        arrays = arrays_of(spec, (pixels,))
        with self._one:
            return self.runners["vision"].run(arrays)

    def embed_texts(
        self, token_ids: NDArray[np.int64], padding_mask: NDArray[np.int64]
    ) -> Embeddings:
        with self._one:
            return self.runners["text"].run((token_ids, padding_mask))

    def probe(self, tower: Tower) -> None:
        """Return None: TensorRT fuses blocks and cannot return their outputs."""

    def close(self) -> None:
        """Release the engines and their memory on the GPU."""
        self._opened.close()
        self.runners.clear()

    def __enter__(self) -> TensorRtBackend:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _newest(bundle: Bundle, precision: EnginePrecision, device: int) -> tuple[Engine, ...]:
    host = engine_host(device)
    if host.device is None:
        find_tensorrt(device)  # raises an error about what is missing
    found, reasons = usable_engines(bundle.manifest, precision, host, str(bundle.path))
    if reasons:
        raise EngineError(" ".join(reasons))
    return found


def least_cosine_of(bundle: Bundle, engine: Engine) -> float:
    """Least cosine with the conformance vectors that an engine must reach."""
    usual = BFLOAT16_COSINE if engine.precision in _16_BITS else LEAST_8_BITS
    if FLOAT8_ATTENTION in engine.flags:  # no graph of `quantize` has it
        return usual
    measured = measured_cosine(bundle, engine.tower, engine.precision)
    return usual if measured is None else measured
