"""Run one engine: copies and computation overlap, with two sets of buffers and three streams."""

from __future__ import annotations

from collections import deque
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from mwa_export.backend import Embeddings
from mwa_export.errors import EngineError
from mwa_export.towers import TowerSpec
from mwa_export.trt_buffers import Buffer, Gpu
from mwa_export.trt_engine import Engine
from mwa_export.trt_log import Messages
from mwa_export.trt_shapes import Arrays, Piece, pieces
from mwa_export.trt_versions import scratch_bytes

if TYPE_CHECKING:
    import tensorrt as trt  # type: ignore[import-not-found, import-untyped, unused-ignore]

_SETS = 2


class _Set:
    """Buffers of one run, and the events that say how far it is."""

    def __init__(self, gpu: Gpu, sizes: dict[str, int]) -> None:
        self.buffers: dict[str, Buffer] = gpu.buffers(sizes)
        self.uploaded, self.computed, self.downloaded = (gpu.event() for _ in range(3))


class EngineRunner:
    """An engine with its execution context. One caller at a time, from any thread.

    While one piece of a batch is computed, the next one is copied to the GPU and the last one's
    result back. Piece i and piece i + 2 share buffers, so i is taken out before i + 2 goes in.
    """

    def __init__(
        self,
        trt: Any,
        gpu: Gpu,
        loaded: trt.ICudaEngine,
        engine: Engine,
        spec: TowerSpec,
        messages: Messages,
    ) -> None:
        """Allocate what the largest shapes of the engine's profiles need.

        Args:
            trt: the module.
            gpu: where memory comes from.
            loaded: the engine, deserialized.
            engine: its description.
            spec: the tower's inputs and output.
            messages: what TensorRT says, for errors.

        Raises:
            EngineError: no execution context, mostly for want of memory.
            DeviceMemoryError: no memory for inputs and outputs.
        """
        self._gpu, self._engine, self._spec, self._messages = gpu, engine, spec, messages
        names = [*(port.name for port in spec.inputs), spec.output.name]
        # 8.6 takes int32 where the graph has int64.
        self._dtypes = {n: np.dtype(trt.nptype(loaded.get_tensor_dtype(n))) for n in names}
        self._context: trt.IExecutionContext = loaded.create_execution_context()
        if self._context is None:
            need = scratch_bytes(trt, loaded) / (1 << 30)
            raise EngineError(
                f"{engine.file}: its activations need {need:.2f} GiB on {engine.gpu}, which are "
                f"not free ({messages.reason or 'no reason given'}). End what else uses the GPU, "
                "or build engines for smaller batches: mwa-export trt BUNDLE --batch ..."
            )
        self.scratch = scratch_bytes(trt, loaded)  # bytes of device memory for activations
        sizes = {name: self._largest(name) for name in names}
        self._sets = [_Set(gpu, sizes) for _ in range(_SETS)]
        self._up, self._compute, self._down = (gpu.stream() for _ in range(3))
        self._profile = -1

    def run(self, arrays: Arrays) -> Embeddings:
        """Run a batch of any size. Returns (rows, D) float32.

        Args:
            arrays: (rows, ...) each, in the order of the tower's inputs.

        Raises:
            ProfileError: sizes that no profile has.
            EngineError: TensorRT refuses to run.
        """
        self._gpu.make_current()
        results: list[Embeddings] = []
        running: deque[tuple[_Set, Piece]] = deque()
        try:
            for index, piece in enumerate(pieces(self._spec, self._engine.profiles, arrays)):
                if len(running) == _SETS:
                    results.append(self._take(*running.popleft()))
                self._start(self._sets[index % _SETS], piece)
                running.append((self._sets[index % _SETS], piece))
        finally:
            while running:  # also after an error: buffers must be at rest
                results.append(self._take(*running.popleft()))
        width = int(self._spec.output.shape[1])
        return np.concatenate(results) if results else np.empty((0, width), np.float32)

    def _start(self, used: _Set, piece: Piece) -> None:
        """Give a piece to the GPU; nothing here waits."""
        gpu = self._gpu
        context: trt.IExecutionContext = self._context
        if piece.profile != self._profile:
            handle = self._compute.value or 0
            self._demand(context.set_optimization_profile_async(piece.profile, handle))
            self._profile = piece.profile
        for port, array in zip(self._spec.inputs, piece.arrays, strict=True):
            buffer, dtype = used.buffers[port.name], self._dtypes[port.name]
            buffer.view(array.shape, dtype)[...] = array
            gpu.upload(buffer, array.size * dtype.itemsize, self._up)
            self._demand(context.set_input_shape(port.name, array.shape))
            self._demand(context.set_tensor_address(port.name, buffer.device))
        gpu.record(used.uploaded, self._up)
        output = used.buffers[self._spec.output.name]
        self._demand(context.set_tensor_address(self._spec.output.name, output.device))
        gpu.wait(self._compute, used.uploaded)
        self._demand(context.execute_async_v3(self._compute.value or 0))
        gpu.record(used.computed, self._compute)
        gpu.wait(self._down, used.computed)
        gpu.download(output, self._bytes(len(piece.arrays[0])), self._down)
        gpu.record(used.downloaded, self._down)

    def _take(self, used: _Set, piece: Piece) -> Embeddings:
        """Wait for a piece and copy its result out of the buffer."""
        self._gpu.finish(used.downloaded)
        name, width = self._spec.output.name, int(self._spec.output.shape[1])
        view = used.buffers[name].view((len(piece.arrays[0]), width), self._dtypes[name])
        return view[: piece.rows].astype(np.float32)

    def _bytes(self, rows: int) -> int:
        output = self._spec.output
        return rows * int(output.shape[1]) * int(self._dtypes[output.name].itemsize)

    def _largest(self, name: str) -> int:
        """Bytes of a tensor at the largest shapes of all profiles."""
        if name == self._spec.output.name:
            return max(self._bytes(profile[0].max[0]) for profile in self._engine.profiles)
        shapes = [e.max for profile in self._engine.profiles for e in profile if e.name == name]
        return max(prod(shape) for shape in shapes) * int(self._dtypes[name].itemsize)

    def _demand(self, done: bool) -> None:
        if not done:
            raise EngineError(
                f"{self._engine.file}: TensorRT refuses to run it "
                f"({self._messages.reason or 'no reason given'}). Build it again: --rebuild"
            )
