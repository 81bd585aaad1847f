"""Processor information is parsed correctly from the system files of all kinds of machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mwa_export import cpu

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C
flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8
bugs\t\t: spectre_v1
"""
AVX2 = "model name : AMD EPYC\nflags : fpu sse4_2 avx avx2 fma\n"
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd asimddp bf16 i8mm\n"
OLD_ARM = "processor : 0\nFeatures : fp asimd crc32\n"


@pytest.mark.parametrize(
    ("text", "sets", "int8", "bfloat16"),
    [
        (
            X86,
            {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8"},
            True,
            True,
        ),
        (AVX2, {"avx2"}, False, False),
        (ARM, {"asimddp", "bf16", "i8mm"}, True, True),
        (OLD_ARM, set(), False, False),
    ],
)
def test_instruction_sets_are_read_on_x86_and_arm(
    text: str, sets: set[str], int8: bool, bfloat16: bool
) -> None:
    found = cpu.sets_in(text)
    assert found == frozenset(sets)
    assert (cpu.fast_int8(found), cpu.fast_bfloat16(found)) == (int8, bfloat16)


def test_a_system_that_does_not_tell_is_unknown_and_not_slow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cpu.sets_in("processor : 0\nmodel name : RISC\n") is None
    assert cpu.fast_int8(None) is None
    assert cpu.fast_bfloat16(None) is None
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "absent")
    cpu.instruction_sets.cache_clear()
    try:
        assert cpu.instruction_sets() is None
        assert cpu.cpu_name() != ""
    finally:
        monkeypatch.undo()
        cpu.instruction_sets.cache_clear()


def test_a_name_that_contains_a_set_is_not_that_set() -> None:
    assert cpu.sets_in("flags : avx512_vnni_like xavx2\n") == frozenset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", 8),  # no limit: the affinity decides
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),  # half a core is no core
        ("50000 100000\n", 1),  # but there is always one
        ("1600000 100000\n", 8),  # more than there are
        ("garbage\n", 8),
        (None, 8),
    ],
)
def test_cores_are_those_of_the_affinity_within_the_containers_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, expected: int
) -> None:
    path = tmp_path / "cpu.max"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(cpu, "_CPU_MAX", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    assert cpu.cores() == expected
