"""Properties of the machine that determine the choice of a runtime: CPU, packages, GPU."""

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
    """Properties of a machine that determine the choice of a runtime."""

    sets: frozenset[str] | None  # instruction sets of the CPU; None: unknown
    runtimes: frozenset[str]  # installed ones: "onnxruntime", "openvino", "torch", "cuda"
    nvidia: bool = True  # an NVIDIA driver is installed
    engines: EngineHost | None = None  # what would run engines; None: not checked


def this_machine(
    manifest: Manifest | None = None, options: RuntimeOptions | None = None
) -> Machine:
    """Examine this machine, for a bundle.

    TensorRT is only checked if the bundle has engines, because importing it takes a while.
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
