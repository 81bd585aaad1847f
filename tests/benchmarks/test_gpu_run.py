"""benchmarks/gpu_run.sh without a GPU: plan of calls, receiving, and clear errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_calls
import pytest
from gpu_carry import slice_folder
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_run.sh"


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """The script as the GPU machine runs it: no variables but these, and a Python of its own."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    known = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "GPU_HOME": str(tmp_path / "home")}

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPT), *words],
            env=known | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_calls_are_few_and_no_larger_than_a_transfer() -> None:
    found = {
        "torch": [("a/models.0", 40), ("a/models.1", 9), ("a/site.0", 1)],
        "trt8": [("t/s0", 46), ("t/s1", 46), ("t/s2", 30)],
        "ort": [],
    }
    made = gpu_calls.steps(found, 50)
    assert [step.carry for step in made] == [
        ("a/models.0", "a/models.1", "a/site.0"),
        ("t/s0",),
        ("t/s1",),
        ("t/s2",),
    ]
    assert [step.command.split()[-1] for step in made] == ["torch", "t/s0", "t/s1", "trt8"]
    assert made[3].command.startswith("bash benchmarks/gpu_run.sh receive t/s2 && ")
    assert all(step.seconds <= 600 for step in made)
    with pytest.raises(SystemExit, match="t/s0: has 46 bytes"):
        gpu_calls.steps({"trt8": found["trt8"]}, 45)


def test_the_page_holds_what_each_call_takes() -> None:
    made = gpu_calls.steps({"torch": [("a/models.0", 40)], "trt8": [("t/s0", 46)]}, 50)
    blocks = gpu_calls.page(made).split("```json\n")[1:]
    calls = [json.loads(block.partition("```")[0]) for block in blocks]
    assert [call["carry"] for call in calls] == [["a/models.0"], ["t/s0"]]
    assert {call["timeout_s"] for call in calls} == {600}


def test_slices_are_checked_before_they_are_planned(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "a").write_text("a")
    (one,) = slice_folder(folder, tmp_path / "slices", 1 << 20)
    assert [name for name, _ in gpu_calls._slices(tmp_path, ("site.*",))] == [one.as_posix()]
    (one / "part.000").write_bytes(b"?")
    with pytest.raises(SystemExit, match="damaged"):
        gpu_calls._slices(tmp_path, ("site.*",))


def test_what_was_not_received_is_said(run: Any, tmp_path: Path) -> None:
    assert run("measure", "torch").stderr.endswith("OUT: set it to the folder that comes back\n")
    for stage, missing in (("torch", "models/base"), ("trt8", "TensorRT 8.6")):
        done = run("measure", stage, OUT=str(tmp_path))
        assert done.returncode == 1
        assert f"{missing}" in done.stderr
        assert "receive its slices first" in done.stderr


@pytest.mark.parametrize("words", [(), ("measure",), ("receive",), ("prepare", "all"), ("what",)])
def test_wrong_use_shows_the_right_one(run: Any, words: tuple[str, ...]) -> None:
    done = run(*words, OUT="out")
    assert done.returncode == 2
    assert "gpu_run.sh receive SLICE...          there" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["torch", "ort", "trt8"])
def test_without_a_gpu_a_stage_ends_in_one_sentence(run: Any, tmp_path: Path, stage: str) -> None:
    models, kit = tmp_path / "models", tmp_path / "home" / "trt"
    (models / "base").mkdir(parents=True)
    (models / "base" / "meta.json").write_text("{}")
    for slice_ in slice_folder(models, tmp_path / "slices", 1 << 20):
        assert "models: unpacked" in run("receive", str(slice_)).stdout
    kit.mkdir()
    (kit / "READY").touch()  # a kit whose Python is the machine's own
    (kit / "activate_trt.sh").write_text('trtpy() { PYTHONPATH=$TRT_PYTHONPATH python3 "$@"; }\n')
    out = tmp_path / "out"
    out.mkdir()
    done = run("measure", stage, "base", OUT=str(out), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    said = done.stdout.splitlines()
    assert said[0] == f"stage {'trt' if stage == 'trt8' else stage}"
    assert len(said) == 2, done.stdout
    assert "NVIDIA" in said[1]
    assert (out / f"{stage}.log").read_text() == done.stdout
