"""Facts that the choice of a runtime depends on: processor, installed runtimes, GPU."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from mwa_export.bundle.manifest import Manifest
from mwa_export.cpu import instruction_sets
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.runtimes.ort_session import cuda_available
from mwa_export.trt.install import EngineHost, driver_here, engine_host


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts that the choice of a runtime depends on."""

    sets: frozenset[str] | None
    runtimes: frozenset[str]  # "onnxruntime", "openvino", "cuda": installed, and usable as far
    # as their packages say
    nvidia: bool = True  # there is a driver
    engines: EngineHost | None = None  # who would run engines; None: nobody looked


def this_machine(
    manifest: Manifest | None = None, options: RuntimeOptions | None = None
) -> Machine:
    """Facts about this machine, for a bundle.

    TensorRT is looked at only if it has engines: importing it and starting a GPU take a while.
    """
    found = {name for name in ("onnxruntime", "openvino", "torch") if find_spec(name) is not None}
    if "onnxruntime" in found and cuda_available():
        found.add("cuda")
    asked = options is not None and options.runtime == "tensorrt"
    nvidia = driver_here()
    host = None
    if manifest is not None and manifest.engines and (nvidia or asked):
        host = engine_host(0 if options is None else options.device)
    return Machine(instruction_sets(), frozenset(found), nvidia, host)
