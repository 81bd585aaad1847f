"""The TensorRT that is installed, the GPU it runs on, and whether the driver is new enough."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from mwa_export.errors import EngineError, MissingPackageError, RuntimeUnavailableError
from mwa_export.optional import require, versions_of
from mwa_export.trt.device import DRIVER, Device, select_device
from mwa_export.trt.versions import TensorRt, tensorrt_from_module

_CUDA_MAJORS = range(11, 16)  # in names of packages: tensorrt-cu13-bindings


def load_tensorrt() -> TensorRt:
    """Import TensorRT.

    Raises:
        MissingPackageError: not installed, or its libraries cannot be loaded.
        EngineError: another version than 8.6, 10 or 11.
    """
    return tensorrt_from_module(require("tensorrt", extra="tensorrt", why="build and run engines"))


def find_tensorrt(device: int = 0) -> tuple[TensorRt, Device]:
    """Import TensorRT, and make the GPU current that it will run on.

    Raises:
        MissingPackageError, EngineError: see `load_tensorrt`.
        RuntimeUnavailableError: no such GPU, or a driver that is too old.
    """
    tensorrt, gpu = load_tensorrt(), select_device(device)
    check_driver(tensorrt.version, gpu)
    return tensorrt, gpu


def check_driver(version: str, device: Device) -> None:
    """Raise RuntimeUnavailableError if the driver is too old for the CUDA of TensorRT.

    Any driver of the same CUDA major version will do. If TensorRT was not installed by pip, the
    CUDA version that it needs is unknown here, and TensorRT itself reports a mismatch.
    """
    needed = _cuda_of(version)
    if needed is not None and device.driver < 1000 * needed:
        have = f"{device.driver // 1000}.{device.driver % 1000 // 10}"
        raise RuntimeUnavailableError(
            f"the NVIDIA driver is too old: TensorRT {version} is built for CUDA {needed}, and the "
            f"driver runs CUDA {have} at most. Install a newer driver, or TensorRT for this one: "
            f"pip install tensorrt-cu{device.driver // 1000}"
        )


def _cuda_of(version: str) -> int | None:
    packages = {f"tensorrt-cu{major}-bindings": major for major in _CUDA_MAJORS}
    found = versions_of(*packages)
    return next((packages[name] for name in found if found[name] == version), None)


@dataclass(frozen=True, slots=True)
class EngineHost:
    """TensorRT and the GPU that it would run on, or the reason why one is missing."""

    version: str = ""  # of TensorRT
    device: Device | None = None
    missing: str = ""  # why the device is None: a sentence


def engine_host(device: int = 0) -> EngineHost:
    """Look for TensorRT and a GPU, and make the GPU current."""
    try:
        tensorrt, found = find_tensorrt(device)
    except (EngineError, MissingPackageError, RuntimeUnavailableError) as error:
        return EngineHost(missing=str(error).rstrip("."))
    return EngineHost(tensorrt.version, found)


def driver_here() -> bool:
    """Whether an NVIDIA driver is installed. Starts nothing."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return False
    return True
