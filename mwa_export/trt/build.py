"""Build a serialized TensorRT engine from an ONNX graph and profiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mwa_export.bundle.engine import (
    HARDWARE_COMPATIBLE,
    REFIT,
    VERSION_COMPATIBLE,
    EnginePrecision,
    Profile,
)
from mwa_export.errors import BundleError, EngineError, ProfileError, UsageError, check_option
from mwa_export.files import new_file
from mwa_export.progress import Progress, Silent
from mwa_export.trt.device import Device
from mwa_export.trt.install import check_lean_runtime, load_rtx, load_tensorrt
from mwa_export.trt.layers import Inspection, read_build_log
from mwa_export.trt.rtx import check_capabilities
from mwa_export.trt.signals import signals_later
from mwa_export.trt.versions import Messages, TensorRt

if TYPE_CHECKING:
    import tensorrt as trt

GIB = 1 << 30
_SHOWN = 3  # most parser errors in a message


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options of `engine_from_onnx`."""

    workspace: int | None = None  # bytes of scratch memory; None: unlimited
    timing_cache: Path | None = None  # read if it exists; written after the build
    level: int | None = None  # 0 (fast build) to 5 (fast engine); None: TensorRT's own
    version_compatible: bool = False  # later releases of the same major version can load it
    hardware_compatible: bool = False  # all GPUs from Ampere on can load it
    refit: bool = False  # weights can be exchanged

    def __post_init__(self) -> None:
        if self.refit and self.version_compatible:
            raise UsageError(
                "`version_compatible` and `refit` cannot be combined: version-compatible engines "
                "run on TensorRT's lean runtime, which cannot exchange weights. Omit one of them."
            )
        level, workspace = self.level, self.workspace
        check_option("builder_level", level, level is None or 0 <= level <= 5, "0 to 5")
        fits = workspace is None or workspace >= 1 << 20
        check_option("workspace", f"{workspace} bytes", fits, "at least 1 MiB")

    @property
    def flags(self) -> tuple[str, ...]:
        """Options that determine where an engine can be loaded and refitted, for the manifest."""
        names = (VERSION_COMPATIBLE, HARDWARE_COMPATIBLE, REFIT)
        return tuple(name for name in names if getattr(self, name))


@dataclass(frozen=True, slots=True)
class Built:
    """Result of a build."""

    seconds: float
    warnings: tuple[str, ...] = ()
    layers: Inspection = field(default_factory=lambda: Inspection(()))  # with TensorRT-RTX only


