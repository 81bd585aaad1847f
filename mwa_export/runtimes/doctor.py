"""Examine this machine: processor, GPU, optional packages, and what to install."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

from mwa_export.cpu import cores, cpu_name, fast_bfloat16, fast_int8, instruction_sets
from mwa_export.optional import PACKAGES, Package, versions_of
from mwa_export.runtimes.choose import int8_runtimes
from mwa_export.runtimes.machine import this_machine
from mwa_export.version import __version__

_WAIT = 10  # timeout of nvidia-smi in seconds
_ONNX_RUNTIME = ("onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True, slots=True)
class Part:
    """Report on an optional package."""

    package: str  # name on a package index
    what: str  # purpose, such as "to read checkpoints"
    version: str | None  # None: not installed
    install: str  # the command that installs it


@dataclass(frozen=True, slots=True)
class Advice:
    """Something that is missing on this machine, or worth knowing about it."""

    text: str
    commands: tuple[str, ...] = ()  # to run in this order


@dataclass(frozen=True, slots=True)
class Doctor:
    """Report of `mwa-export doctor`."""

    version: str  # of mwa-export
    python: str
    system: str
    cpu: str
    cores: int  # available to this process
    instruction_sets: tuple[str, ...] | None  # None: unknown
    fast_int8: bool | None
    int8: tuple[str, ...]  # runtimes on which `auto` may choose INT8 on this CPU, best first
    fast_bfloat16: bool | None
    gpu: str | None  # name, driver and memory; None: no GPU found
    onnxruntime: str | None  # version; None: not installed
    cuda: bool  # whether the installed ONNX Runtime supports CUDA
    parts: tuple[Part, ...]

    def to_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return asdict(self)


def examine() -> Doctor:
    """Examine this machine. Loads no runtime except ONNX Runtime, and changes nothing."""
    machine, sets = this_machine(), instruction_sets()
    return Doctor(
        version=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_name(),
        cores=cores(),
        instruction_sets=None if sets is None else tuple(sorted(sets)),
        fast_int8=fast_int8(sets),
        int8=int8_runtimes(machine),
        fast_bfloat16=fast_bfloat16(sets),
        gpu=_gpu(),
        onnxruntime=next(iter(versions_of(*_ONNX_RUNTIME).values()), None),
        cuda="cuda" in machine.runtimes,
        parts=tuple(_part(p) for p in PACKAGES.values() if p.module != "onnxruntime"),
    )


def _part(package: Package) -> Part:
    name = package.distribution
    return Part(name, package.needed, versions_of(name).get(name), package.command)


def advice(found: Doctor) -> tuple[Advice, ...]:
    """Return what to install on this machine and what to know about it, most useful first."""
    lacking = {part.package: part.install for part in found.parts if part.version is None}
    given = []
    if found.onnxruntime is None:
        command = PACKAGES["onnxruntime"].command
        given.append(Advice("ONNX Runtime is not installed. It runs every bundle.", (command,)))
    if "openvino" in lacking:
        text = "OpenVINO is not installed. It is the fastest runtime on CPUs."
        given.append(Advice(text, (lacking["openvino"],)))
    if found.gpu is not None and "tensorrt" in lacking:
        text = "TensorRT is not installed. It is the fastest runtime on NVIDIA GPUs."
        given.append(Advice(text, (lacking["tensorrt"],)))
    if found.gpu is not None and not found.cuda:
        text = "The installed ONNX Runtime does not support CUDA, so it does not use the GPU."
        commands = "pip uninstall -y onnxruntime", "pip install onnxruntime-gpu"
        given.append(Advice(text, commands))
    if found.fast_int8 is False:
        text = f"This CPU has no VNNI or dot-product instructions. {_slow_int8(found)}"
        given.append(Advice(text))
    return tuple(given)


def _slow_int8(found: Doctor) -> str:
    """Describe what `auto` does with INT8 on a CPU without INT8 instructions."""
    if found.int8:
        return (
            "`auto` uses INT8 only on ONNX Runtime, where it is exact and faster than float32. "
            "On OpenVINO, INT8 overflows on such CPUs, which costs recall."
        )
    return "INT8 is slower than float32 here, so `auto` does not use it."


def _gpu() -> str | None:
    """Return the first GPU that nvidia-smi reports."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = "--query-gpu=name,driver_version,memory.total"
    try:
        done = subprocess.run(
            [tool, query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_WAIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return None
    name, *rest = (field.strip() for field in lines[0].split(","))
    return f"{name}, driver {rest[0]}, {rest[1]}" if len(rest) == 2 else lines[0].strip()
