"""Our contenders: a bundle on every runtime and precision that it and the machine support."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mwa_export.bench.contenders import CannotRunError, Contender, Run
from mwa_export.bundle.bundle import Bundle
from mwa_export.runtimes.backend import Backend, embed
from mwa_export.runtimes.open import open_backend
from mwa_export.runtimes.options import NVIDIA, PRECISIONS, RuntimeOptions
from mwa_export.spec import Tower

NAMES = {
    "onnxruntime": "ORT",
    "openvino": "OpenVINO",
    "cuda": "ORT CUDA",
    "tensorrt": "TensorRT",
}
"""Runtime -> its name in the report. PyTorch is missing because it counts as a peer."""


def our_contenders(
    bundle: Bundle,
    runtimes: Sequence[str],
    *,
    threads: int,
    allow_slow: bool = False,
    device: int = 0,
) -> list[Contender]:
    """Make contenders for some runtimes, or for all NAMES if none are given, in all precisions.

    TensorRT runs only in precisions for which the bundle has engines, unless it is given
    explicitly.
    """
    built = {engine.precision for engine in bundle.manifest.engines}
    return [
        _contender(
            bundle,
            RuntimeOptions(
                runtime,
                precision,
                threads,
                allow_slow=allow_slow,
                device=device if runtime in NVIDIA else 0,
            ),
        )
        for runtime in NAMES
        if not runtimes or runtime in runtimes
        for precision in PRECISIONS[runtime]
        if runtime != "tensorrt" or runtime in runtimes or precision in built
    ]


def our_name(runtime: str, precision: str) -> str:
    """Name of one of our contenders in the report."""
    return f"mwa-export, {NAMES[runtime]} {precision}"


def _contender(bundle: Bundle, options: RuntimeOptions) -> Contender:
    runtime, precision = options.runtime, options.precision

    def open_(tower: Tower) -> Run:
        return partial(embed, _backend(bundle, options), tower)

    return Contender(our_name(runtime, precision), "ours", runtime, precision, open_)


def _backend(bundle: Bundle, options: RuntimeOptions) -> Backend:
    opened = open_backend(bundle, options)
    found = (opened.choice.runtime, opened.choice.precision)
    if found != (options.runtime, options.precision):
        raise CannotRunError(f"opens as {' '.join(found)} instead")
    return opened.backend
