"""A fake GPU that does its work as late as possible: nothing happens until it is waited for.

Memory is the host's. Streams are queues that run only when somebody waits for one of their events,
so a missing wait, or a buffer that is overwritten too early, gives wrong results. Work that is
captured in a graph runs when the graph is launched, with the addresses and shapes of the capture.
Time is a number that grows with the work: a copy takes 0.25 ms.
"""

from __future__ import annotations

import ctypes
import itertools
import json
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from trt_fake import FakeDriver, FakeTensorRT

from mwa_export.graphs.edit import FloatGraph
from mwa_export.graphs.rounded import in_float32

Work = Callable[[], None]


class LateDriver(FakeDriver):
    """A libcuda with memory, streams and events."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[int, Any] = {}  # address -> what is allocated there
        self.limit = 1 << 40  # bytes in all
        self._numbers = itertools.count(100)
        self._queues: dict[int, deque[tuple[str, Any]]] = {}
        self._events: dict[int, tuple[int, int]] = {}  # event -> stream and ticket of its record
        self._streams: dict[int, int] = {}  # ticket -> stream
        self._done: set[int] = set()
        self._times: dict[int, float] = {}  # ticket -> when it happened
        self._timers: set[int] = set()  # events that remember
        self._captured: dict[int, list[tuple[Work, float]]] = {}  # stream -> since when it records
        self.graphs: dict[int, list[tuple[Work, float]]] = {}  # recorded, and to launch
        self.captures = True
        self.now = 0.0  # milliseconds

    @property
    def allocated(self) -> int:
        """Everything that was not given back: memory, streams, events and graphs."""
        return len(self.memory) + len(self._queues) + len(self._events) + len(self.graphs)

    def enqueue(self, stream: int, work: Work, milliseconds: float = 0.25) -> None:
        """Work for later."""
        if stream in self._captured:
            self._captured[stream].append((work, milliseconds))
        else:
            self._queues[stream].append(("work", (work, milliseconds)))

    def _allocate(self, address: Any, size: ctypes.c_size_t) -> None:
        block = (ctypes.c_uint8 * size.value)()
        self.memory[ctypes.addressof(block)] = block
        address._obj.value = ctypes.addressof(block)

    _cuMemAlloc_v2 = _cuMemAllocHost_v2 = _allocate  # noqa: N815

    def __getattr__(self, name: str) -> Callable[..., int]:
        call = super().__getattr__(name)
        if name not in ("cuMemAlloc_v2", "cuMemAllocHost_v2"):
            return call

        def limited(address: Any, size: ctypes.c_size_t) -> int:
            if sum(len(block) for block in self.memory.values()) + size.value > self.limit:
                return 2
            return call(address, size)

        return limited

    def _free(self, address: Any) -> None:
        del self.memory[address.value]

    _cuMemFree_v2 = _cuMemFreeHost = _free  # noqa: N815

    def _cuStreamCreate(self, stream: Any, flags: ctypes.c_uint) -> None:  # noqa: N802
        assert flags.value == 1
        stream._obj.value = next(self._numbers)
        self._queues[stream._obj.value] = deque()

    def _cuStreamDestroy_v2(self, stream: ctypes.c_void_p) -> None:  # noqa: N802
        assert not self._queues.pop(stream.value or 0)

    def _cuEventCreate(self, event: Any, flags: ctypes.c_uint) -> None:  # noqa: N802
        event._obj.value = next(self._numbers)
        if flags.value == 0:
            self._timers.add(event._obj.value)
        self._events[event._obj.value] = (0, 0)
        self._done.add(0)

    def _cuEventDestroy_v2(self, event: ctypes.c_void_p) -> None:  # noqa: N802
        del self._events[event.value or 0]

    def _cuEventRecord(self, event: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:  # noqa: N802
        assert (stream.value or 0) not in self._captured
        ticket = next(self._numbers)
        self._events[event.value or 0] = stream.value or 0, ticket
        self._streams[ticket] = stream.value or 0
        self._queues[stream.value or 0].append(("record", ticket))

    def _cuStreamWaitEvent(  # noqa: N802
        self, stream: ctypes.c_void_p, event: ctypes.c_void_p, flags: ctypes.c_uint
    ) -> None:
        self._queues[stream.value or 0].append(("wait", self._events[event.value or 0][1]))

    def _cuEventElapsedTime(  # noqa: N802
        self, found: Any, start: ctypes.c_void_p, end: ctypes.c_void_p
    ) -> None:
        assert {start.value, end.value} <= self._timers
        first, last = (self._times[self._events[event.value or 0][1]] for event in (start, end))
        found._obj.value = last - first

    def _cuStreamBeginCapture_v2(self, stream: ctypes.c_void_p, mode: ctypes.c_uint) -> None:  # noqa: N802
        assert mode.value == 1
        self._captured[stream.value or 0] = []

    def _cuStreamEndCapture(self, stream: ctypes.c_void_p, graph: Any) -> None:  # noqa: N802
        graph._obj.value = next(self._numbers)
        self.graphs[graph._obj.value] = self._captured.pop(stream.value or 0)

    def _cuGraphInstantiateWithFlags(  # noqa: N802
        self, made: Any, graph: ctypes.c_void_p, flags: ctypes.c_uint64
    ) -> None:
        made._obj.value = next(self._numbers)
        self.graphs[made._obj.value] = self.graphs[graph.value or 0]

    def _cuGraphDestroy(self, graph: ctypes.c_void_p) -> None:  # noqa: N802
        del self.graphs[graph.value or 0]

    _cuGraphExecDestroy = _cuGraphDestroy  # noqa: N815

    def _cuGraphLaunch(self, graph: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:  # noqa: N802
        for work, milliseconds in self.graphs[graph.value or 0]:
            self.enqueue(stream.value or 0, work, milliseconds)

    def _cuEventSynchronize(self, event: ctypes.c_void_p) -> None:  # noqa: N802
        self._run_to(self._events[event.value or 0][1])

    def _cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> None:  # noqa: N802
        self.enqueue(stream.value, lambda: ctypes.memmove(to.value, source.value, size.value))  # type: ignore[arg-type]

    _cuMemcpyDtoHAsync_v2 = _cuMemcpyHtoDAsync_v2  # noqa: N815

    def _run_to(self, ticket: int) -> None:
        while ticket not in self._done:
            kind, what = self._queues[self._streams[ticket]].popleft()
            if kind == "work":
                what[0]()
                self.now += what[1]
            elif kind == "wait":
                self._run_to(what)
            else:
                self._times[what] = self.now
                self._done.add(what)


class LateTensorRT(FakeTensorRT):
    """Its engines are the graphs themselves, and ONNX Runtime runs them, when the stream does."""

    def __init__(self, major: int, driver: LateDriver) -> None:
        super().__init__(major)
        self.driver, self.major = driver, major
        self.scratch = 1000
        self.contexts = True
        self.refuses: str | None = None  # a method of the context that says no
        self.rejects: str | None = None  # a weight that is not taken
        self.shapes: list[tuple[int, str, tuple[int, ...]]] = []  # profile, input, shape
        self.layers: Callable[[onnx.ModelProto], list[Any]] = lambda graph: []  # inspected
        self.milliseconds: Callable[[onnx.ModelProto], float] = lambda graph: 1.0  # of a run
        self.blob = None
        self._replace_classes()

    def nptype(self, kind: str) -> Any:
        """Of what `get_tensor_dtype` says; 8.6 has no int64."""
        kind = "int32" if self.major == 8 and kind == "int64" else kind
        return np.dtype("float32" if kind == "float" else kind).type

    def _replace_classes(self) -> None:
        fake = self

        class Runtime(self.Runtime):  # type: ignore[misc, name-defined]
            def deserialize_cuda_engine(self, blob: bytes) -> Any:
                super().deserialize_cuda_engine(blob)
                return _Engine(fake, blob) if fake.loads else None

        class Builder(self.Builder):  # type: ignore[misc, name-defined]
            def build_serialized_network(self, network: object, config: object) -> bytes:
                return bytes(fake.graphs[list(fake.graphs)[-1]].SerializeToString())

        class Refitter:
            """Of 8.6 by name; later versions through OnnxParserRefitter."""

            def __init__(self, engine: _Engine, logger: object) -> None:
                self.engine, self.logger = engine, logger
                self.new = {t.name: t for t in engine.model.graph.initializer}
                self.given: set[str] = set()

            def get_all_weights(self) -> list[str]:
                return [*self.new, "internal constant"]

            def set_named_weights(self, name: str, weights: Any) -> bool:
                old = onnx.numpy_helper.to_array(self.new[name])
                if weights.size != old.size or name == fake.rejects:
                    return False
                self.new[name] = onnx.numpy_helper.from_array(weights, name)
                self.given.add(name)
                return True

            def get_missing_weights(self) -> list[str]:
                return [name for name in self.new if name not in self.given]

            def refit_cuda_engine(self) -> bool:
                if self.get_missing_weights() or fake.refuses == "refit":
                    return False
                del self.engine.model.graph.initializer[:]
                self.engine.model.graph.initializer.extend(self.new.values())
                return True

        class OnnxParserRefitter:
            num_errors = 0

            def __init__(self, refitter: Refitter, logger: object) -> None:
                self.refitter = refitter

            def refit_from_file(self, path: str) -> bool:
                new = onnx.load(path)
                self.refitter.new = {t.name: t for t in new.graph.initializer}
                self.refitter.given = set(self.refitter.new)
                return fake.rejects is None

        self.Runtime, self.Builder, self.Refitter = Runtime, Builder, Refitter
        self.Weights = lambda array: array
        if self.major > 8:
            self.OnnxParserRefitter = OnnxParserRefitter


class _Engine:
    def __init__(self, fake: LateTensorRT, blob: bytes) -> None:
        self._fake = fake
        model = onnx.load_from_string(blob)
        self._layers = fake.layers(model)
        self.model = onnx.load_from_string(blob)  # with its weights, which can be exchanged
        self.milliseconds = fake.milliseconds(model)
        graph = FloatGraph.of(model)  # rounded where it is bfloat16
        runnable = in_float32(graph).whole().SerializeToString()
        options = onnxruntime.SessionOptions()
        # ONNX Runtime 1.23 moves a Transpose into float8 pairs, and then refuses it.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session = onnxruntime.InferenceSession(runnable, options, ["CPUExecutionProvider"])
        self.ports = {p.name: p for p in (*self.session.get_inputs(), *self.session.get_outputs())}
        name = "device_memory_size" if fake.major == 8 else "device_memory_size_v2"
        setattr(self, name, fake.scratch)

    def get_tensor_dtype(self, name: str) -> str:
        return str(self.ports[name].type.removeprefix("tensor(").removesuffix(")"))

    def serialize(self) -> bytes:
        return bytes(self.model.SerializeToString())

    def create_engine_inspector(self) -> _Inspector:
        return _Inspector(self._fake, self._layers)

    def create_execution_context(self) -> _Context | None:
        return _Context(self._fake, self) if self._fake.contexts else None


class _Inspector:
    execution_context: _Context | None = None

    def __init__(self, fake: LateTensorRT, layers: list[Any]) -> None:
        self._fake, self._layers = fake, layers

    def get_engine_information(self, format: Any) -> str:
        assert format == self._fake.LayerInformationFormat.JSON
        assert self.execution_context is not None, "formats of dynamic shapes are not shown"
        return json.dumps({"Layers": self._layers, "Bindings": []})


class _Context:
    def __init__(self, fake: LateTensorRT, engine: _Engine) -> None:
        self._fake, self._engine = fake, engine
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile = index
        return self._fake.refuses != "profile"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None, "no profile was chosen"
        self._shapes[name] = tuple(shape)
        self._fake.shapes.append((self._profile, name, tuple(shape)))
        return self._fake.refuses != "shape"

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self._fake.refuses == "run":
            return False
        shapes, addresses = dict(self._shapes), dict(self._addresses)

        def work() -> None:
            feed = {n: self._read(n, addresses[n], shape) for n, shape in shapes.items()}
            (output,) = self._engine.session.get_outputs()
            result = np.ascontiguousarray(self._engine.session.run(None, feed)[0])
            ctypes.memmove(addresses[output.name], result.ctypes.data, result.nbytes)

        self._fake.driver.enqueue(stream, work, self._engine.milliseconds)
        return True

    def _read(self, name: str, address: int, shape: tuple[int, ...]) -> Any:
        told = np.dtype(self._fake.nptype(self._engine.get_tensor_dtype(name)))
        raw = (ctypes.c_uint8 * (int(np.prod(shape)) * told.itemsize)).from_address(address)
        values = np.frombuffer(raw, told).reshape(shape)
        kind = self._engine.get_tensor_dtype(name)
        return values.astype(np.int64) if kind == "int64" else values.copy()
