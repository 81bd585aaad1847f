"""Every runtime behind one call: what this machine and this bundle can run, and which is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mwa_export.backend import Backend
from mwa_export.backend_onnx import GraphFile, OnnxBackend, cuda_available
from mwa_export.bundle import Bundle, Manifest
from mwa_export.config import Tower
from mwa_export.cpu import Machine, cores, fast_bfloat16, fast_int8, instruction_sets, pin_to_node
from mwa_export.errors import OptionsError, RuntimeUnavailableError

AUTO = "auto"
LABELS = {
    "cuda": "ONNX Runtime on CUDA",
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "torch": "PyTorch",
}
ORDER = (
    ("cuda", "float16"),
    ("openvino", "int8"),
    ("onnxruntime", "int8"),
    ("openvino", "bfloat16"),
    ("openvino", "float32"),
    ("onnxruntime", "float32"),
)
"""What `auto` looks at, the fastest first; measured in docs/runtimes.md."""
PRECISIONS = {
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
    "cuda": ("float32", "float16"),
    "torch": ("float32",),
}
_INSTALL = {
    "openvino": 'OpenVINO is not installed. Run: pip install "mwa-export[openvino]"',
    "cuda": "this ONNX Runtime has no CUDA. Run: pip install onnxruntime-gpu (uninstall the other)",
    "onnxruntime": "ONNX Runtime is not installed. Run: pip install onnxruntime",
    "torch": 'PyTorch is not installed. Run: pip install "mwa-export[export]"',
}


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What to run a bundle on."""

    runtime: str = AUTO  # or a key of PRECISIONS
    precision: str = AUTO  # or one that the runtime has
    threads: int | None = None  # None: all cores that this process may use
    streams: int | None = None  # parts of a batch side by side (OpenVINO); None: one per thread
    numa_node: int | None = None  # keep to the cores of this node
    allow_slow: bool = False  # also what this CPU runs slower than float32
    check: bool = True  # reproduce the conformance vectors first
    reference: Path | None = None  # the checkpoint, for runtime "torch"

    def __post_init__(self) -> None:
        if self.runtime not in (AUTO, *PRECISIONS):
            raise OptionsError(
                f"--runtime {self.runtime}: unknown. Expected: {', '.join((AUTO, *PRECISIONS))}."
            )
        known = PRECISIONS.get(self.runtime) or sorted(
            {p for ps in PRECISIONS.values() for p in ps}
        )
        if self.precision not in (AUTO, *known):
            raise OptionsError(
                f"--precision {self.precision}: not one of {', '.join((AUTO, *known))}."
            )
        for name in ("threads", "streams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionsError(f"--{name} {value}: expected 1 or more.")


@dataclass(frozen=True, slots=True)
class Choice:
    """What is run, and why."""

    runtime: str
    precision: str
    reason: str  # a sentence for people
    rejected: tuple[str, ...] = ()  # what would be faster, and why it was not taken


@dataclass(frozen=True, slots=True)
class Opened:
    """A backend that is ready, and the choice that led to it."""

    backend: Backend
    choice: Choice


def this_machine() -> Machine:
    """What choosing depends on."""
    found = {name for name in ("onnxruntime", "openvino", "torch") if find_spec(name) is not None}
    if "onnxruntime" in found and cuda_available():
        found.add("cuda")
    return Machine(instruction_sets(), frozenset(found))


def open_backend(
    bundle: Bundle,
    options: RuntimeOptions | None = None,
    *,
    graphs: Mapping[Tower, GraphFile] | None = None,
) -> Opened:
    """Open a bundle on the runtime that is asked for, or on the best that `auto` finds.

    Args:
        bundle: an opened bundle.
        options: see RuntimeOptions.
        graphs: graphs to run in place of those that the precision names; a CPU runtime only.

    Raises:
        RuntimeUnavailableError: not installed, or slower than float32 on this CPU.
        BundleError: the bundle has no graph for it.
        VerificationError: the runtime does not reproduce the conformance vectors.
        OptionsError: options that do not go together.
    """
    options = options or RuntimeOptions()
    if options.numa_node is not None:
        pin_to_node(options.numa_node)  # before the runtime starts its threads
    choice = choose(bundle.manifest, options, this_machine())
    return Opened(_OPEN[choice.runtime](bundle, choice, options, dict(graphs or {})), choice)


def choose(manifest: Manifest, options: RuntimeOptions, machine: Machine) -> Choice:
    """Decide what to run, and say why. Depends on its arguments alone.

    `auto` takes a precision below float32 only if its recall was measured for this bundle and
    passed: a machine alone must not change results.

    Raises:
        RuntimeUnavailableError: nothing that was asked for can run here.
    """
    if options.runtime == "torch":
        _need("torch", machine)
        return Choice("torch", "float32", "PyTorch with float32: it was asked for")
    rejected: list[str] = []
    for runtime, precision in ORDER:
        if options.runtime not in (AUTO, runtime) or options.precision not in (AUTO, precision):
            continue
        without_float16 = runtime == "cuda" and not _has(manifest, "float16", "onnx")
        if without_float16 and options.precision == AUTO:
            precision = "float32"  # the same runtime with what the bundle has
        obstacle = _obstacle(manifest, runtime, precision, options, machine)
        if obstacle is None:
            reason = _reason(manifest, runtime, precision, options, machine)
            return Choice(runtime, precision, reason, tuple(rejected))
        rejected.append(f"{LABELS[runtime]} with {precision}: {obstacle}")
    if options.runtime == "cuda" and options.precision == "float32":
        _need("cuda", machine)
        return Choice("cuda", "float32", "ONNX Runtime on CUDA with float32: it was asked for")
    wanted = " ".join(part for part in (options.runtime, options.precision) if part != AUTO)
    details = "; ".join(dict.fromkeys(rejected)) or "no runtime has this precision"
    raise RuntimeUnavailableError(f"{wanted or 'no runtime'} cannot be run here. {details}")


def _obstacle(
    manifest: Manifest, runtime: str, precision: str, options: RuntimeOptions, machine: Machine
) -> str | None:
    """Why this is not taken; None: nothing speaks against it."""
    if runtime not in machine.runtimes:
        return _INSTALL[runtime]
    if precision == "int8" and not _has(manifest, "int8", runtime):
        return "the bundle has no such graphs. Make them: mwa-export quantize BUNDLE --data DATA"
    if precision == "float16" and not _has(manifest, "float16", "onnx"):
        return "the bundle has no float16 graphs"
    slow = _slow(runtime, precision, machine)
    if slow is not None and not options.allow_slow:
        return f"{slow} (--allow-slow runs it nevertheless)"
    asked = options.precision == precision
    if precision in ("int8", "bfloat16") and not asked:
        found = _measured(manifest, runtime, precision)
        if found is None:
            return f"its recall was not measured for this bundle (--precision {precision} runs it)"
        if not found["passed"]:
            return (
                f"it dropped {found['recall_drop']:.2f} points of recall, above the bundle's "
                f"budget (--precision {precision} runs it)"
            )
    return None


def _slow(runtime: str, precision: str, machine: Machine) -> str | None:
    """Why this processor should not run it; None: nothing speaks against it, or nobody knows."""
    sets = machine.sets
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
    found = _measured(manifest, runtime, precision)
    if found is not None:
        verdict = "inside" if found["passed"] else "ABOVE"
        drop = max(0.0, found["recall_drop"])
        parts.append(f"worst recall drop {drop:.2f} points, {verdict} this bundle's budget")
    elif precision in ("int8", "bfloat16", "float16"):
        parts.append("its recall was not measured for this bundle")
    if precision in ("int8", "bfloat16") and machine.sets is None:
        parts.append("this system does not tell whether the CPU is fast at it")
    return f"{LABELS[runtime]} with {precision}: {'; '.join(parts)}"


def _has(manifest: Manifest, precision: str, dialect: str) -> bool:
    """Whether both towers have such a graph."""
    towers = {
        graph.spec.tower
        for graph in manifest.graphs
        if (graph.precision, graph.dialect) == (precision, dialect)
    }
    return len(towers) == 2


def _measured(manifest: Manifest, runtime: str, precision: str) -> dict[str, Any] | None:
    entries = (manifest.quantization or {}).get("measured", [])
    wanted = (runtime, precision)
    return next((e for e in entries if (e["runtime"], e["precision"]) == wanted), None)


def _need(runtime: str, machine: Machine) -> None:
    if runtime not in machine.runtimes:
        raise RuntimeUnavailableError(f"--runtime {runtime}: {_INSTALL[runtime]}")


def _open_cpu(
    bundle: Bundle, choice: Choice, options: RuntimeOptions, graphs: dict[Tower, GraphFile]
) -> Backend:
    towers: tuple[Tower, ...] = ("vision", "text")
    if choice.precision == "int8":
        for tower in towers:
            graphs.setdefault(tower, bundle.graph(tower, precision="int8", dialect=choice.runtime))
    threads = options.threads or cores()
    if choice.runtime == "onnxruntime":
        return OnnxBackend(bundle, graphs=graphs, threads=threads, check=options.check)
    from mwa_export.backend_openvino import OpenVinoBackend

    rest = choice.precision
    if rest == "int8":
        rest = "bfloat16" if fast_bfloat16(instruction_sets()) else "float32"
    return OpenVinoBackend(
        bundle,
        graphs=graphs,
        threads=threads,
        streams=options.streams,
        precision=rest,
        check=options.check,
    )


def _open_cuda(
    bundle: Bundle, choice: Choice, options: RuntimeOptions, graphs: dict[Tower, GraphFile]
) -> Backend:
    towers: tuple[Tower, ...] = ("vision", "text")
    if choice.precision == "float16":
        for tower in towers:
            graphs.setdefault(tower, bundle.graph(tower, precision="float16"))
    return OnnxBackend(bundle, graphs=graphs, check=options.check, cuda=True)


def _open_torch(
    bundle: Bundle, _choice: Choice, options: RuntimeOptions, _graphs: dict[Tower, GraphFile]
) -> Backend:
    """The unmerged reference, from the checkpoint; the bundle does not carry it."""
    from mwa_export.backend_torch import TorchBackend
    from mwa_export.model import ModelSource, load_model

    size = bundle.manifest.model.backbone.image_size
    if options.reference is not None:
        return TorchBackend(load_model(ModelSource(options.reference), image_size=size))
    raise OptionsError(
        f"--runtime torch: {bundle.path} does not carry the checkpoint that it was made from. Name "
        "it: --reference CHECKPOINT"
    )


_OPEN: dict[str, Callable[..., Backend]] = {
    "onnxruntime": _open_cpu,
    "openvino": _open_cpu,
    "cuda": _open_cuda,
    "torch": _open_torch,
}
