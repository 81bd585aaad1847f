"""Choose runtime and precision for a bundle on a machine, and explain the choice."""

from __future__ import annotations

from dataclasses import dataclass

from mwa_export.bundle.engine import Engine, MeasuredEngines
from mwa_export.bundle.manifest import Manifest
from mwa_export.bundle.quantization import Measured
from mwa_export.cpu import fast_bfloat16, fast_int8
from mwa_export.errors import RuntimeUnavailableError, UsageError
from mwa_export.metrics.verdict import Decision
from mwa_export.optional import PACKAGES
from mwa_export.runtimes.machine import Machine
from mwa_export.runtimes.options import AUTO, LABELS, NVIDIA, RuntimeOptions
from mwa_export.trt.engine import usable_engines

ORDER = (
    ("tensorrt", "int8"),
    ("tensorrt", "float8"),
    ("tensorrt", "float16"),
    ("tensorrt", "bfloat16"),
    ("cuda", "float16"),
    ("openvino", "int8"),
    ("onnxruntime", "int8"),
    ("openvino", "bfloat16"),
    ("openvino", "float32"),
    ("onnxruntime", "float32"),
)
"""Order in which `auto` tries, fastest first; for CPUs, docs/runtimes.md has measurements."""
_MEASURED_FIRST = ("int8", "float8", "bfloat16")  # `auto` needs a measurement for these
_INSTALL = {
    "openvino": f"OpenVINO is not installed. Run: {PACKAGES['openvino'].command}",
    "cuda": "this ONNX Runtime has no CUDA. Run: pip install onnxruntime-gpu (uninstall the other)",
    "onnxruntime": f"ONNX Runtime is not installed. Run: {PACKAGES['onnxruntime'].command}",
    "torch": f"PyTorch is not installed. Run: {PACKAGES['torch'].command}",
}
_NO_FLOAT16 = "the bundle has no float16 graphs. Make them: `mwa-export quantize` with `float16`"


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen runtime and precision, with the reasons."""

    runtime: str
    precision: str
    reason: str  # a sentence for display
    rejected: tuple[str, ...] = ()  # faster options, and why they were not chosen
    engines: tuple[Engine, ...] = ()  # for TensorRT, one per tower


def choose(manifest: Manifest, options: RuntimeOptions, machine: Machine) -> Choice:
    """Choose what to run, and explain why. Depends only on its arguments.

    `auto` chooses 8 bits and bfloat16 only if their recall was measured for this bundle and passed,
    because results must not depend on the machine alone. Float16 needs no such measurement, because
    float16 engines and graphs were explicitly made for this bundle, and checked.

    Raises:
        RuntimeUnavailableError: nothing that was requested can run here.
        UsageError: a GPU was given, but the chosen runtime does not use one.
    """
    choice = _choice(manifest, options, machine)
    if options.device and choice.runtime not in NVIDIA:
        raise UsageError(
            f"`device={options.device}`: {LABELS[choice.runtime]} does not use a GPU. Omit "
            f"`device`, or use {' or '.join(f'`runtime={name}`' for name in NVIDIA)}"
        )
    return choice


def _choice(manifest: Manifest, options: RuntimeOptions, machine: Machine) -> Choice:
    if options.runtime == "torch":
        _need("torch", machine)
        return Choice("torch", "float32", "PyTorch with float32: as requested")
    if options.runtime == "openvino":
        _need("openvino", machine)
    host = machine.engines
    if options.runtime == "tensorrt" and (not manifest.engines or not host or not host.device):
        _, missing = _engines(manifest, "float16", machine)
        raise RuntimeUnavailableError(f"`runtime=tensorrt`: {missing}.")
    rejected: list[str] = []
    for runtime, precision in ORDER:
        if options.runtime not in (AUTO, runtime) or options.precision not in (AUTO, precision):
            continue
        without_float16 = runtime == "cuda" and not _has(manifest, "float16", "onnx")
        if without_float16 and options.precision == AUTO:
            precision = "float32"  # CUDA with the graphs that the bundle has
            if runtime in machine.runtimes:
                rejected.append(f"{LABELS[runtime]} with float16: {_NO_FLOAT16}")
        obstacle = _obstacle(manifest, runtime, precision, options, machine)
        if obstacle is None:
            reason = _reason(manifest, runtime, precision, options, machine)
            engines = _engines(manifest, precision, machine)[0] if runtime == "tensorrt" else ()
            return Choice(runtime, precision, reason, tuple(rejected), engines)
        if options.runtime == runtime or _worth_saying(manifest, runtime, precision, machine):
            rejected.append(f"{LABELS[runtime]} with {precision}: {obstacle}")
    if options.runtime == "cuda" and options.precision == "float32":
        _need("cuda", machine)
        return Choice("cuda", "float32", "ONNX Runtime on CUDA with float32: as requested")
    wanted = " ".join(part for part in (options.runtime, options.precision) if part != AUTO)
    details = "; ".join(dict.fromkeys(rejected)) or "No runtime here supports this precision"
    raise RuntimeUnavailableError(f"{wanted or 'the bundle'} cannot run here. {details}.")


def _worth_saying(manifest: Manifest, runtime: str, precision: str, machine: Machine) -> bool:
    """Whether `auto` explains why it rejected an option; not for one that nobody expects here."""
    if runtime not in NVIDIA:
        return True
    if runtime == "tensorrt":
        built = {engine.precision for engine in manifest.engines} or {"float16"}
        return machine.nvidia and precision in built
    return machine.nvidia


def _obstacle(
    manifest: Manifest, runtime: str, precision: str, options: RuntimeOptions, machine: Machine
) -> str | None:
    """Why a runtime and precision cannot be chosen; None if they can."""
    if runtime == "tensorrt":
        _, missing = _engines(manifest, precision, machine)
        if missing is not None:
            return missing
    elif runtime not in machine.runtimes:
        return _INSTALL[runtime]
    if runtime != "tensorrt" and precision == "int8" and not _has(manifest, "int8", runtime):
        return "the bundle has no such graphs. Make them with `mwa-export quantize`"
    if runtime == "cuda" and precision == "float16" and not _has(manifest, "float16", "onnx"):
        return _NO_FLOAT16
    slow = _slow(runtime, precision, machine)
    if slow is not None and not options.allow_slow:
        return f"{slow} (run it anyway: `allow_slow`)"
    asked = options.precision == precision
    if precision in _MEASURED_FIRST and not asked:
        found = _measured(manifest, runtime, precision, machine)
        if found is None:
            return f"its recall was not measured for this bundle (run it: `precision={precision}`)"
        overflowed = isinstance(found, Measured) and found.overflowed
        if overflowed and fast_int8(machine.sets) is not False:
            return (
                "its recall was measured on a CPU where its sums overflow. Measure it here: "
                f"`mwa-export quantize` (run it: `precision={precision}`)"
            )
        if not found.decision.takes:
            return f"{_said(found.decision)} (run it anyway: `precision={precision}`)"
    return None


def _said(decision: Decision) -> str:
    """Describe the decision on recall."""
    end = {
        "passes": "within this bundle's budget",
        "fails": "OVER this bundle's budget",
        "undecided": "undecided whether that is within this bundle's budget",
    }[decision.verdict]
    taken = "; accepted by the user" if decision.accepted else ""
    return f"worst change of recall {decision.words()}, {end}{taken}"


def _slow(runtime: str, precision: str, machine: Machine) -> str | None:
    """Why this processor should not run a precision; None: no known reason."""
    sets = machine.sets
    if runtime in NVIDIA:
        return None
    if precision == "bfloat16" and fast_bfloat16(sets) is False:
        return "this CPU has no bfloat16 instructions, so bfloat16 would be slower than float32"
    if precision != "int8" or fast_int8(sets) is not False or sets is None:
        return None
    without = "this CPU has no VNNI or dot product instructions"
    if runtime == "openvino":
        return (
            f"{without}: OpenVINO's int8 is slower than float32 there, and its sums overflow, "
            "which costs recall"
        )
    if "avx2" not in sets:
        return f"{without}, so int8 would be slower than float32"
    return None  # ONNX Runtime's exact AVX2 kernels are faster than float32: benchmarks/cpu.py


def int8_runtimes(machine: Machine) -> tuple[str, ...]:
    """Installed CPU runtimes on which `auto` may choose INT8 on this processor, best first."""
    return tuple(
        runtime
        for runtime, precision in ORDER
        if precision == "int8"
        and runtime not in NVIDIA
        and runtime in machine.runtimes
        and _slow(runtime, precision, machine) is None
    )


def _reason(
    manifest: Manifest, runtime: str, precision: str, options: RuntimeOptions, machine: Machine
) -> str:
    parts = ["as requested" if options.runtime == runtime else "the fastest option that runs here"]
    found = _measured(manifest, runtime, precision, machine)
    if found is not None:
        parts.append(_said(found.decision))
    elif precision != "float32":
        parts.append("its recall was not measured for this bundle")
    if runtime not in NVIDIA and precision in ("int8", "bfloat16") and machine.sets is None:
        parts.append("the CPU's instruction sets are unknown, so it may be slow")
    return f"{LABELS[runtime]} with {precision}: {'; '.join(parts)}"


def _has(manifest: Manifest, precision: str, dialect: str) -> bool:
    """Whether all towers have a graph of this precision and dialect."""
    wanted = (precision, dialect)
    found = {g.spec.tower for g in manifest.graphs if (g.precision, g.dialect) == wanted}
    return len(found) == len(manifest.towers)


def _engines(
    manifest: Manifest, precision: str, machine: Machine
) -> tuple[tuple[Engine, ...], str | None]:
    """Return the engines that TensorRT would run, vision tower first, or why it cannot."""
    host = machine.engines
    if not manifest.engines:
        need = "`mwa-export trt`, `engine_precision=float16`"
        return (), f"the bundle has no engines. Build them: {need}"
    if host is None or host.device is None:
        return (), "TensorRT is not available" if host is None else host.missing
    found, obstacles = usable_engines(manifest, precision, host)
    return found, None if len(found) == len(manifest.towers) else "; ".join(obstacles)


def _measured(
    manifest: Manifest, runtime: str, precision: str, machine: Machine
) -> Measured | MeasuredEngines | None:
    """Return measurements of this bundle's graphs, or of the engines that would run."""
    if runtime == "tensorrt":
        found = [engine.measured for engine in _engines(manifest, precision, machine)[0]]
        return found[0] if found and found.count(found[0]) == len(found) else None
    entries = () if manifest.quantization is None else manifest.quantization.measured
    wanted = (runtime, precision)
    return next((e for e in entries if (e.runtime, e.precision) == wanted), None)


def _need(runtime: str, machine: Machine) -> None:
    if runtime not in machine.runtimes:
        raise RuntimeUnavailableError(f"`runtime={runtime}`: {_INSTALL[runtime]}")
