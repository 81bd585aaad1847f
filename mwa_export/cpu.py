"""Instruction sets of the CPU, and the number of cores that this process may use."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from functools import cache
from pathlib import Path

from mwa_export.errors import check_option

_CPUINFO = Path("/proc/cpuinfo")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")

# Instruction sets that make int8 and bfloat16 kernels fast.
_INT8 = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
_TOLD = _INT8 | _BFLOAT16 | {"avx2", "avx512f", "avx512_fp16", "amx_tile"}


@cache
def instruction_sets() -> frozenset[str] | None:
    """Return the relevant instruction sets under Linux's names; None if they are unknown."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return None
    return sets_in(text)


def sets_in(cpuinfo: str) -> frozenset[str] | None:
    """Parse the relevant instruction sets in /proc/cpuinfo (x86: flags, ARM: Features)."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split()) & frozenset(_TOLD)
    return None


def fast_int8(sets: Collection[str] | None) -> bool | None:
    """Whether the CPU has int8 dot product instructions (VNNI, ARM dotprod); None: unknown."""
    return None if sets is None else not _INT8.isdisjoint(sets)


def fast_bfloat16(sets: Collection[str] | None) -> bool | None:
    """Whether the CPU has bfloat16 dot product instructions; None: unknown."""
    return None if sets is None else not _BFLOAT16.isdisjoint(sets)


def cores() -> int:
    """Return the cores that this process may use, limited by its affinity and its container."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min(count, _quota(count)))


def check_threads(option: str, threads: int | None) -> None:
    """Raise OptionsError for a number of threads far above the number of cores."""
    most = max(256, 4 * (os.cpu_count() or 1))
    check_option(option, threads, threads is None or 1 <= threads <= most, f"1 to {most}")


def _quota(otherwise: int) -> int:
    """Return the whole cores that the cgroup (version 2) allows, or ``otherwise``."""
    try:
        quota, period = _CPU_MAX.read_text(encoding="utf-8").split()
        return otherwise if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return otherwise


def cpu_name() -> str:
    """Return the name of the CPU, or of its architecture if the name is unknown."""
    try:
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
