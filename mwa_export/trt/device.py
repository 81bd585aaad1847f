"""GPUs and their driver, through the driver's library. Needs neither the CUDA toolkit nor torch."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, field
from typing import Any

from mwa_export.errors import RuntimeUnavailableError

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_OUT_OF_MEMORY, _INSUFFICIENT, _NO_DEVICE = 2, 35, 100  # of CUresult
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_NAME_BYTES = 256
_NO_GPU = (
    "the NVIDIA driver finds no GPU. Check nvidia-smi and, if it is set, CUDA_VISIBLE_DEVICES; "
    "start containers with --gpus all."
)


class DeviceMemoryError(RuntimeUnavailableError):
    """The GPU does not have enough memory."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU that is current for this thread."""

    index: int
    name: str  # "NVIDIA H200"
    capability: tuple[int, int]  # (9, 0)
    memory: int  # total bytes
    free: int  # bytes free when it was selected
    driver: int  # newest CUDA version that the driver supports, 1000 * major + 10 * minor
    context: int = field(default=0, compare=False, repr=False)  # handle of its primary context

    @property
    def sm(self) -> str:
        """Name of its architecture: "sm90"."""
        return f"sm{self.capability[0]}{self.capability[1]}"


def select_device(index: int = 0) -> Device:
    """Find a GPU and make it current for this thread.

    Raises:
        RuntimeUnavailableError: there is no driver, it does not start, or there is no such GPU.
    """
    cuda = open_driver()
    version, count = cuda.integer("cuDriverGetVersion"), cuda.integer("cuDeviceGetCount")
    if not 0 <= index < count:
        raise RuntimeUnavailableError(
            f"`device={index}`: this machine has {count} NVIDIA GPU(s). Expected 0 to {count - 1}."
            if count
            else _NO_GPU
        )
    device = ctypes.c_int(cuda.integer("cuDeviceGet", index))
    name = ctypes.create_string_buffer(_NAME_BYTES)
    cuda.call("cuDeviceGetName", name, _NAME_BYTES, device)
    # The CUDA runtime, and therefore TensorRT, uses the primary context of a device.
    context = ctypes.c_void_p()
    cuda.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    cuda.call("cuCtxSetCurrent", context)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cuda.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return Device(
        index=index,
        name=name.value.decode(errors="replace"),
        capability=(
            cuda.integer("cuDeviceGetAttribute", _MAJOR, device),
            cuda.integer("cuDeviceGetAttribute", _MINOR, device),
        ),
        memory=total.value,
        free=free.value,
        driver=version,
        context=context.value or 0,
    )


def open_driver() -> Driver:
    """Open and initialize the driver's library.

    Raises:
        RuntimeUnavailableError: there is no driver, or it does not start.
    """
    return Driver(_library())


class Driver:
    """Calls libcuda and checks every result."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library; arguments wider than an int must be ctypes objects."""
        function = getattr(self._library, name, None)
        if function is None:
            raise RuntimeUnavailableError(
                f"the NVIDIA driver is too old: it lacks {name}. Install a newer driver."
            )
        status = function(*arguments)
        if status == _NO_DEVICE:
            raise RuntimeUnavailableError(_NO_GPU)
        if status == _INSUFFICIENT:
            raise RuntimeUnavailableError(
                "the NVIDIA driver is too old for this GPU or for CUDA. Install a newer driver and "
                "restart the machine."
            )
        if status == _OUT_OF_MEMORY:
            raise DeviceMemoryError(
                f"the GPU has no memory left ({name}). Stop other programs that use it, or lower "
                "the largest batch."
            )
        if status != 0:
            raise RuntimeUnavailableError(
                f"the NVIDIA driver does not work: {name} reports {self._reason(status)}. Check "
                "nvidia-smi, and restart the machine if the driver was just updated."
            )

    def integer(self, name: str, *arguments: Any) -> int:
        """Call a function that returns an integer."""
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def _reason(self, status: int) -> str:
        text = ctypes.c_char_p()
        found = self._library.cuGetErrorString(status, ctypes.byref(text))
        return f"{text.value.decode()} ({status})" if found == 0 and text.value else str(status)


def _library() -> Any:
    try:
        return ctypes.CDLL(DRIVER)
    except OSError as error:
        raise RuntimeUnavailableError(
            f"found no NVIDIA driver ({DRIVER} cannot be loaded), so engines cannot be built or "
            "run on this machine. Use a machine with an NVIDIA GPU and its driver; start "
            "containers with --gpus all. Without a GPU, OpenVINO and ONNX Runtime run the bundle's "
            "graphs."
        ) from error
