"""Fakes of TensorRT and the NVIDIA driver that record their calls.

They have only what our code uses. The contract test proves that the real TensorRT has it too, with
these parameters.
"""

from __future__ import annotations

import ctypes
import enum
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from mwa_export.trt import device

VERSIONS = {8: "8.6.1", 10: "10.16.1.11", 11: "11.4.0.106"}
GIB = 1 << 30


class ParserError:
    """What a parser says about a node."""

    def __init__(self, node: str, operator: str, reason: str) -> None:
        self._values = node, operator, reason

    def node(self) -> int:
        return 12

    def node_name(self) -> str:
        return self._values[0]

    def node_operator(self) -> str:
        return self._values[1]

    def desc(self) -> str:
        return self._values[2]


class FakeTensorRT(types.ModuleType):
    """A module `tensorrt` that notes every call in ``calls``; the switches make it fail."""

    def __init__(self, major: int, inputs: tuple[str, ...] = ("image",)) -> None:
        super().__init__("tensorrt")
        self.__version__ = VERSIONS[major]
        self.calls: list[tuple[Any, ...]] = []
        self.inputs = inputs
        self.graphs: dict[str, onnx.ModelProto] = {}  # what was parsed, by file name
        self.parser_errors: list[ParserError] = []
        self.messages: list[tuple[int, str]] = []  # said during the build or the load
        self.blob: bytes | None = b"an engine"
        self.starts = self.loads = self.accepts_cache = True
        self.profile_index = 0
        self.during_build: Callable[[Any], None] = lambda monitor: None
        self._enums(major)
        self._classes()

    def _enums(self, major: int) -> None:
        flags = ["FP16", "INT8"] if major < 11 else []
        names = {
            "BuilderFlag": [*flags, "REFIT", "VERSION_COMPATIBLE"],
            "NetworkDefinitionCreationFlag": {
                8: ["EXPLICIT_BATCH"],
                10: ["EXPLICIT_BATCH", "STRONGLY_TYPED"],
                11: ["STRONGLY_TYPED"],
            }[major],
            "TacticSource": [
                *(["CUBLAS", "CUBLAS_LT", "CUDNN"] if major < 11 else []),
                "EDGE_MASK_CONVOLUTIONS",
                "JIT_CONVOLUTIONS",
            ],
            "ProfilingVerbosity": ["LAYER_NAMES_ONLY", "DETAILED"],
            "MemoryPoolType": ["WORKSPACE"],
            "HardwareCompatibilityLevel": ["NONE", "AMPERE_PLUS"],
            "LayerInformationFormat": ["ONELINE", "JSON"],
        }
        if major == 8:
            names["PreviewFeature"] = ["DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805"]
        for name, members in names.items():
            setattr(self, name, enum.IntEnum(name, {m: i for i, m in enumerate(members)}))
        if major >= 10:
            self.IProgressMonitor = type("IProgressMonitor", (), {})

    def _classes(self) -> None:
        fake = self

        class ILogger:
            pass

        class Logger:
            ERROR = 1

        class Recorder:
            """Notes its method calls and the attributes that are set."""

            def __init__(self, name: str) -> None:
                object.__setattr__(self, "_name", name)

            def __setattr__(self, name: str, value: Any) -> None:
                fake.calls.append((f"{self._name}.{name}", value))
                object.__setattr__(self, name, value)

            def __getattr__(self, name: str) -> Any:
                return lambda *a: fake.calls.append((f"{self._name}.{name}", *a))

        class Config(Recorder):
            progress_monitor = None

            def create_timing_cache(self, data: bytes) -> object:
                fake.calls.append(("create_timing_cache", data))
                return object()

            def set_timing_cache(self, cache: object, ignore_mismatch: bool) -> bool:
                fake.calls.append(("set_timing_cache", ignore_mismatch))
                return fake.accepts_cache

            def get_timing_cache(self) -> Any:
                return types.SimpleNamespace(serialize=lambda: b"new times")

            def add_optimization_profile(self, profile: object) -> int:
                return fake.profile_index

        class Network:
            @property
            def num_inputs(self) -> int:
                return len(fake.inputs)

            def get_input(self, index: int) -> Any:
                return types.SimpleNamespace(name=fake.inputs[index])

        class Builder:
            def __init__(self, logger: Any) -> None:
                if not fake.starts:
                    fake.say(logger)
                    raise TypeError("pybind11::init(): factory function returned nullptr")
                self.logger = logger

            def create_network(self, flags: int) -> Any:
                fake.calls.append(("create_network", flags))
                return Network()

            def create_builder_config(self) -> Config:
                return Config("config")

            def create_optimization_profile(self) -> Recorder:
                return Recorder("profile")

            def build_serialized_network(self, network: object, config: Config) -> bytes | None:
                fake.say(self.logger)
                fake.during_build(config.progress_monitor)
                return fake.blob

        class OnnxParser:
            def __init__(self, network: object, logger: object) -> None:
                self.num_errors = len(fake.parser_errors)

            def parse_from_file(self, path: str) -> bool:
                data = Path(path).read_bytes()
                if data:  # a real graph
                    fake.graphs.pop(Path(path).name, None)  # the last one is what is built
                    fake.graphs[Path(path).name] = onnx.load_from_string(data)
                    inputs = fake.graphs[Path(path).name].graph.input
                    fake.inputs = tuple(port.name for port in inputs)
                fake.calls.append(("parse", path))
                return not fake.parser_errors

            def get_error(self, index: int) -> ParserError:
                return fake.parser_errors[index]

        class Runtime:
            engine_host_code_allowed = False

            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def deserialize_cuda_engine(self, blob: bytes) -> object | None:
                fake.calls.append(("load", blob, self.engine_host_code_allowed))
                fake.say(self.logger)
                return object() if fake.loads else None

        for made in (ILogger, Logger, Builder, OnnxParser, Runtime):
            setattr(self, made.__name__, made)

    def say(self, logger: Any) -> None:
        """Hand the messages to a logger."""
        for severity, text in self.messages:
            logger.log(severity, text)

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of that name."""
        return [call[1:] for call in self.calls if call[0] == name]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
        """Make `import tensorrt` find it."""
        monkeypatch.setitem(sys.modules, "tensorrt", self)
        return self


class FakeDriver:
    """A libcuda with one H200."""

    def __init__(self) -> None:
        self.version, self.count, self.name = 13000, 1, b"NVIDIA H200"
        self.capability = {75: 9, 76: 0}
        self.fails: dict[str, int] = {}
        self.current: int | None = None

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name in self.fails:
                return self.fails[name]
            getattr(self, f"_{name}")(*arguments)
            return 0

        if not hasattr(type(self), f"_{name}"):
            raise AttributeError(name)
        return call

    def _cuInit(self, flags: int) -> None: ...  # noqa: N802

    def _cuDriverGetVersion(self, version: Any) -> None:  # noqa: N802
        version._obj.value = self.version

    def _cuDeviceGetCount(self, count: Any) -> None:  # noqa: N802
        count._obj.value = self.count

    def _cuDeviceGet(self, device: Any, index: int) -> None:  # noqa: N802
        device._obj.value = 40 + index

    def _cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> None:  # noqa: N802
        name.value = self.name

    def _cuDeviceGetAttribute(self, value: Any, number: int, device: ctypes.c_int) -> None:  # noqa: N802
        value._obj.value = self.capability[number]

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: ctypes.c_int) -> None:  # noqa: N802
        context._obj.value = 1000 + device.value

    def _cuCtxSetCurrent(self, context: ctypes.c_void_p) -> None:  # noqa: N802
        self.current = context.value

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> None:  # noqa: N802
        free._obj.value, total._obj.value = 100 * GIB, 140 * GIB

    def _cuGetErrorString(self, status: int, text: Any) -> None:  # noqa: N802
        text._obj.value = b"an illegal state"

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
        """Make `select_device` find it."""
        monkeypatch.setattr(device, "_library", lambda: self)
        return self
