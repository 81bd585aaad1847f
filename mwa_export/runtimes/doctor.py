"""What this machine can run: runtimes and their versions, processor, GPU, and what to install."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

from mwa_export.cpu import cores, cpu_name, fast_bfloat16, fast_int8, instruction_sets
from mwa_export.optional import versions_of
from mwa_export.runtimes.machine import this_machine
from mwa_export.version import __version__

_WAIT = 10  # seconds for nvidia-smi

_PARTS = (  # what it is for, distributions that bring it, what to install
    ("PyTorch: read checkpoints, export, reference", ("torch",), "mwa-export[export]"),
    ("onnx: write and quantize graphs", ("onnx",), "mwa-export[export]"),
    ("ONNX Runtime: run graphs", ("onnxruntime", "onnxruntime-gpu"), "mwa-export"),
    ("OpenVINO: the fastest CPU runtime", ("openvino",), "mwa-export[openvino]"),
    ("s3fs: read remote files (http, s3)", ("s3fs",), "mwa-export[remote]"),
    ("TensorRT: engines for NVIDIA GPUs", ("tensorrt",), "tensorrt"),
    (
        "TensorRT-RTX: engines for RTX cards, built on any machine",
        ("tensorrt-rtx-cu12-bindings",),
        "mwa-export[tensorrt-rtx]",
    ),
)


@dataclass(frozen=True, slots=True)
class Part:
    """Something that can be installed."""

    what: str
    version: str | None  # None: it is not installed
    install: str  # the argument of pip install


@dataclass(frozen=True, slots=True)
class Doctor:
    """Report of `mwa-export doctor`."""

    version: str  # of mwa-export
    python: str
    system: str
    cpu: str
    cores: int  # that this process may use
    instruction_sets: tuple[str, ...] | None  # None: this system does not tell
    fast_int8: bool | None
    fast_bfloat16: bool | None
    gpu: str | None  # name, driver and memory; None: none was found
    cuda: bool  # the installed ONNX Runtime has it
    parts: tuple[Part, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def examine() -> Doctor:
    """Look at this machine. Loads no runtime but ONNX Runtime, and changes nothing."""
    sets = instruction_sets()
    machine = this_machine()
    return Doctor(
        version=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_name(),
        cores=cores(),
        instruction_sets=None if sets is None else tuple(sorted(sets)),
        fast_int8=fast_int8(sets),
        fast_bfloat16=fast_bfloat16(sets),
        gpu=_gpu(),
        cuda="cuda" in machine.runtimes,
        parts=tuple(
            Part(what, next(iter(versions_of(*names).values()), None), install)
            for what, names, install in _PARTS
        ),
    )


def advice(found: Doctor) -> tuple[str, ...]:
    """What to install on this machine, most useful first."""
    by_name = {part.what.partition(":")[0]: part for part in found.parts}
    sentences = [
        f'{part.what} is not installed. Run: pip install "{part.install}"'
        for name, part in by_name.items()
        if part.version is None and (not name.startswith("TensorRT") or found.gpu is not None)
    ]
    if found.gpu is not None and not found.cuda:
        sentences.append(
            "There is a GPU, and this ONNX Runtime has no CUDA. Run: pip uninstall onnxruntime && "
            "pip install onnxruntime-gpu"
        )
    if found.fast_int8 is False:
        sentences.append(
            "This CPU has no VNNI or dot product instructions: INT8 is slower than float32 on it, "
            "and `auto` does not choose it."
        )
    return tuple(sentences)


def _gpu() -> str | None:
    """The first GPU, as nvidia-smi reports it."""
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
