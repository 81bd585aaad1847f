"""Choose the runtime and precision for a bundle on a machine, with the reasons."""

from __future__ import annotations

from dataclasses import dataclass

from mwa_export.bundle.engine import Engine, MeasuredEngines
from mwa_export.bundle.manifest import Manifest
from mwa_export.bundle.quantization import Measured
from mwa_export.cpu import fast_bfloat16, fast_int8
from mwa_export.errors import RuntimeUnavailableError, UsageError
from mwa_export.metrics.verdict import Decision
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
"""What `auto` looks at, the fastest first; on CPUs measured in docs/runtimes.md."""
_MEASURED_FIRST = ("int8", "float8", "bfloat16")  # precisions that `auto` takes after a measurement
_INSTALL = {
    "openvino": 'OpenVINO is not installed. Run: pip install "mwa-export[openvino]"',
    "cuda": "this ONNX Runtime has no CUDA. Run: pip install onnxruntime-gpu (uninstall the other)",
    "onnxruntime": "ONNX Runtime is not installed. Run: pip install onnxruntime",
    "torch": 'PyTorch is not installed. Run: pip install "mwa-export[export]"',
}
_NO_FLOAT16 = "the bundle has no float16 graphs. Make them: `mwa-export quantize` with `float16`"


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen runtime and precision, with the reasons."""

    runtime: str
    precision: str
    reason: str  # a sentence for people
    rejected: tuple[str, ...] = ()  # what would be faster, and why it was not taken
    engines: tuple[Engine, ...] = ()  # that TensorRT runs, one per tower


def choose(manifest: Manifest, options: RuntimeOptions, machine: Machine) -> Choice:
    """Decide what to run, and say why. Depends on its arguments alone.

    `auto` takes 8 bits and bfloat16 only if their recall was measured for this bundle and passed:
    a machine alone must not change results. Float16 needs no such measurement: engines and graphs
    in it were made for this bundle by command, and checked.

    Raises:
        RuntimeUnavailableError: nothing that was asked for can run here.
        UsageError: a GPU was named, and what runs uses none.
    """
    choice = _choice(manifest, options, machine)
    if options.device and choice.runtime not in NVIDIA:
        raise UsageError(
            f"`device={options.device}`: {LABELS[choice.runtime]} uses no GPU. Leave `device` out, "
            f"or name a runtime that does: {' or '.join(f'`runtime={name}`' for name in NVIDIA)}"
        )
    return choice


def _choice(manifest: Manifest, options: RuntimeOptions, machine: Machine) -> Choice:
    if options.runtime == "torch":
        _need("torch", machine)
        return Choice("torch", "float32", "PyTorch with float32: it was asked for")
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
            precision = "float32"  # the same runtime with what the bundle has
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
        return Choice("cuda", "float32", "ONNX Runtime on CUDA with float32: it was asked for")
    wanted = " ".join(part for part in (options.runtime, options.precision) if part != AUTO)
    details = "; ".join(dict.fromkeys(rejected)) or "No runtime on this machine has this precision"
    raise RuntimeUnavailableError(f"{wanted or 'no runtime'} cannot be run here. {details}.")


def _worth_saying(manifest: Manifest, runtime: str, precision: str, machine: Machine) -> bool:
    """Whether `auto` says why it passed something by: not what no one here could expect."""
    if runtime not in NVIDIA:
        return True
    if runtime == "tensorrt":
        built = {engine.precision for engine in manifest.engines} or {"float16"}
        return machine.nvidia and precision in built
    return machine.nvidia


def _obstacle(
    manifest: Manifest, runtime: str, precision: str, options: RuntimeOptions, machine: Machine
) -> str | None:
    """Why this is not taken; None: nothing speaks against it."""
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
        return f"{slow} (`allow_slow` runs it nevertheless)"
    asked = options.precision == precision
    if precision in _MEASURED_FIRST and not asked:
        found = _measured(manifest, runtime, precision, machine)
        if found is None:
            return f"its recall was not measured for this bundle (`precision={precision}` runs it)"
        overflowed = isinstance(found, Measured) and found.overflowed
        if overflowed and fast_int8(machine.sets) is not False:
            return (
                "its recall was measured on a CPU where its sums overflow. Measure it here: "
                f"`mwa-export quantize` (`precision={precision}` runs it)"
            )
        if not found.decision.takes:
            return f"{_said(found.decision)} (`precision={precision}` runs it)"
    return None


def _said(decision: Decision) -> str:
    """What was decided about recall."""
    end = {
        "passes": "inside this bundle's budget",
        "fails": "ABOVE this bundle's budget",
        "undecided": "and the data cannot tell whether that is inside this bundle's budget",
    }[decision.verdict]
    taken = "; taken on your word" if decision.accepted else ""
    return f"worst change of recall {decision.words()}, {end}{taken}"


def _slow(runtime: str, precision: str, machine: Machine) -> str | None:
    """Why this processor should not run it; None: no known reason."""
    sets = machine.sets
    if runtime in NVIDIA:
        return None
    if precision == "bfloat16" and fast_bfloat16(sets) is False:
        return "this CPU has no bfloat16 instructions and would run it slower than float32"
    if precision != "int8" or fast_int8(sets) is not False or sets is None:
        return None
    without = "this CPU has no VNNI or dot product instructions"
    if runtime == "openvino":
        return (
            f"{without}: OpenVINO's int8 is slower than float32 on it, and its sums overflow, "
            "which costs recall"
        )
    if "avx2" not in sets:
        return f"{without} and would run it slower than float32"
    return None  # ONNX Runtime's exact kernels for AVX2 beat every float32: benchmarks/cpu.py


def _reason(
    manifest: Manifest, runtime: str, precision: str, options: RuntimeOptions, machine: Machine
) -> str:
    parts = ["it was asked for" if options.runtime == runtime else "the fastest that can run here"]
    found = _measured(manifest, runtime, precision, machine)
    if found is not None:
        parts.append(_said(found.decision))
    elif precision != "float32":
        parts.append("its recall was not measured for this bundle")
    if runtime not in NVIDIA and precision in ("int8", "bfloat16") and machine.sets is None:
        parts.append("this system does not tell whether the CPU is fast at it")
    return f"{LABELS[runtime]} with {precision}: {'; '.join(parts)}"


def _has(manifest: Manifest, precision: str, dialect: str) -> bool:
    """Whether both towers have such a graph."""
    wanted = (precision, dialect)
    found = {g.spec.tower for g in manifest.graphs if (g.precision, g.dialect) == wanted}
    return len(found) == len(manifest.towers)


def _engines(
    manifest: Manifest, precision: str, machine: Machine
) -> tuple[tuple[Engine, ...], str | None]:
    """The engines that TensorRT would run, the vision tower's first, or why it cannot."""
    host = machine.engines
    if not manifest.engines:
        need = "`mwa-export trt`, `engine_precision=float16`"
        return (), f"the bundle has no engines. Build them: {need}"
    if host is None or host.device is None:
        return (), "no TensorRT" if host is None else host.missing
    found, obstacles = usable_engines(manifest, precision, host)
    return found, None if len(found) == len(manifest.towers) else "; ".join(obstacles)


def _measured(
    manifest: Manifest, runtime: str, precision: str, machine: Machine
) -> Measured | MeasuredEngines | None:
    """Measurements of this bundle, or of the engines that would run."""
    if runtime == "tensorrt":
        found = [engine.measured for engine in _engines(manifest, precision, machine)[0]]
        return found[0] if found and found.count(found[0]) == len(found) else None
    entries = () if manifest.quantization is None else manifest.quantization.measured
    wanted = (runtime, precision)
    return next((e for e in entries if (e.runtime, e.precision) == wanted), None)


def _need(runtime: str, machine: Machine) -> None:
    if runtime not in machine.runtimes:
        raise RuntimeUnavailableError(f"`runtime={runtime}`: {_INSTALL[runtime]}")
