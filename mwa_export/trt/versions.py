"""One interface to TensorRT 8.6, 10, 11 and TensorRT-RTX. No other module distinguishes them.

Up to 9, a builder chooses among the precisions that its flags allow. From 10 on, we build strongly
typed networks, whose precisions are part of the graph; 11 and TensorRT-RTX support nothing else.
Names that not every version has are only used in this module. `LIMITED` lists the versions that
have them; a test compares it with the genuine Python bindings of 8.6, 10 and 11.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mwa_export.bundle.engine import (
    COMPILERS,
    TENSORRT,
    Compiler,
    EnginePrecision,
    dotted,
)
from mwa_export.errors import EngineError, UsageError

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)

_REQUESTED = re.compile(
    r"(?:Requested amount of (?:GPU )?memory \((\d+) bytes\)"
    r"|Requested size was (\d+) bytes"
    r"|insufficient memory on requested size of (\d+))"
)
_OUT_OF_MEMORY = re.compile(r"out ?of ?memory", re.IGNORECASE)
_PREFIX = re.compile(r"^(?:\d+: )?\[[\w./]+::\w+::\d+\] (?:Error Code \d+: )?")


class Messages:
    """Errors of one build or load, and the largest amount of memory that was refused."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.requested = 0  # bytes of the largest refused request
        self.out_of_memory = False  # from errors only, not from tactics skipped for memory
        self.layers: list[str] = []  # messages that list compiled layers

    def add(self, text: str, *, error: bool) -> None:
        """Record a message."""
        found = _REQUESTED.search(text)
        if found is not None:
            self.requested = max(self.requested, *(int(n) for n in found.groups() if n))
        if error:
            self.out_of_memory |= _OUT_OF_MEMORY.search(text) is not None
            self.errors.append(_PREFIX.sub("", text.strip()))
        if text.startswith("Layers:"):
            self.layers.append(text)
        log.debug("TensorRT%s: %s", " error" if error else "", text)

    @property
    def reason(self) -> str:
        """The first error, which usually causes the others; "" if there was none."""
        return self.errors[0].rstrip(". ") if self.errors else ""


TYPED_ONLY: dict[EnginePrecision, tuple[tuple[int, int], str]] = {
    "bfloat16": ((8, 0), "Ampere"),
    "float8": ((8, 9), "Ada or Hopper"),
}
"""Precision that 8.6 does not support -> the compute capability it needs, and the generation of
GPUs that introduced it."""
SUPPORTED = {8: (8, 6), 10: (10, 12), 11: (11, 0)}
"""Major version -> first supported release; strong typing is complete from 10.12 on."""

LIMITED: dict[str, tuple[int, ...]] = {
    "BuilderFlag.FP16": (8, 10),
    "BuilderFlag.INT8": (8, 10),
    "IBuilderConfig.progress_monitor": (10, 11),
    "ICudaEngine.device_memory_size": (8, 10),
    "ICudaEngine.device_memory_size_v2": (10, 11),
    "IProgressMonitor": (10, 11),
    "IProgressMonitor.phase_finish": (10, 11),
    "IProgressMonitor.phase_start": (10, 11),
    "IProgressMonitor.step_complete": (10, 11),
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": (8, 10),
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": (10, 11),
    "OnnxParserRefitter": (10, 11),
    "OnnxParserRefitter.get_error": (10, 11),
    "OnnxParserRefitter.num_errors": (10, 11),
    "OnnxParserRefitter.refit_from_file": (10, 11),
    "ParserError.node_name": (10, 11),
    "ParserError.node_operator": (10, 11),
    "PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805": (8,),
}
"""Names that we use but not every version has -> major versions that have them."""


