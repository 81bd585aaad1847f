"""What machine a benchmark ran on: no host name, no paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from mwa_export.bench_result import Machine
from mwa_export.cpu import cores, cpu_name, instruction_sets

_PACKAGES = (
    *("mwa-export", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "onnx"),
    *("onnxscript", "nncf", "optimum", "optimum-onnx"),
)


def this_machine(threads: int) -> Machine:
    """The processor, the system and the versions of all that takes part."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(
        cpu=cpu_name(),
        cores=cores(),
        threads=threads,
        instruction_sets=tuple(sorted(instruction_sets() or ())),
        system=f"{platform.system()} {platform.machine()}",
        load=_load(),
        versions=versions,
    )


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):  # Windows, and systems that do not tell
        return None
