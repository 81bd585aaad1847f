"""The GPU, its driver and TensorRT are detected, or messages say how to get what is missing."""

from __future__ import annotations

import ctypes
import sys
from importlib import metadata

import pytest
from trt_fake import GIB, VERSIONS, FakeDriver, FakeTensorRT

from mwa_export.errors import EngineError, MissingPackageError, RuntimeUnavailableError
from mwa_export.trt.device import Device, select_device
from mwa_export.trt.install import check_driver, load_tensorrt
from mwa_export.trt.versions import TensorRt


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return FakeDriver().install(monkeypatch)


def test_device_is_described_and_made_current(driver: FakeDriver) -> None:
    driver.count = 3
    found = select_device(2)
    assert found == Device(2, "NVIDIA H200", (9, 0), 140 * GIB, 100 * GIB, 13000)
    assert found.sm == "sm90"
    assert found.context == 1042
    assert driver.current == 1042


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        ("cuInit", 100, "finds no GPU"),
        ("cuInit", 35, "driver is too old"),
        ("cuInit", 999, r"cuInit reports an illegal state \(999\)"),
        ("cuMemGetInfo_v2", 201, r"cuMemGetInfo_v2 reports an illegal state \(201\)"),
        ("cuDevicePrimaryCtxRetain", 2, "the GPU has no memory left"),
    ],
)
def test_a_driver_that_fails_is_explained(
    driver: FakeDriver, call: str, status: int, message: str
) -> None:
    driver.fails[call] = status
    with pytest.raises(RuntimeUnavailableError, match=message):
        select_device()


def test_a_gpu_that_is_not_there_is_refused(driver: FakeDriver) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"device=1`: .* has 1 .* Expected 0 to 0"):
        select_device(1)
    driver.count = 0
    with pytest.raises(RuntimeUnavailableError, match="finds no GPU"):
        select_device(0)


def test_a_machine_without_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(RuntimeUnavailableError, match=r"no NVIDIA driver .*--gpus all"):
        select_device()


def test_missing_tensorrt_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackageError, match=r'pip install "mwa-export\[tensorrt\]"'):
        load_tensorrt()


@pytest.mark.parametrize("major", VERSIONS)
def test_supported_versions_are_taken(major: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTensorRT(major).install(monkeypatch)
    found = load_tensorrt()
    assert found.trt is fake
    assert found.version == VERSIONS[major]
    assert found.typed == (major >= 10)


@pytest.mark.parametrize("version", ["7.2.3", "8.5.3.1", "9.3.0", "10.11.0", "12.0.0", "unknown"])
def test_other_versions_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTensorRT(11).install(monkeypatch).__version__ = version
    with pytest.raises(
        EngineError, match=rf"TensorRT {version} .*Expected 8.6, 10 from 10.12 on, or 11"
    ):
        load_tensorrt()


def test_a_driver_older_than_the_cuda_of_tensorrt_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        if name == "tensorrt-cu13-bindings":
            return "11.4.0.106"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    new = Device(0, "NVIDIA H200", (9, 0), 1, 1, 13000)
    old = Device(0, "NVIDIA H200", (9, 0), 1, 1, 12080)
    found, other = TensorRt(FakeTensorRT(11)), TensorRt(FakeTensorRT(10))
    check_driver(found, new)
    check_driver(other, old)  # not the one that pip installed
    with pytest.raises(RuntimeUnavailableError, match=r"CUDA 13, .*CUDA 12\.8.*tensorrt-cu12"):
        check_driver(found, old)
