"""What `doctor` says about machines of all kinds."""

from __future__ import annotations

import dataclasses
import json
import subprocess

import pytest
from commands import run

from mwa_export.runtimes.doctor import Doctor, Part, advice, examine


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
        dataclasses.replace(p, version=None) if p.what.startswith(f"{name}:") else p
        for p in found.parts
    )
    assert parts != found.parts
    return dataclasses.replace(found, parts=parts)


def test_a_complete_machine_needs_nothing(complete: Doctor) -> None:
    assert advice(complete) == ()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("OpenVINO", 'pip install "mwa-export[openvino]"'),
        ("PyTorch", 'pip install "mwa-export[export]"'),
        ("TensorRT", 'pip install "tensorrt"'),
    ],
)
def test_what_is_missing_is_named_with_its_install(complete: Doctor, name: str, told: str) -> None:
    (sentence,) = advice(without(complete, name))
    assert name in sentence
    assert told in sentence


def test_tensorrt_and_cuda_are_asked_for_only_where_there_is_a_gpu(complete: Doctor) -> None:
    assert "onnxruntime-gpu" in advice(dataclasses.replace(complete, cuda=False))[0]
    lacking = without(without(complete, "TensorRT"), "TensorRT-RTX")
    none = dataclasses.replace(lacking, gpu=None, cuda=False)
    assert advice(none) == ()


def test_a_cpu_that_is_slow_at_int8_is_told_and_an_unknown_one_is_not(complete: Doctor) -> None:
    (sentence,) = advice(dataclasses.replace(complete, fast_int8=False))
    assert "slower than float32" in sentence
    assert advice(dataclasses.replace(complete, fast_int8=None)) == ()


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
    versions = {Part(**part).what.split(":")[0]: part["version"] for part in data["parts"]}
    assert versions["ONNX Runtime"]
    assert isinstance(data["advice"], list)
