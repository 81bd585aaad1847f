"""TensorRT as it is installed here: the module, or what to install; and whether the driver is new
enough for it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType

from mwa_export.errors import EngineError, MissingPackageError, RuntimeUnavailableError
from mwa_export.optional import require
from mwa_export.trt.device import DRIVER, Device, select_device
from mwa_export.trt.versions import major_of

_CUDA_MAJORS = range(11, 16)  # in names of packages: tensorrt-cu13-bindings


def load_tensorrt() -> ModuleType:
    """The module `tensorrt`, of a version that we build for.

    Raises:
        MissingPackageError: not installed, or its libraries cannot be loaded.
        EngineError: another version than 8.6, 10 or 11.
    """
    module = require("tensorrt", extra="tensorrt", why="build and run engines")
    major_of(module.__version__)
    return module


def check_driver(version: str, device: Device) -> None:
    """Raise RuntimeUnavailableError if the driver is too old for the CUDA that TensorRT brings.

    Within a major version of CUDA every driver will do; where TensorRT was not installed by pip,
    nothing tells which CUDA it needs, and TensorRT itself will.

    Args:
        version: of TensorRT.
        device: with its driver's version.
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
    for major in _CUDA_MAJORS:
        try:
            found = metadata.version(f"tensorrt-cu{major}-bindings")
        except metadata.PackageNotFoundError:
            continue
        if found == version:
            return major
    return None


@dataclass(frozen=True, slots=True)
class EngineHost:
    """TensorRT and the GPU that it would run on; or why there are not both."""

    version: str = ""  # of TensorRT
    device: Device | None = None
    missing: str = ""  # why the device is None: a sentence


def engine_host(device: int = 0) -> EngineHost:
    """Look for TensorRT and a GPU, and make the GPU current.

    Args:
        device: number of the GPU.
    """
    try:
        version = load_tensorrt().__version__
        found = select_device(device)
        check_driver(version, found)
    except (EngineError, MissingPackageError, RuntimeUnavailableError) as error:
        return EngineHost(missing=str(error).rstrip("."))
    return EngineHost(version, found)


def driver_here() -> bool:
    """Whether an NVIDIA driver is installed. Starts nothing."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return False
    return True