def engine_from_onnx(
    onnx_path: Path,
    profiles: Sequence[Profile],
    out: Path,
    *,
    precision: EnginePrecision,
    device: Device | None,
    capabilities: Sequence[tuple[int, int]] = (),
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> Built:
    """Build an engine for the current GPU, or for RTX cards without a GPU, and write it.

    Args:
        onnx_path: the graph. For TensorRT 10 and 11, it must have the types in which it is to run;
            for 8.6, it must be float32, with Q/DQ for int8.
        profiles: at least one, each with shapes of every input of the graph.
        out: the engine's file, written atomically.
        precision: the lowest precision that 8.6 may use; later versions read precisions from the
            graph, and only they support bfloat16 and float8.
        device: the GPU; None: TensorRT-RTX builds for ``capabilities`` without a GPU.
        capabilities: compute capabilities of RTX cards.
        options: see BuildOptions.
        progress: called for each phase.

    Returns:
        Build time and layers, and a warning if the timing cache cannot be written; the engine is
        kept in that case.

    Raises:
        MissingPackageError: TensorRT is not installed.
        EngineError: the graph cannot be parsed or built, or there is not enough memory.
        ProfileError: the profiles do not fit the graph's inputs.
        UsageError: this GPU or this TensorRT does not support the options.
    """
    options = options or BuildOptions()
    if device is None:
        rtx = load_rtx()
        check_capabilities(rtx, capabilities)
        for capability in capabilities:
            rtx.check_precision(precision, capability, "an RTX card")
        tensorrt: TensorRt = rtx
    else:
        tensorrt = load_tensorrt()
        _check_options(tensorrt, device, precision, options)
    messages = Messages()
    builder = _builder(tensorrt, messages, device)
    network = builder.create_network(tensorrt.network_flags())
    _parse(tensorrt, network, onnx_path, messages)
    config = builder.create_builder_config()
    _configure(tensorrt, config, precision, options)
    if device is None:
        rtx.compile_for(config, capabilities)
    for profile in profiles:
        _add_profile(builder, network, config, profile, onnx_path)
    _use_timing_cache(config, options.timing_cache)
    with signals_later() as signals:
        phases = _Phases(onnx_path.stem, progress or Silent(), signals)
        tensorrt.watch(config, phases.start, phases.step)
        start = time.perf_counter()
        blob = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - start
    if phases.interrupted:
        raise KeyboardInterrupt
    if blob is None:
        raise EngineError(_why_not_built(onnx_path, messages, device, profiles, options))
    with new_file(out) as path:
        path.write_bytes(blob)
    layers = read_build_log(messages.layers)
    return Built(seconds, _write_timing_cache(config, options.timing_cache), layers)


def _check_options(
    tensorrt: TensorRt, device: Device, precision: EnginePrecision, options: BuildOptions
) -> None:
    """Raise an error for options that this GPU or this installation does not support."""
    if options.hardware_compatible and device.capability < (8, 0):
        raise UsageError(
            f"`hardware_compatible`: {device.name} is older than Ampere, the oldest generation "
            "that such engines support. Omit the option."
        )
    if options.hardware_compatible and precision == "float8":
        raise UsageError(
            "`hardware_compatible`: such engines run on all GPUs from Ampere on, but float8 needs "
            "Ada or Hopper. Omit the option, or build with `engine_precision=int8`."
        )
    if options.version_compatible:
        check_lean_runtime(tensorrt)
    tensorrt.check_precision(precision, device.capability, device.name)


class _Phases:
    """Shows the outermost phases of a build, and the steps of the current one."""

    def __init__(self, label: str, progress: Progress, signals: Sequence[int]) -> None:
        self._label, self._progress, self._signals = label, progress, signals
        self._outermost: str | None = None
        self._shown: str | None = None
        self.interrupted = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Show a phase that begins."""
        if parent is None:
            self._outermost = name
        if parent in (None, self._outermost):
            self._shown = name
            self._guard(lambda: self._progress(f"{self._label}: {name}", steps))

    def step(self, name: str) -> bool:
        """Count a finished step. Returns False to end the build."""
        if name == self._shown:
            self._guard(lambda: self._progress.advance(1))
        return not (self.interrupted or self._signals)

    def _guard(self, show: Callable[[], None]) -> None:
        """Keep Ctrl-C out of TensorRT's callback; the build ends at its next step."""
        try:
            show()
        except KeyboardInterrupt:
            self.interrupted = True


def _builder(tensorrt: TensorRt, messages: Messages, device: Device | None) -> trt.Builder:
    try:
        return tensorrt.trt.Builder(tensorrt.logger(messages))
    except TypeError as error:  # raised by the bindings if the library returns no builder
        raise EngineError(
            f"{tensorrt.name} cannot start on {_where(device)} "
            f"({messages.reason or error}). Check that this version supports the GPU and that the "
            "driver works (nvidia-smi)."
        ) from error


def _parse(
    tensorrt: TensorRt, network: trt.INetworkDefinition, path: Path, messages: Messages
) -> None:
    parser: trt.OnnxParser = tensorrt.trt.OnnxParser(network, tensorrt.logger(messages))
    # By path, so that weights in a data file are found.
    if parser.parse_from_file(str(path)):
        return
    problems = [tensorrt.parser_problem(parser.get_error(i)) for i in range(parser.num_errors)]
    details = listed(problems) or messages.reason or "no reason given"
    raise EngineError(
        f"{path}: {tensorrt.name} cannot parse this graph: {details}. Export the graph "
        "again with this version of mwa-export, or use a newer TensorRT."
    )


def listed(problems: Sequence[str], separator: str = "; ") -> str:
    """List the first problems, and the number of the others, for a message."""
    more = len(problems) - _SHOWN
    return separator.join([*problems[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _configure(
    tensorrt: TensorRt,
    config: trt.IBuilderConfig,
    precision: EnginePrecision,
    options: BuildOptions,
) -> None:
    trt = tensorrt.trt
    tensorrt.allow_precision(config, precision)
    tensorrt.own_kernels_only(config)
    # Keeps layer names and precisions in the engine, for reports.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)


def _add_profile(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    profile: Profile,
    path: Path,
) -> None:
    inputs = [network.get_input(index).name for index in range(network.num_inputs)]
    names = [shapes.name for shapes in profile]
    if sorted(inputs) != sorted(names):
        raise ProfileError(
            f"{path}: has the inputs {', '.join(inputs)}, but the profile is for "
            f"{', '.join(names)}. Expected shapes for every input of the graph."
        )
    shapes = builder.create_optimization_profile()
    for entry in profile:
        shapes.set_shape(entry.name, entry.min, entry.opt, entry.max)
    if config.add_optimization_profile(shapes) < 0:
        raise ProfileError(
            f"{path}: TensorRT rejects the shapes {_words(profile)}. Expected sizes that fit the "
            "inputs of the graph."
        )


def _use_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> None:
    """Use the kernel times that an earlier build measured, if there are any."""
    if path is None:
        return
    try:
        known = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UsageError(
            f"`timing_cache={path}`: cannot be read ({error.strerror}). Pass a file."
        ) from error
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        raise UsageError(
            f"`timing_cache={path}`: is not a timing cache, or was made on another GPU or by "
            "another version of TensorRT. Pass the path of a new file."
        )


def _write_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> tuple[str, ...]:
    """Write measured kernel times. Returns a warning if that fails."""
    if path is None:
        return ()
    try:
        with new_file(path) as partial:
            partial.write_bytes(config.get_timing_cache().serialize())
    except BundleError as error:
        return (f"`timing_cache`: not written, so the next build will measure again. {error}",)
    return ()


def _why_not_built(
    path: Path,
    messages: Messages,
    device: Device | None,
    profiles: Sequence[Profile],
    options: BuildOptions,
) -> str:
    if device is None or not messages.out_of_memory:
        reason = messages.reason or "TensorRT gave no reason; run again with -v for its log"
        return f"{path}: no engine could be built on {_where(device)}: {reason}."
    asked = f"{messages.requested / GIB:.1f} GiB at once" if messages.requested else "more memory"
    limit = (
        f"now {options.workspace / GIB:.1f} GiB"
        if options.workspace is not None
        else "now unlimited"
    )
    return (
        f"{path}: {device.name} does not have enough memory for this engine: the build requested "
        f"{asked}, and {device.free / GIB:.1f} of {device.memory / GIB:.1f} GiB were free at the "
        f"start. Lower the largest shapes ({_words(profiles[-1])}) with `batch` or `lengths`, or "
        f"`workspace` ({limit}), or stop other programs that use the GPU."
    )


def _where(device: Device | None) -> str:
    return "this machine" if device is None else device.name


def _words(profile: Profile) -> str:
    return ", ".join(f"{entry.name} up to {'x'.join(map(str, entry.max))}" for entry in profile)
