"""What differs between TensorRT 8.6, 10 and 11, in one place; everything else is the same in all.

Up to 9 a builder chooses precisions inside what its flags allow; from 10 on we build strongly typed
networks, whose precisions stand in the graph, and 11 knows nothing else. A name that not all
versions have is used in this module only, and `LIMITED` says where it exists: a test compares the
table with the genuine Python bindings of all three.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from mwa_export.errors import EngineError, UsageError
from mwa_export.trt.device import Device

if TYPE_CHECKING:
    import tensorrt as trt

EnginePrecision = Literal["float16", "bfloat16", "int8", "float8"]
TYPED_ONLY: dict[EnginePrecision, tuple[tuple[int, int], str]] = {
    "bfloat16": ((8, 0), "Ampere"),
    "float8": ((8, 9), "Ada or Hopper"),
}
"""Precision that 8.6 does not build -> its option, the compute capability it needs, and the
generation of GPUs that came with it."""
SUPPORTED = (8, 10, 11)
LEAST = (8, 6)

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
"""Name -> the major versions that have it, for names that we use and that not all have."""


def major_of(version: str) -> int:
    """The major version, if it is one that we build for.

    Args:
        version: as TensorRT says it, "10.16.1.11".

    Raises:
        EngineError: another version than 8.6, 10 or 11.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    found = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if found[0] not in SUPPORTED or found < LEAST:
        raise EngineError(
            f"TensorRT {version} is installed. Expected 8.6, 10 or 11: "
            'pip install "tensorrt>=11,<12" (JetPack 6 brings 8.6).'
        )
    return found[0]


def is_typed(major: int) -> bool:
    """Whether precisions stand in the graph (and not in builder flags)."""
    return major >= 10


def check_precision(precision: EnginePrecision, version: str, device: Device) -> None:
    """Raise UsageError if this TensorRT, or this GPU, does not have a precision.

    Args:
        precision: of the engine.
        version: of TensorRT.
        device: that it will run on.
    """
    if precision not in TYPED_ONLY:
        return
    option = f"`engine_precision={precision}`"
    capability, generation = TYPED_ONLY[precision]
    instead = "Build with `engine_precision=float16`"
    if precision != "bfloat16":
        instead += " or `engine_precision=int8`"
    if not is_typed(major_of(version)):
        raise UsageError(
            f"{option}: TensorRT {version} is installed, and {precision} engines need 10 or later. "
            f'{instead}, or: pip install "tensorrt>=11,<12"'
        )
    if device.capability < capability:
        have, need = (".".join(map(str, pair)) for pair in (device.capability, capability))
        raise UsageError(
            f"{option}: {device.name} has compute capability {have}, and {precision} needs {need} "
            f"({generation}) or later. {instead}."
        )


def network_flags(trt: Any) -> int:
    """What `Builder.create_network` is given: strongly typed, or with an explicit batch axis."""
    if is_typed(major_of(trt.__version__)):
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


def set_precision(trt: Any, config: trt.IBuilderConfig, precision: EnginePrecision) -> None:
    """Allow a precision, where flags do that; a typed graph says it itself.

    INT8 comes from Q/DQ nodes in either case, and what has none may run in float16.
    """
    if is_typed(major_of(trt.__version__)):
        return
    config.set_flag(trt.BuilderFlag.FP16)
    if precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)


def own_kernels_only(trt: Any, config: trt.IBuilderConfig) -> None:
    """Build without cuBLAS and cuDNN, so that the engine runs where they are not installed.

    TensorRT's own GEMM kernels serve this model; 11 has no other sources at all.
    """
    sources = (trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS)
    config.set_tactic_sources(sum(1 << int(source) for source in sources))
    if not is_typed(major_of(trt.__version__)):
        feature = trt.PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805
        config.set_preview_feature(feature, True)


def parser_problem(trt: Any, error: trt.ParserError) -> str:
    """What a parser stumbled over: node, operator (which 8.6 does not tell) and reason."""
    reason = (str(error.desc()).strip().splitlines() or ["no reason given"])[0]
    if is_typed(major_of(trt.__version__)):
        operator = error.node_operator()
        return f"node {error.node_name()}{f' ({operator})' if operator else ''}: {reason}"
    return f"node number {error.node()}: {reason}"


def weights_from_file(
    trt: Any, refitter: trt.Refitter, logger: trt.ILogger, path: str
) -> list[str] | None:
    """Hand the weights of an ONNX file to a refitter. Returns problems, which are none on success.

    None: 8.6 cannot do that; its weights are set by name.
    """
    if not is_typed(major_of(trt.__version__)):
        return None
    parser: trt.OnnxParserRefitter = trt.OnnxParserRefitter(refitter, logger)
    if parser.refit_from_file(path):
        return []
    problems = [parser_problem(trt, parser.get_error(i)) for i in range(parser.num_errors)]
    return problems or ["no reason given"]


def scratch_bytes(trt: Any, engine: trt.ICudaEngine) -> int:
    """Device memory that an execution context of the engine takes for activations."""
    if is_typed(major_of(trt.__version__)):
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size)


def watch(
    trt: Any,
    config: trt.IBuilderConfig,
    *,
    on_start: Callable[[str, str | None, int], None],
    on_step: Callable[[str], bool],
) -> None:
    """Report the build's phases, from 10 on; 8.6 has no such interface and stays silent.

    Args:
        trt: the module.
        config: of the build; it keeps the monitor alive.
        on_start: told a phase's name, its parent's name if any, and its number of steps.
        on_step: told the phase whose next step is done; False stops the build.
    """
    if not is_typed(major_of(trt.__version__)):
        return

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # only known at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            on_start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return on_step(phase_name)

    config.progress_monitor = Monitor()
