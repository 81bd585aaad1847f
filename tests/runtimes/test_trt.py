"""The tensorrt backend on a fake GPU that works as late as possible, against ONNX Runtime."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from configs import MWA
from trt_fake import VERSIONS
from trt_fake_gpu import LateDriver, LateTensorRT
from trt_files import calibrated_bundle

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import EnginePrecision
from mwa_export.data.test_set import RetrievalData
from mwa_export.errors import EngineError, ProfileError, RuntimeUnavailableError, VerificationError
from mwa_export.inputs.noise import random_pixels, random_texts
from mwa_export.runtimes.onnxrt import OnnxBackend
from mwa_export.runtimes.trt import TensorRtBackend, least_cosine_of

pytestmark = pytest.mark.slow

SIZE, WIDTH = MWA.backbone.image_size, MWA.backbone.embed_dim


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> LateDriver:
    driver = LateDriver()
    driver.install(monkeypatch)
    return driver


@pytest.fixture(params=VERSIONS)
def trt(
    request: pytest.FixtureRequest, driver: LateDriver, monkeypatch: pytest.MonkeyPatch
) -> LateTensorRT:
    fake = LateTensorRT(request.param, driver)
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def newest(driver: LateDriver, monkeypatch: pytest.MonkeyPatch) -> LateTensorRT:
    fake = LateTensorRT(11, driver)
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def folder(files: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(files / "bundle", tmp_path / "bundle"))


def built(folder: Path, *options: Any) -> Bundle:
    """The bundle with engines."""
    outcome = run("trt", folder, "--fp16", *options)
    assert outcome.status == 0, outcome
    return Bundle.open(folder)


def pictures(rows: int, seed: int = 0) -> Any:
    return random_pixels(np.random.default_rng(seed), rows, SIZE)


def texts(rows: int, length: int) -> Any:
    return random_texts(np.random.default_rng(1), rows, length, 90)


def least_cosine(found: Any, wanted: Any) -> float:
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    return float((found.astype(np.float64) * wanted).sum(axis=1).min())


@pytest.mark.parametrize(
    ("flag", "precision", "least"), [("--bf16", "bfloat16", 0.999), ("--fp8", "float8", 0.98)]
)
def test_engines_of_every_typed_precision_run(
    flag: str,
    precision: EnginePrecision,
    least: float,
    newest: LateTensorRT,
    files: Path,
    data: RetrievalData,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    kept = tmp_path_factory.mktemp("trt-backend") / "bundle"
    source = calibrated_bundle(files / "bundle", data, kept).path
    outcome = run("trt", source, flag, "-o", tmp_path / "out")
    assert outcome.status == 0, outcome
    bundle = Bundle.open(tmp_path / "out")
    exact = OnnxBackend(bundle, check=False)
    with TensorRtBackend(bundle, precision=precision) as backend:
        assert backend.name == f"TensorRT {precision} on NVIDIA H200"
        found = backend.embed_images(pictures(5)), backend.embed_texts(*texts(5, 7))
    wanted = exact.embed_images(pictures(5)), exact.embed_texts(*texts(5, 7))
    for one, other in zip(found, wanted, strict=True):
        assert least <= least_cosine(one, other) < 0.999999
    with pytest.raises(EngineError, match=r"has no float16 engine.*precision=float16"):
        TensorRtBackend(bundle)


@pytest.mark.parametrize(
    ("precision", "least"),
    [("float16", 0.998), ("bfloat16", 0.998), ("int8", 0.9), ("float8", 0.9)],
)
def test_engines_must_reach_a_cosine(
    precision: EnginePrecision, least: float, trt: LateTensorRT, folder: Path
) -> None:
    bundle = built(folder)
    for engine in bundle.manifest.engines:
        assert least_cosine_of(bundle, replace(engine, precision=precision)) == least


def test_float8_attention_is_not_held_to_what_quantize_measured_without_it(
    trt: LateTensorRT, folder: Path
) -> None:
    bundle = built(folder)
    graphs = [replace(g, precision="int8", conformance=0.9999) for g in bundle.manifest.graphs]
    measured = Bundle(bundle.path, replace(bundle.manifest, graphs=tuple(graphs)))
    plain = replace(bundle.manifest.engines[0], precision="int8")
    assert least_cosine_of(measured, plain) == pytest.approx(0.9979)
    assert least_cosine_of(measured, replace(plain, flags=("float8_attention",))) == 0.9


@pytest.mark.parametrize("rows", [1, 4, 5, 19])
def test_embeddings_are_those_of_onnx_runtime(trt: LateTensorRT, folder: Path, rows: int) -> None:
    bundle = built(folder, "--batch", "1,2,4")
    exact = OnnxBackend(bundle, check=False)
    with TensorRtBackend(bundle) as backend:
        found = backend.embed_images(pictures(rows))
        assert least_cosine(found, exact.embed_images(pictures(rows))) >= 0.9999
        found = backend.embed_texts(*texts(rows, 9))
        assert least_cosine(found, exact.embed_texts(*texts(rows, 9))) >= 0.9999
        assert backend.embed_images(pictures(0)).shape == (0, WIDTH)
        assert backend.name == "TensorRT float16 on NVIDIA H200"


def test_results_stay_when_the_buffers_are_used_again(newest: LateTensorRT, folder: Path) -> None:
    with TensorRtBackend(built(folder, "--batch", "1,2,2")) as backend:
        first = backend.embed_images(pictures(5))
        kept = first.copy()
        other = backend.embed_images(pictures(5, seed=7))
        assert np.array_equal(first, kept)
        assert np.abs(other - first).max() > 0.01
        assert np.array_equal(backend.embed_images(pictures(5)), kept)


def test_uint8_pictures_go_to_the_gpu_as_they_are(
    newest: LateTensorRT, files: Path, tmp_path: Path
) -> None:
    options = ("-o", tmp_path / "uint8", "--input", "uint8")
    assert run("onnx", files / "checkpoint.pth", *options).status == 0
    bundle = built(tmp_path / "uint8", "--batch", "1,2,4")
    exact = OnnxBackend(bundle, check=False)
    with TensorRtBackend(bundle) as backend:
        found = backend.embed_images(pictures(5))
    assert least_cosine(found, exact.embed_images(pictures(5))) >= 0.9999
    assert (0, "image", (4, SIZE, SIZE, 3)) in newest.shapes


def test_each_piece_takes_the_smallest_profile_that_holds_it(
    newest: LateTensorRT, folder: Path
) -> None:
    bundle = built(folder, "--batch", "1,1,2", "--batch", "2,8,8")
    with TensorRtBackend(bundle, check=False) as backend:
        newest.shapes.clear()
        backend.embed_images(pictures(10))
        backend.embed_images(pictures(3))
    image = (3, SIZE, SIZE)
    assert newest.shapes == [
        (1, "image", (8, *image)),
        (0, "image", (2, *image)),
        (1, "image", (3, *image)),
    ]


def test_fixed_shapes_are_filled_up(newest: LateTensorRT, folder: Path) -> None:
    bundle = built(folder, "--batch", "4", "--lengths", "12")
    exact = OnnxBackend(bundle, check=False)
    with TensorRtBackend(bundle) as backend:
        newest.shapes.clear()
        found = backend.embed_texts(*texts(6, 9))
        assert least_cosine(found, exact.embed_texts(*texts(6, 9))) >= 0.9999
        assert {shape for _p, _n, shape in newest.shapes} == {(4, 12)}
        found = backend.embed_images(pictures(3))
        assert least_cosine(found, exact.embed_images(pictures(3))) >= 0.9999


def test_shapes_outside_every_profile_are_refused(newest: LateTensorRT, folder: Path) -> None:
    with TensorRtBackend(built(folder, "--lengths", "2,4,8"), check=False) as backend:
        with pytest.raises(ProfileError, match=r"text of 9 tokens.*at most 8.*lengths="):
            backend.embed_texts(*texts(2, 9))
        with pytest.raises(ProfileError, match=r"vision/image: .*Expected \(batch, 3, 32, 32\)"):
            backend.embed_images(pictures(2)[:, :16])
        assert backend.embed_texts(*texts(2, 8)).shape == (2, WIDTH)


def test_everything_on_the_gpu_is_given_back(
    newest: LateTensorRT, driver: LateDriver, folder: Path
) -> None:
    bundle = built(folder, "--batch", "1,2,4")
    with TensorRtBackend(bundle) as backend:
        backend.embed_images(pictures(9))
        assert driver.memory
    assert driver.allocated == 0


def test_too_little_memory_says_how_much_is_needed(
    newest: LateTensorRT, driver: LateDriver, folder: Path
) -> None:
    bundle = built(folder)
    driver.limit = 100_000
    with pytest.raises(RuntimeUnavailableError, match=r"need 0\.\d+ GiB more.*batch"):
        TensorRtBackend(bundle)
    assert driver.allocated == 0
    driver.limit, newest.contexts, newest.scratch = 1 << 40, False, 3 << 30
    with pytest.raises(EngineError, match=r"activations need 3\.00 GiB"):
        TensorRtBackend(bundle)
    assert driver.allocated == 0


@pytest.mark.parametrize("what", ["profile", "shape", "run"])
def test_an_engine_that_refuses_to_run_is_an_error(
    newest: LateTensorRT, driver: LateDriver, folder: Path, what: str
) -> None:
    bundle = built(folder)
    with TensorRtBackend(bundle, check=False) as backend:
        newest.refuses = what
        with pytest.raises(EngineError, match="TensorRT cannot run it"):
            backend.embed_images(pictures(2))
        newest.refuses = None
        assert backend.embed_images(pictures(2)).shape == (2, WIDTH)


def test_engines_of_another_model_do_not_pass(
    newest: LateTensorRT, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = built(folder)
    vectors = bundle.conformance()
    object.__setattr__(vectors, "vision", np.roll(vectors.vision, 1, axis=1))
    monkeypatch.setattr(Bundle, "conformance", lambda _self: vectors)
    with pytest.raises(VerificationError, match="TensorRT float16 on NVIDIA H200 does not"):
        TensorRtBackend(bundle)


def test_a_bundle_without_engines_says_how_to_build_them(
    newest: LateTensorRT, driver: LateDriver, files: Path
) -> None:
    with pytest.raises(EngineError, match="Build it: `mwa-export trt`"):
        TensorRtBackend(Bundle.open(files / "bundle"))
    assert driver.allocated == 0
