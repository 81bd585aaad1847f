"""Run engines, with overlapping copies and computation on two buffer sets and three streams.

Repeated shapes are recorded once as a CUDA graph, which is then launched as a whole. A tower has
hundreds of kernels, and a small batch would otherwise wait for the CPU to launch them one by one.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from math import prod
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import Engine
from mwa_export.errors import EngineError, ProfileError
from mwa_export.spec import Embeddings, TowerSpec
from mwa_export.trt.buffers import Buffer, Gpu
from mwa_export.trt.device import Device, open_driver
from mwa_export.trt.engine import LoadedEngine, load_engine
from mwa_export.trt.profiles import Arrays, Piece, pieces
from mwa_export.trt.versions import TensorRt

if TYPE_CHECKING:
    import tensorrt as trt

SETS = 2
Name = TypeVar("Name", bound=str)
_Shapes = tuple[int, tuple[tuple[int, ...], ...]]  # the profile, and the shape of each input


@contextmanager
def open_runners(
    tensorrt: TensorRt,
    device: Device,
    engines: Mapping[Name, tuple[Bundle, Engine]],
    *,
    graphs: bool = True,
) -> Iterator[dict[Name, EngineRunner]]:
    """Load engines, each of a bundle, to run them. Everything is released at the end.

    Raises:
        BundleError, EngineError: see `load_engine` and `EngineRunner`.
        DeviceMemoryError: no memory for inputs and outputs.
    """
    with ExitStack() as stack:
        gpu = stack.enter_context(closing(Gpu(open_driver(), device)))
        runners = {}
        for name, (bundle, engine) in engines.items():
            loaded = stack.enter_context(load_engine(tensorrt, bundle, engine, device))
            spec = bundle.describe(engine.tower).spec
            runner = EngineRunner(gpu, loaded, spec, graphs=graphs)
            runners[name] = stack.enter_context(closing(runner))
        yield runners


class _Set:
    """Buffers of one run, and the events that mark its progress."""

    def __init__(self, gpu: Gpu, sizes: dict[str, int]) -> None:
        self.buffers: dict[str, Buffer] = gpu.buffers(sizes)
        self.uploaded, self.computed, self.downloaded = (gpu.event() for _ in range(3))
        self.ran: _Shapes | None = None  # the last shapes that ran without a CUDA graph
        self.graph: ctypes.c_void_p | None = None  # CUDA graph for the runner's current shapes


class EngineRunner:
    """Runs one engine. One caller at a time, from any thread.

    While one piece of a batch is computed, the next one is copied to the GPU, and the result of the
    previous one is copied back. Pieces i and i + 2 share buffers, so the result of i is taken out
    before i + 2 is copied.
    """

    def __init__(
        self, gpu: Gpu, loaded: LoadedEngine, spec: TowerSpec, *, graphs: bool = True
    ) -> None:
        """Allocate memory for the largest shapes of the engine's profiles.

        Args:
            gpu: allocates the memory.
            loaded: the engine; its owner releases it after this runner is closed.
            spec: inputs and output of the tower.
            graphs: record repeated shapes as CUDA graphs.

        Raises:
            EngineError: there is no execution context, usually for lack of memory.
            DeviceMemoryError: there is not enough memory for inputs and outputs.
        """
        self._gpu, self.loaded, self._spec = gpu, loaded, spec
        self._engine = loaded.description
        loaded.create_context()
        names = [*(port.name for port in spec.inputs), spec.output.name]
        self._dtypes = {name: loaded.dtype(name) for name in names}
        self.scratch = loaded.scratch  # bytes of device memory for activations
        sizes = {name: self._largest(name) for name in names}
        self._sets = [_Set(gpu, sizes) for _ in range(SETS)]
        self._up, self._compute, self._down = (gpu.stream() for _ in range(3))
        self._timers = gpu.event(timed=True), gpu.event(timed=True)
        self._profile = -1
        self._shapes: _Shapes | None = None  # shapes of the recorded CUDA graphs
        self.graphs = graphs  # becomes False if the driver cannot record one
        self.launched = 0  # number of runs that launched a CUDA graph

    def run(self, arrays: Arrays) -> Embeddings:
        """Run a batch of any size: (rows, ...) of each input, in order. Returns (rows, D) float32.

        Raises:
            ProfileError: no profile has these sizes.
            EngineError: TensorRT cannot run the engine.
        """
        self._gpu.make_current()
        results: list[Embeddings] = []
        running: deque[tuple[_Set, Piece]] = deque()
        try:
            for index, piece in enumerate(pieces(self._spec, self._engine.profiles, arrays)):
                if len(running) == SETS:
                    results.append(self._take(*running.popleft()))
                self._start(self._sets[index % SETS], piece)
                running.append((self._sets[index % SETS], piece))
        finally:
            while running:  # also after an error, because buffers must not be in use
                results.append(self._take(*running.popleft()))
        width = int(self._spec.output.shape[1])
        return np.concatenate(results) if results else np.empty((0, width), np.float32)

    def load(self, batches: Sequence[Arrays]) -> tuple[Piece, ...]:
        """Copy up to SETS batches to the GPU, for repeated computation by `milliseconds`.

        Raises:
            ProfileError: no profile has these sizes, or a batch takes several runs.
        """
        self._gpu.make_current()
        loaded = []
        for used, arrays in zip(self._sets, batches, strict=False):
            cut = pieces(self._spec, self._engine.profiles, arrays)
            if len(cut) != 1:
                raise ProfileError(
                    f"{self._engine.file}: {len(arrays[0])} rows take {len(cut)} runs. Expected a "
                    "batch that fits into the engine's largest profile."
                )
            self._upload(used, cut[0])
            self._gpu.finish(used.uploaded)
            loaded.append(cut[0])
        return tuple(loaded)

    def milliseconds(self, loaded: Sequence[Piece], runs: int) -> float:
        """Mean time of a run on the GPU, excluding copies, over the batches in turn.

        Raises:
            EngineError: TensorRT cannot run the engine.
        """
        self._gpu.make_current()
        start, end = self._timers
        self._gpu.record(start, self._compute)
        for index in range(runs):
            self._execute(self._sets[index % len(loaded)], loaded[index % len(loaded)])
        self._gpu.record(end, self._compute)
        return self._gpu.milliseconds(start, end) / runs

    def close(self) -> None:
        """Release the recorded CUDA graphs; call this before the engine is released."""
        self._gpu.make_current()
        self._forget_graphs()

    def _start(self, used: _Set, piece: Piece) -> None:
        """Start a piece on the GPU. Waits only if shapes change."""
        gpu = self._gpu
        self._upload(used, piece)
        gpu.wait(self._compute, used.uploaded)
        self._execute(used, piece)
        gpu.record(used.computed, self._compute)
        gpu.wait(self._down, used.computed)
        output = used.buffers[self._spec.output.name]
        gpu.download(output, self._bytes(len(piece.arrays[0])), self._down)
        gpu.record(used.downloaded, self._down)

    def _upload(self, used: _Set, piece: Piece) -> None:
        for port, array in zip(self._spec.inputs, piece.arrays, strict=True):
            buffer, dtype = used.buffers[port.name], self._dtypes[port.name]
            buffer.view(array.shape, dtype)[...] = array
            self._gpu.upload(buffer, array.size * dtype.itemsize, self._up)
        self._gpu.record(used.uploaded, self._up)

    def _execute(self, used: _Set, piece: Piece) -> None:
        """Run the engine on a set's buffers.

        A CUDA graph is recorded when a set gets the same shapes for the second time, because
        TensorRT has to run them once without a graph. Graphs of other shapes are dropped, as they
        belong to an earlier state of the context.
        """
        shapes = piece.profile, tuple(array.shape for array in piece.arrays)
        if shapes != self._shapes:
            self._forget_graphs()
            self._shapes = shapes
        if used.graph is None:
            self._bind(used, piece)
            if self.graphs and used.ran == shapes:
                used.graph = self._gpu.capture(self._compute, self._enqueue)
                self.graphs = used.graph is not None
        if used.graph is not None:
            self._gpu.launch(used.graph, self._compute)
            self.launched += 1
            return
        self._demand(self._enqueue())
        used.ran = shapes

    def _bind(self, used: _Set, piece: Piece) -> None:
        """Set profile, shapes and addresses of the next run."""
        context: trt.IExecutionContext = self.loaded.context
        if piece.profile != self._profile:
            handle = self._compute.value or 0
            self._demand(context.set_optimization_profile_async(piece.profile, handle))
            self._profile = piece.profile
        for port, array in zip(self._spec.inputs, piece.arrays, strict=True):
            self._demand(context.set_input_shape(port.name, array.shape))
        for name, buffer in used.buffers.items():
            self._demand(context.set_tensor_address(name, buffer.device))

    def _enqueue(self) -> bool:
        context: trt.IExecutionContext = self.loaded.context
        return bool(context.execute_async_v3(self._compute.value or 0))

    def _forget_graphs(self) -> None:
        for used in self._sets:
            used.ran = None
            if used.graph is not None:
                self._gpu.finish(used.computed)  # the graph may be running
                self._gpu.discard(used.graph)
                used.graph = None

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
                f"{self._engine.file}: TensorRT cannot run it "
                f"({self.loaded.messages.reason or 'no reason given'}). Build it again: "
                "`mwa-export trt` with `rebuild`"
            )
