"""Open a bundle on a given runtime, or on the best one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import GraphFile
from mwa_export.cpu import cores, fast_bfloat16, instruction_sets
from mwa_export.errors import UsageError
from mwa_export.runtimes.backend import Backend
from mwa_export.runtimes.choose import Choice, choose
from mwa_export.runtimes.machine import this_machine
from mwa_export.runtimes.onnxrt import OnnxBackend
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.spec import Tower


@dataclass(frozen=True, slots=True)
class Opened:
    """An opened backend, and the choice that led to it."""

    backend: Backend
    choice: Choice


def open_backend(
    bundle: Bundle,
    options: RuntimeOptions | None = None,
    *,
    graphs: Mapping[Tower, GraphFile] | None = None,
) -> Opened:
    """Open a bundle on the runtime in ``options``, or on the best one that `auto` finds.

    ``graphs``: on CPUs, graphs to run instead of those of the chosen precision.

    Raises:
        RuntimeUnavailableError: the runtime is not installed, or is slower than float32 on this
            CPU.
        BundleError: the bundle has no graph for the runtime.
        VerificationError: the runtime does not reproduce the conformance vectors.
        UsageError: options contradict each other.
    """
    options = options or RuntimeOptions()
    choice = choose(bundle.manifest, options, this_machine(bundle.manifest, options))
    return Opened(_OPEN[choice.runtime](bundle, choice, options, dict(graphs or {})), choice)


def _open_cpu(
    bundle: Bundle, choice: Choice, options: RuntimeOptions, graphs: dict[Tower, GraphFile]
) -> Backend:
    if choice.precision == "int8":
        for tower in bundle.manifest.towers:
            graphs.setdefault(tower, bundle.graph(tower, precision="int8", dialect=choice.runtime))
    return cpu_backend(
        bundle,
        choice.runtime,
        graphs,
        threads=options.threads or cores(),
        precision=None if choice.precision == "int8" else choice.precision,
        check=options.check,
    )


def cpu_backend(
    bundle: Bundle,
    runtime: str,
    graphs: Mapping[Tower, GraphFile],
    *,
    threads: int | None = None,
    precision: str | None = None,
    check: bool = False,
) -> Backend:
    """Open a CPU runtime, with some of the bundle's float32 graphs replaced.

    Args:
        bundle: an opened bundle.
        runtime: "openvino" or "onnxruntime".
        graphs: replacements by tower.
        threads: None uses all cores available to the process.
        precision: on OpenVINO, of everything that is not INT8; None: bfloat16 on CPUs that are fast
            with it.
        check: check that the conformance vectors are reproduced.
    """
    if runtime == "onnxruntime":
        return OnnxBackend(bundle, graphs=graphs, threads=threads, check=check)
    from mwa_export.runtimes.ov import OpenVinoBackend

    if precision is None:
        precision = "bfloat16" if fast_bfloat16(instruction_sets()) else "float32"
    return OpenVinoBackend(bundle, graphs=graphs, threads=threads, precision=precision, check=check)


def _open_cuda(
    bundle: Bundle, choice: Choice, options: RuntimeOptions, graphs: dict[Tower, GraphFile]
) -> Backend:
    if choice.precision == "float16":
        for tower in bundle.manifest.towers:
            graphs.setdefault(tower, bundle.graph(tower, precision="float16"))
    return OnnxBackend(bundle, graphs=graphs, check=options.check, cuda=options.device)


def _open_tensorrt(
    bundle: Bundle, choice: Choice, options: RuntimeOptions, graphs: dict[Tower, GraphFile]
) -> Backend:
    from mwa_export.runtimes.trt import TensorRtBackend

    if graphs:
        raise UsageError(
            "`graphs` cannot be used with TensorRT, which runs engines. Use `runtime=onnxruntime`."
        )
    return TensorRtBackend(
        bundle, engines=choice.engines, device=options.device, check=options.check
    )


def _open_torch(
    bundle: Bundle, _choice: Choice, options: RuntimeOptions, _graphs: dict[Tower, GraphFile]
) -> Backend:
    """Open the unmerged reference from its checkpoint, which is not part of the bundle."""
    from mwa_export.model.load import ModelSource, load_model
    from mwa_export.model.options import ModelOptions
    from mwa_export.runtimes.pytorch import TorchBackend

    size = bundle.manifest.model.backbone.image_size
    if options.reference is not None:
        like = ModelOptions(image_size=size)
        return TorchBackend(load_model(ModelSource(options.reference), like))
    raise UsageError(
        f"`runtime=torch`: {bundle.path} does not contain the checkpoint that it was exported "
        "from. Pass it: `reference=CHECKPOINT`"
    )


_OPEN: dict[str, Callable[..., Backend]] = {
    "onnxruntime": _open_cpu,
    "openvino": _open_cpu,
    "cuda": _open_cuda,
    "torch": _open_torch,
    "tensorrt": _open_tensorrt,
}
