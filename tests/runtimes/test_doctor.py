"""Output of `doctor` for all kinds of machines."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run
from manifests import measured, quantization
from paths import ROOT

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import Graph, Manifest
from mwa_export.cpu import fast_int8
from mwa_export.optional import PACKAGES
from mwa_export.runtimes.choose import choose, int8_runtimes
from mwa_export.runtimes.doctor import Doctor, advice, examine
from mwa_export.runtimes.machine import Machine
from mwa_export.runtimes.options import LABELS, RuntimeOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

CPUS = {  # instruction sets of every kind of CPU
    "unknown": None,
    "VNNI": frozenset({"avx2", "avx512f", "avx512_vnni"}),
    "AMX": frozenset({"avx2", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}),
    "AVX2": frozenset({"avx2"}),
    "AVX-512 without VNNI": frozenset({"avx2", "avx512f"}),
    "old": frozenset[str](),
    "ARM": frozenset({"asimddp"}),
}


@pytest.fixture
def complete() -> Doctor:
    """A machine that lacks nothing."""
    found = examine()
    parts = tuple(dataclasses.replace(part, version="1.0") for part in found.parts)
    return dataclasses.replace(
        found, parts=parts, fast_int8=True, gpu="H100, driver 1, 80 GiB", cuda=True
    )


def without(found: Doctor, name: str) -> Doctor:
    parts = tuple(
        dataclasses.replace(p, version=None) if p.package == name else p for p in found.parts
    )
    assert parts != found.parts
    return dataclasses.replace(found, parts=parts)


def test_a_complete_machine_needs_nothing(complete: Doctor) -> None:
    assert advice(complete) == ()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("openvino", 'pip install "mwa-export[openvino]"'),
        ("tensorrt", 'pip install "mwa-export[tensorrt]"'),
    ],
)
def test_what_is_missing_is_named_with_its_install(complete: Doctor, name: str, told: str) -> None:
    (given,) = advice(without(complete, name))
    assert name in given.text.lower()
    assert given.commands == (told,)


def test_tensorrt_and_cuda_are_asked_for_only_where_there_is_a_gpu(complete: Doctor) -> None:
    (given,) = advice(dataclasses.replace(complete, cuda=False))
    assert "pip install onnxruntime-gpu" in given.commands
    none = dataclasses.replace(without(complete, "tensorrt"), gpu=None, cuda=False)
    assert advice(none) == ()


@pytest.fixture(scope="module")
def with_int8(files: Path) -> Manifest:
    """A bundle with INT8 graphs for both CPU runtimes, whose recall passed."""
    manifest = Bundle.open(files / "bundle").manifest
    more = [
        Graph(f"{g.spec.tower}.int8.{dialect}.onnx", g.spec, "int8", dialect, 17)
        for dialect in ("openvino", "onnxruntime")
        for g in manifest.graphs
    ]
    passed = (measured(runtime, "int8", 0.1) for runtime in ("openvino", "onnxruntime"))
    return dataclasses.replace(
        manifest, graphs=(*manifest.graphs, *more), quantization=quantization(*passed)
    )


@pytest.mark.parametrize("runtimes", ["onnxruntime", "onnxruntime openvino"])
@pytest.mark.parametrize("cpu", CPUS)
def test_what_is_said_of_int8_is_what_auto_does(
    complete: Doctor,
    with_int8: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    cpu: str,
    runtimes: str,
) -> None:
    machine = Machine(CPUS[cpu], frozenset(runtimes.split()))
    choice = choose(with_int8, RuntimeOptions(), machine)
    auto = choice.runtime if choice.precision == "int8" else None
    int8 = int8_runtimes(machine)
    assert next(iter(int8), None) == auto
    found = dataclasses.replace(complete, fast_int8=fast_int8(machine.sets), int8=int8)
    monkeypatch.setattr("mwa_export.runtimes.doctor.examine", lambda: found)
    shown = run("doctor").stdout
    row = re.search(r"INT8 with auto +(.*)", shown)
    assert row is not None
    assert row[1].startswith("not" if auto is None else f"on {LABELS[auto]}")
    told = [given.text for given in advice(found)]
    if found.fast_int8 is not False:
        assert told == []
    elif auto is None:
        assert "`auto` does not use it" in told[0]
    else:
        assert f"`auto` uses INT8 only on {LABELS[auto]}" in told[0]


@pytest.mark.parametrize("cpu", CPUS)
def test_this_machine_is_judged_by_its_instructions(
    monkeypatch: pytest.MonkeyPatch, cpu: str
) -> None:
    sets = CPUS[cpu]
    monkeypatch.setattr("mwa_export.runtimes.doctor.instruction_sets", lambda: sets)
    monkeypatch.setattr("mwa_export.runtimes.machine.instruction_sets", lambda: sets)
    found = examine()
    assert found.fast_int8 == fast_int8(sets)
    assert found.int8 == int8_runtimes(Machine(sets, frozenset({"onnxruntime", "openvino"})))


def extras() -> dict[str, list[str]]:
    """The distributions of each extra, but for those of development."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = {}
    for extra, lines in project["optional-dependencies"].items():
        names = [re.split(r"[\[<>=;~! ]", line, maxsplit=1)[0] for line in lines]
        listed[extra] = [name for name in names if name != "mwa-export"]
    del listed["dev"], listed["docs"]
    return listed


