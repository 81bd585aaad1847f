"""OpenVINO on CPU, behind the Backend interface."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import GraphFile
from mwa_export.cpu import cores
from mwa_export.errors import BundleError
from mwa_export.inputs.preprocess import arrays_of
from mwa_export.optional import require
from mwa_export.runtimes.backend import OneAtATime, check_graphs
from mwa_export.spec import Embeddings, Tower

HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""Name of a precision -> OpenVINO's name."""


class OpenVinoBackend:
    """Runs the graphs of both towers on OpenVINO. One caller at a time.

    A batch is cut into one part per thread, and the parts run in parallel. Threads do not wait for
    each other inside an operator, and the activations of a part stay in its core's cache.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        graphs: Mapping[Tower, GraphFile] | None = None,
        threads: int | None = None,
        precision: str = "float32",
        check: bool = True,
    ) -> None:
        """Open both towers.

        Args:
            graphs: a graph per tower; float32 for a tower without one.
            threads: total number; None uses all cores available to the process.
            precision: of everything that is not INT8, "float32" or "bfloat16".
            check: check that the conformance vectors are reproduced.

        Raises:
            MissingPackageError: OpenVINO is not installed.
            BundleError: a graph is missing or cannot be loaded.
            VerificationError: results on this machine differ from the reference.
        """
        self.image_size = bundle.manifest.model.backbone.image_size
        self.graphs: dict[Tower, GraphFile] = {
            tower: (graphs or {}).get(tower) or bundle.graph(tower)
            for tower in bundle.manifest.towers
        }
        self.rest = precision
        threads = threads or cores()
        options = {
            # Always set, because OpenVINO's default is bfloat16 on CPUs that support it.
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "NUM_STREAMS": str(threads),
            "INFERENCE_NUM_THREADS": str(threads),
        }
        self._one = OneAtATime()  # a request overwrites its output in the next call
        self._requests = {
            tower: _requests(path, options, threads)
            for tower, (path, _graph) in self.graphs.items()
        }
        if check:
            check_graphs(self, bundle, bfloat16=precision == "bfloat16")

    @property
    def precision(self) -> str:
        """Precision of the graphs, and of what is not INT8 in them, such as "int8+bfloat16"."""
        kinds = dict.fromkeys(graph.precision for _path, graph in self.graphs.values())
        names = [self.rest if k == "float32" else f"{k}+{self.rest}" for k in kinds]
        return ", ".join(names)

    @property
    def name(self) -> str:
        return f"OpenVINO {self.precision}"

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        return self._run("vision", (pixels,))

    def embed_texts(
        self, token_ids: NDArray[np.int64], padding_mask: NDArray[np.int64]
    ) -> Embeddings:
        return self._run("text", (token_ids, padding_mask))

    def probe(self, tower: Tower) -> None:
        """Return None: OpenVINO fuses blocks and cannot return their outputs."""

    def _run(self, tower: Tower, inputs: tuple[NDArray[Any], ...]) -> Embeddings:
        requests, spec = self._requests[tower], self.graphs[tower][1].spec
        names, arrays = [port.name for port in spec.inputs], arrays_of(spec, inputs)
        parts = min(len(requests), len(arrays[0]))
        feeds = zip(*(np.array_split(array, parts) for array in arrays), strict=True)
        busy = requests[:parts]
        with self._one:
            for request, feed in zip(busy, feeds, strict=True):
                request.start_async(dict(zip(names, feed, strict=True)))
            for request in busy:
                request.wait()
            # np.concatenate copies, so that the next call cannot overwrite the results.
            outputs = [np.asarray(r.get_output_tensor().data, np.float32) for r in busy]
            return np.concatenate(outputs)


class _SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """Restore this thread's alternate signal stack.

    OpenVINO sets one for AMX and frees it with the model, so that the next Ctrl-C would cause a
    segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


def _requests(path: Path, options: Mapping[str, str], count: int) -> Sequence[Any]:
    openvino = require("openvino")
    try:
        core = openvino.Core()
        model = core.read_model(str(path))
        with _signal_stack_kept():
            compiled = core.compile_model(model, "CPU", dict(options))
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1]
        raise BundleError(f"{path}: OpenVINO cannot load this graph: {first}") from error
    return [compiled.create_infer_request() for _ in range(count)]
