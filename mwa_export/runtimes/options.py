"""The supported runtimes and precisions, and the options that select them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mwa_export.cpu import check_threads
from mwa_export.errors import check_option

AUTO = "auto"

LABELS = {
    "cuda": "ONNX Runtime on CUDA",
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "torch": "PyTorch",
    "tensorrt": "TensorRT",
}

PRECISIONS = {
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
    "cuda": ("float32", "float16"),
    "torch": ("float32",),
    "tensorrt": ("float16", "bfloat16", "int8", "float8"),
}

NVIDIA = ("tensorrt", "cuda")
"""Runtimes for NVIDIA GPUs."""


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """Options for opening a bundle: runtime, precision, threads and device."""

    runtime: str = AUTO  # or a key of PRECISIONS
    precision: str = AUTO  # or one that PRECISIONS lists for the runtime
    threads: int | None = None  # None: all cores available to this process
    device: int = 0  # number of the GPU, for TensorRT and CUDA
    allow_slow: bool = False  # allow precisions that are slower than float32 on this CPU
    check: bool = True  # check that the conformance vectors are reproduced
    reference: Path | None = None  # the checkpoint, for runtime "torch"

    def __post_init__(self) -> None:
        every = sorted({p for precisions in PRECISIONS.values() for p in precisions})
        runtimes = (AUTO, *PRECISIONS)
        check_option("runtime", self.runtime, self.runtime in runtimes, ", ".join(runtimes))
        known = (AUTO, *PRECISIONS.get(self.runtime, every))
        check_option("precision", self.precision, self.precision in known, ", ".join(known))
        check_threads("threads", self.threads)
        check_option("device", self.device, self.device >= 0, "at least 0")