def test_every_optional_package_is_listed_with_the_extra_that_brings_it() -> None:
    parts = {part.package: part for part in examine().parts}
    for extra, names in extras().items():
        for name in names:
            found = re.search(r"mwa-export\[(.*)\]", parts[name].install)
            if name == "torchscale":
                assert parts[name].install == "pip install --no-deps torchscale==0.3.0"
            else:
                assert found is not None
                assert name in extras()[found[1]], (extra, name)
    assert {package.distribution for package in PACKAGES.values()} - {"onnxruntime"} == set(parts)


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_commands_stand_unbroken_on_lines_of_their_own(
    complete: Doctor, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    lacking = [dataclasses.replace(part, version=None) for part in complete.parts]
    found = dataclasses.replace(complete, parts=tuple(lacking), cuda=False, fast_int8=False)
    monkeypatch.setattr("mwa_export.runtimes.doctor.examine", lambda: found)
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = [line.strip() for line in run("doctor").stdout.splitlines()]
    for part in found.parts:
        assert part.install in lines
        assert any(line.startswith(f"{part.package} ") for line in lines)
    for given in advice(found):
        assert set(given.commands) <= set(lines)
    if columns >= 60:
        assert max(map(len, lines)) <= min(columns, 80)


@pytest.mark.parametrize(
    ("stdout", "status", "gpu"),
    [
        ("NVIDIA H100, 570.1, 81559 MiB\nNVIDIA H100, 570.1, 81559 MiB\n", 0, "570.1, 81559 MiB"),
        ("NVIDIA-SMI has failed", 9, None),
        ("", 0, None),
    ],
)
def test_gpu_is_what_the_drivers_tool_says(
    monkeypatch: pytest.MonkeyPatch, stdout: str, status: int, gpu: str | None
) -> None:
    done = subprocess.CompletedProcess([], status, stdout, "")
    monkeypatch.setattr("shutil.which", lambda _name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr("subprocess.run", lambda *_a, **_k: done)
    found = examine().gpu
    assert found is None if gpu is None else gpu in (found or "")


def test_command_prints_a_table_and_json() -> None:
    outcome = run("doctor")
    assert outcome.status == 0
    assert "This machine" in outcome.stdout
    assert "ONNX Runtime" in outcome.stdout
    data = json.loads(run("doctor", "--json").stdout)
    assert data["cores"] >= 1
    assert {field.name for field in dataclasses.fields(Doctor)} | {"advice"} == set(data)
    assert data["onnxruntime"]
    for part in data["parts"]:
        assert set(part) == {"package", "what", "version", "install"}
    assert all(set(given) == {"text", "commands"} for given in data["advice"])
