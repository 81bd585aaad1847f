"""Whether engines can run here: TensorRT, a driver and a GPU, asked without raising."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from mwa_export.errors import EngineError, MissingPackageError, RuntimeUnavailableError
from mwa_export.trt_device import DRIVER, Device, select_device
from mwa_export.trt_install import check_driver, load_tensorrt


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
