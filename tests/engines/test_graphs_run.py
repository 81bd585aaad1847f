"""CUDA graphs on a fake GPU give the same embeddings, and are timed separately."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from configs import MWA
from trt_fake_gpu import LateDriver, LateTensorRT

from mwa_export.bundle.bundle import Bundle
from mwa_export.errors import ProfileError
from mwa_export.inputs.noise import random_pixels, random_texts
from mwa_export.runtimes.trt import TensorRtBackend
from mwa_export.trt.timing import batches_of, time_interleaved, usual_shape

pytestmark = pytest.mark.slow

SIZE = MWA.backbone.image_size


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> LateDriver:
    driver = LateDriver()
    driver.install(monkeypatch)
    return driver


@pytest.fixture
def trt(driver: LateDriver, monkeypatch: pytest.MonkeyPatch) -> LateTensorRT:
    fake = LateTensorRT(11, driver)
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def bundle(trt: LateTensorRT, files: Path, tmp_path: Path) -> Bundle:
    folder = Path(shutil.copytree(files / "bundle", tmp_path / "bundle"))
    outcome = run("trt", folder, "--fp16", "--batch", "1,1,2", "--batch", "2,4,4")
    assert outcome.status == 0, outcome
    return Bundle.open(folder)


def pictures(rows: int, seed: int = 0) -> Any:
    return random_pixels(np.random.default_rng(seed), rows, SIZE)


def texts(rows: int, length: int) -> Any:
    return random_texts(np.random.default_rng(rows), rows, length, 90)


def test_a_shape_that_repeats_is_recorded_and_launched(
    trt: LateTensorRT, driver: LateDriver, bundle: Bundle
) -> None:
    with TensorRtBackend(bundle, check=False) as backend:
        runner = backend.runners["vision"]
        trt.shapes.clear()
        found = backend.embed_images(np.concatenate([pictures(4, seed) for seed in range(9)]))
        assert runner.launched == 7, "each of two sets runs by itself once"
        assert len(trt.shapes) == 4, "and is recorded once"
        assert len(driver.graphs) == 2
    with TensorRtBackend(bundle, check=False, graphs=False) as backend:
        for seed in range(9):
            alone = backend.embed_images(pictures(4, seed))
            assert np.array_equal(found[4 * seed : 4 * seed + 4], alone)
        assert backend.runners["vision"].launched == 0
    assert driver.allocated == 0


def test_graphs_change_no_embedding_whatever_the_order_of_shapes(
    trt: LateTensorRT, driver: LateDriver, bundle: Bundle
) -> None:
    shapes = [(4, 5), (4, 5), (4, 5), (1, 5), (9, 5), (4, 5), (2, 9), (2, 9), (17, 9), (17, 9)]
    with (
        TensorRtBackend(bundle, check=False) as fast,
        TensorRtBackend(bundle, check=False, graphs=False) as plain,
    ):
        for rows, length in shapes:
            wanted = plain.embed_texts(*texts(rows, length))
            assert np.array_equal(fast.embed_texts(*texts(rows, length)), wanted)
        assert fast.runners["text"].launched > 5
        assert len(driver.graphs) <= 2, "of other shapes none is kept"
    assert driver.allocated == 0


@pytest.mark.parametrize("call", ["cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags"])
def test_what_cannot_be_recorded_is_run_as_before(
    call: str, trt: LateTensorRT, driver: LateDriver, bundle: Bundle
) -> None:
    driver.fails[call] = 801
    with TensorRtBackend(bundle, check=False) as backend:
        found = [backend.embed_images(pictures(4)) for _ in range(4)]
        assert all(np.array_equal(one, found[0]) for one in found)
        assert not backend.cuda_graphs
        driver.fails.clear()
        backend.embed_images(pictures(4))
        assert backend.runners["vision"].launched == 0, "it is not tried again"
    assert driver.allocated == 0


def test_engines_are_timed_in_turns_on_the_device(
    trt: LateTensorRT, driver: LateDriver, bundle: Bundle
) -> None:
    clock = itertools.count()
    with TensorRtBackend(bundle, check=False) as fast:
        trt.milliseconds = lambda graph: 3.0
        with TensorRtBackend(bundle, check=False) as slow:
            runners = {"fast": fast.runners["vision"], "slow": slow.runners["vision"]}
            batches = batches_of(bundle, "vision", 4)
            before = fast.embed_images(pictures(3))
            found = time_interleaved(runners, batches, rounds=3, runs=5, clock=lambda: next(clock))
            assert np.array_equal(fast.embed_images(pictures(3)), before)
    assert found["fast"].milliseconds == pytest.approx((1.0, 1.0, 1.0))
    assert found["slow"].milliseconds == pytest.approx((3.0, 3.0, 3.0))
    assert (found["slow"].batch, found["slow"].length) == (4, None)
    assert found["slow"].rows_per_second == pytest.approx(4000 / 3)
    assert found["slow"].called == (500.0, 500.0, 500.0)
    assert driver.allocated == 0


def test_batches_are_of_the_shape_that_an_engine_is_fastest_at(
    trt: LateTensorRT, bundle: Bundle
) -> None:
    with TensorRtBackend(bundle, check=False) as backend:
        profile = backend.engines["text"].profiles[1]
        rows, length = usual_shape(profile)
        assert (rows, length) == (4, 16)
        one, other = batches_of(bundle, "text", rows, length)
        assert one[0].shape == one[1].shape == (4, 16)
        assert not np.array_equal(one[0], other[0])
        assert not one[1].any()
        found = time_interleaved({"text": backend.runners["text"]}, [one, other], rounds=1)
        assert (found["text"].batch, found["text"].length) == (4, 16)
        with pytest.raises(ProfileError, match="5 rows take 2 runs"):
            backend.runners["text"].load(batches_of(bundle, "text", 5, 16))
