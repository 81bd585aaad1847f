"""Find the installed TensorRT and the GPU, and check that the driver is new enough."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field

from mwa_export.bundle.engine import COMPILERS, TENSORRT, TENSORRT_RTX, Compiler
from mwa_export.errors import EngineError, MissingPackageError, RuntimeUnavailableError
from mwa_export.optional import require, versions_of
from mwa_export.trt.device import DRIVER, Device, select_device
from mwa_export.trt.rtx import TensorRtRtx
from mwa_export.trt.versions import TensorRt, tensorrt_from_module

_CUDA_MAJORS = range(11, 16)  # CUDA versions in package names such as tensorrt-cu13-bindings


def load_tensorrt(compiler: Compiler = TENSORRT) -> TensorRt:
    """Import TensorRT, or TensorRT-RTX.

    Raises:
        MissingPackageError: not installed, or its libraries cannot be loaded.
        EngineError: the version is not 8.6, 10 from 10.12 on, or 11.
    """
    if compiler == TENSORRT_RTX:
        return load_rtx()
    return tensorrt_from_module(require("tensorrt"))


def load_rtx() -> TensorRtRtx:
    """Import TensorRT-RTX.

    Raises:
        MissingPackageError: not installed, or its libraries cannot be loaded.
    """
    return TensorRtRtx(require("tensorrt_rtx_bindings"))


def find_tensorrt(device: int = 0, compiler: Compiler = TENSORRT) -> tuple[TensorRt, Device]:
    """Import TensorRT or TensorRT-RTX, and make its GPU current.

    Raises:
        MissingPackageError, EngineError: see `load_tensorrt`.
        RuntimeUnavailableError: there is no such GPU, or the driver is too old.
    """
    tensorrt, gpu = load_tensorrt(compiler), select_device(device)
    check_driver(tensorrt, gpu)
    return tensorrt, gpu


def check_driver(tensorrt: TensorRt, device: Device) -> None:
    """Raise RuntimeUnavailableError if the driver is too old for the CUDA of TensorRT.

    Any driver of the same CUDA major version is sufficient. If TensorRT was not installed by pip,
    the CUDA version that it needs is unknown here, and TensorRT itself reports a mismatch.
    """
    needed = _cuda_of(tensorrt)
    if needed is not None and device.driver < 1000 * needed:
        have = f"{device.driver // 1000}.{device.driver % 1000 // 10}"
        raise RuntimeUnavailableError(
            f"the NVIDIA driver is too old: {tensorrt.name} is built for CUDA {needed}, and the "
            f"driver runs CUDA {have} at most. Install a newer driver, or TensorRT for this one: "
            f"pip install {tensorrt.compiler}-cu{device.driver // 1000}"
        )


def _cuda_of(tensorrt: TensorRt) -> int | None:
    packages = {f"{tensorrt.compiler}-cu{major}-bindings": major for major in _CUDA_MAJORS}
    found = versions_of(*packages)
    return next((packages[name] for name in found if found[name] == tensorrt.version), None)


def check_lean_runtime(tensorrt: TensorRt) -> None:
    """Raise MissingPackageError if version-compatible engines cannot be built.

    They contain TensorRT's lean runtime, a separate library that the builder loads.
    """
    library = f"libnvinfer_lean.so.{tensorrt.version.partition('.')[0]}"
    try:
        ctypes.CDLL(library)
    except OSError:
        # Its Python package loads the library from a separate package.
        require("tensorrt_lean", f"build version-compatible engines ({library})")


@dataclass(frozen=True, slots=True)
class EngineHost:
    """The installed TensorRT and TensorRT-RTX, and the GPU that they would use."""

    versions: Mapping[Compiler, str] = field(default_factory=dict)
    device: Device | None = None
    missing: str = ""  # why there is no version or no device, as a sentence


def engine_host(device: int = 0) -> EngineHost:
    """Find TensorRT, TensorRT-RTX and a GPU, and make the GPU current."""
    loaded: dict[Compiler, TensorRt] = {}
    reasons: list[str] = []
    for compiler in COMPILERS:
        try:
            loaded[compiler] = load_tensorrt(compiler)
        except (EngineError, MissingPackageError) as error:
            reasons.append(str(error))
    if not loaded:
        return EngineHost(missing=reasons[0].rstrip("."))
    try:
        found = select_device(device)
    except RuntimeUnavailableError as error:
        return EngineHost(missing=str(error).rstrip("."))
    for compiler, tensorrt in [*loaded.items()]:
        try:
            check_driver(tensorrt, found)
        except RuntimeUnavailableError as error:
            del loaded[compiler]
            reasons.append(str(error))
    if not loaded:
        return EngineHost(missing=reasons[-1].rstrip("."))
    return EngineHost({c: tensorrt.version for c, tensorrt in loaded.items()}, found)


def driver_here() -> bool:
    """Whether an NVIDIA driver is installed. Does not start the GPU."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return False
    return True