class TensorRt:
    """An installed TensorRT 10 or 11, which builds strongly typed networks."""

    typed = True  # precisions are part of the graph, not builder flags
    compiler: Compiler = TENSORRT

    def __init__(self, trt: Any) -> None:
        self.trt = trt  # the module
        self.version = str(trt.__version__)

    @property
    def name(self) -> str:
        """Name and version, for display."""
        return f"{COMPILERS[self.compiler]} {self.version}"

    def check_precision(
        self,
        precision: EnginePrecision,
        capability: tuple[int, int],
        gpu: str = "this GPU",
        *,
        option: str | None = None,
        instead: str | None = None,
    ) -> None:
        """Raise UsageError if this TensorRT or a compute capability does not support a precision.

        ``option``: the option that requires it, if not the precision itself. ``instead``: advice.
        """
        if precision not in TYPED_ONLY:
            return
        option = option or f"`engine_precision={precision}`"
        least, generation = TYPED_ONLY[precision]
        if instead is None:
            instead = "Build with `engine_precision=float16`"
            if precision != "bfloat16":
                instead += " or `engine_precision=int8`"
        if not self.typed:
            raise UsageError(
                f"{option}: TensorRT {self.version} is installed, but {precision} engines need "
                f'10 or later. {instead}, or: pip install "tensorrt>=11,<12"'
            )
        if capability < least:
            raise UsageError(
                f"{option}: {gpu} has compute capability {dotted(capability)}, but {precision} "
                f"needs {dotted(least)} ({generation}) or later. {instead}."
            )

    def logger(self, messages: Messages) -> trt.ILogger:
        """Make a logger that fills ``messages`` and logs everything at debug level."""
        base, error = self.trt.ILogger, int(self.trt.Logger.ERROR)

        class Log(base):  # type: ignore[misc, valid-type]  # only known at run time
            def __init__(self) -> None:
                base.__init__(self)

            def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
                messages.add(msg, error=int(severity) <= error)

        return Log()

    def network_flags(self) -> int:
        """Flags for `Builder.create_network`."""
        return 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def allow_precision(self, config: trt.IBuilderConfig, precision: EnginePrecision) -> None:
        """Allow the builder to use a precision, unless the graph determines it.

        INT8 comes from Q/DQ nodes in any case; layers without them may run in float16.
        """

    def own_kernels_only(self, config: trt.IBuilderConfig) -> None:
        """Build without cuBLAS and cuDNN, so that the engine runs where they are not installed.

        TensorRT's own GEMM kernels are enough for this model; 11 has no other sources.
        """
        sources = self.trt.TacticSource
        chosen = (sources.EDGE_MASK_CONVOLUTIONS, sources.JIT_CONVOLUTIONS)
        config.set_tactic_sources(sum(1 << int(source) for source in chosen))

    def parser_problem(self, error: trt.ParserError) -> str:
        """Describe a parser error: node, operator (not in 8.6) and reason."""
        operator = error.node_operator()
        name = f"{error.node_name()}{f' ({operator})' if operator else ''}"
        return f"node {name}: {_reason(error)}"

    def weights_from_file(
        self, refitter: trt.Refitter, logger: trt.ILogger, path: str
    ) -> list[str] | None:
        """Pass the weights of an ONNX file to a refitter. Returns problems; empty on success.

        Returns None for 8.6, which cannot read a file; weights must then be set by name.
        """
        parser: trt.OnnxParserRefitter = self.trt.OnnxParserRefitter(refitter, logger)
        if parser.refit_from_file(path):
            return []
        problems = [self.parser_problem(parser.get_error(i)) for i in range(parser.num_errors)]
        return problems or ["no reason given"]

    def scratch_bytes(self, engine: trt.ICudaEngine) -> int:
        """Bytes of device memory that an execution context needs for activations."""
        return int(engine.device_memory_size_v2)

    def watch(
        self,
        config: trt.IBuilderConfig,
        on_start: Callable[[str, str | None, int], None],
        on_step: Callable[[str], bool],
    ) -> None:
        """Report the phases of a build; 8.6 cannot.

        Args:
            config: of the build; it keeps the monitor alive.
            on_start: called with a phase's name, its parent's name or None, and its steps.
            on_step: called with a phase's name after each of its steps; False stops the build.
        """
        base = self.trt.IProgressMonitor

        class Monitor(base):  # type: ignore[misc, valid-type]  # only known at run time
            def __init__(self) -> None:
                base.__init__(self)

            def phase_start(
                self, phase_name: str, parent_phase: str | None, num_steps: int
            ) -> None:
                on_start(phase_name, parent_phase, num_steps)

            def phase_finish(self, phase_name: str) -> None:
                pass

            def step_complete(self, phase_name: str, step: int) -> bool:
                return on_step(phase_name)

        config.progress_monitor = Monitor()


class TensorRt8(TensorRt):
    """An installed TensorRT 8.6, whose builder chooses among the allowed precisions."""

    typed = False

    def network_flags(self) -> int:
        return 1 << int(self.trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)

    def allow_precision(self, config: trt.IBuilderConfig, precision: EnginePrecision) -> None:
        config.set_flag(self.trt.BuilderFlag.FP16)
        if precision == "int8":
            config.set_flag(self.trt.BuilderFlag.INT8)

    def own_kernels_only(self, config: trt.IBuilderConfig) -> None:
        super().own_kernels_only(config)
        feature = self.trt.PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805
        config.set_preview_feature(feature, True)

    def parser_problem(self, error: trt.ParserError) -> str:
        return f"node number {error.node()}: {_reason(error)}"

    def weights_from_file(self, *_: Any) -> None:
        return None

    def scratch_bytes(self, engine: trt.ICudaEngine) -> int:
        return int(engine.device_memory_size)

    def watch(self, *_: Any) -> None:
        pass


def tensorrt_from_module(trt: Any) -> TensorRt:
    """Make the interface to an imported `tensorrt` module.

    Raises:
        EngineError: the version is not supported; see `major_of`.
    """
    return TensorRt(trt) if is_typed(major_of(trt.__version__)) else TensorRt8(trt)


def major_of(version: str) -> int:
    """Return the major version of a supported TensorRT.

    Raises:
        EngineError: the version is not 8.6, 10 from 10.12 on, or 11.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    found = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if found[0] not in SUPPORTED or found < SUPPORTED[found[0]]:
        raise EngineError(
            f"TensorRT {version} is installed. Expected 8.6, 10 from 10.12 on, or 11: "
            'pip install "tensorrt>=11,<12" (JetPack 6 includes 8.6).'
        )
    return found[0]


def is_typed(major: int) -> bool:
    """Whether a major version takes precisions from the graph instead of builder flags."""
    return major >= 10


def _reason(error: trt.ParserError) -> str:
    return (str(error.desc()).strip().splitlines() or ["no reason given"])[0]
