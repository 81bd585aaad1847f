"""Every runtime computes the same embeddings behind the same interface."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.calib.calibrate import CalibrationOptions, calibrate
from mwa_export.calib.quantize import QuantizeOptions, quantize
from mwa_export.calib.samples import take_samples
from mwa_export.data.test_sets import read_data
from mwa_export.demo.run import KEPT, assets
from mwa_export.demo.scenes import write_scenes
from mwa_export.encoder.open import open_bundle
from mwa_export.errors import UsageError
from mwa_export.export.export import ExportOptions, bundle_from_model
from mwa_export.inputs.tokenizer import pad
from mwa_export.model.load import ModelSource, load_model
from mwa_export.runtimes.backend import Backend
from mwa_export.runtimes.open import open_backend
from mwa_export.runtimes.options import RuntimeOptions

pytestmark = pytest.mark.slow

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO not installed")
RUNTIMES = ["onnxruntime", "torch", pytest.param("openvino", marks=needs_openvino)]
QUANTIZED = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]
Open = Callable[..., Backend]


@pytest.fixture
def opened(files: Path) -> Open:
    """A runtime with the shared bundle, in float32."""

    def open_(runtime: str, **options: int) -> Backend:
        reference = files / "checkpoint.pth" if runtime == "torch" else None
        wanted = RuntimeOptions(runtime, "float32", reference=reference, **options)  # type: ignore[arg-type]
        return open_backend(Bundle.open(files / "bundle"), wanted).backend

    return open_


def pixels(backend: Backend, count: int) -> NDArray[np.uint8]:
    size = (count, backend.image_size, backend.image_size, 3)
    return np.random.default_rng(count).integers(0, 256, size, dtype=np.uint8)


TEXTS = [[0, 5, 2], [0, 7, 8, 9, 4, 2], [0, 2], [0, *range(4, 16), 2], [0, 9, 9, 2]]


def texts(rows: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return pad(rows)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_embeddings_are_those_of_onnx_runtime(opened: Open, runtime: str) -> None:
    backend, base = opened(runtime), opened("onnxruntime", threads=1)
    images = backend.embed_images(pixels(base, 5))
    assert images.dtype == np.float32
    assert images.shape[0] == 5
    assert np.abs(images - base.embed_images(pixels(base, 5))).max() < 2e-5
    found = backend.embed_texts(*texts(TEXTS))
    assert np.abs(found - base.embed_texts(*texts(TEXTS))).max() < 2e-5
    for vectors in (images, found):
        assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_rows_do_not_depend_on_their_batch_or_padding(opened: Open, runtime: str) -> None:
    backend = opened(runtime)
    batch = pixels(backend, 4)
    together = backend.embed_images(batch)
    alone = np.concatenate([backend.embed_images(row[None]) for row in batch])
    assert np.abs(together - alone).max() < 2e-5
    together = backend.embed_texts(*texts(TEXTS))
    alone = np.concatenate([backend.embed_texts(*texts([row])) for row in TEXTS])
    assert np.abs(together - alone).max() < 2e-5


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_results_stay_when_the_next_batch_is_embedded(opened: Open, runtime: str) -> None:
    backend = opened(runtime)
    first = backend.embed_images(pixels(backend, 3))
    kept = first.copy()
    backend.embed_images(pixels(backend, 3)[::-1].copy())
    assert np.array_equal(first, kept)


@needs_openvino
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_threads_change_no_row_and_no_order(opened: Open, threads: int, count: int) -> None:
    backend = opened("openvino", threads=threads)
    base = opened("onnxruntime")
    batch = pixels(base, count)  # fewer rows than threads, as many, and more
    assert np.abs(backend.embed_images(batch) - base.embed_images(batch)).max() < 2e-5
    rows = TEXTS[:count]
    difference = backend.embed_texts(*texts(rows)) - base.embed_texts(*texts(rows))
    assert np.abs(difference).max() < 2e-5


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with INT8 graphs for every CPU runtime that is installed."""
    folder = tmp_path_factory.mktemp("quantized")
    checkpoint, spm = assets()
    model = load_model(ModelSource(checkpoint))
    bundle_from_model(model, folder / "bundle", ExportOptions(tokenizer=spm))
    data = read_data(write_scenes(folder / "data", family="target", count=16, seed=7))
    samples = take_samples(open_bundle(folder / "bundle"), data, 16, seed=0)
    plainly = CalibrationOptions(method="minmax", smooth=False)  # quick
    kept = folder / "kept"
    kept.mkdir()
    calibrate(Bundle.open(folder / "bundle"), samples, plainly).save(kept)
    options = QuantizeOptions(keep=KEPT)
    quantize(folder / "bundle", None, calibration=kept / "calibration.json", options=options)
    return folder / "bundle"


@pytest.mark.parametrize("runtime", QUANTIZED)
def test_int8_is_close_to_float32_and_is_not_float32(quantized: Path, runtime: str) -> None:
    options = RuntimeOptions(runtime, "int8", allow_slow=True)
    side = open_bundle(quantized, runtime=options)
    assert side.info.precision.startswith("int8")
    assert side.float32 is not None
    batch = np.stack([np.full((side.float32.image_size,) * 2 + (3,), v, np.uint8) for v in (9, 99)])
    rows = side.encode(["three red circles", "a green star on a table"])
    for found, exact in (
        (side.backend.embed_images(batch), side.float32.backend.embed_images(batch)),
        (side.backend.embed_texts(*pad(rows)), side.float32.backend.embed_texts(*pad(rows))),
    ):
        cosine = (found * exact).sum(axis=1)
        assert cosine.min() > 0.95
        assert cosine.max() < 1 - 1e-7


@needs_openvino
def test_layers_cannot_be_seen_on_openvino_and_that_is_said(quantized: Path) -> None:
    from mwa_export.parity.layers import check_layers

    options = RuntimeOptions("openvino", "int8", allow_slow=True)
    side = open_bundle(quantized, runtime=options)
    with pytest.raises(UsageError, match="`runtime=onnxruntime`, or omit `layers`"):
        check_layers(open_bundle(quantized), side)


def test_a_bundle_does_not_run_on_torch_and_named_graphs_exclude_a_precision(files: Path) -> None:
    with pytest.raises(UsageError, match="PyTorch only runs checkpoints"):
        open_bundle(files / "bundle", runtime=RuntimeOptions("torch"))
    options = RuntimeOptions("onnxruntime", "int8")
    with pytest.raises(UsageError, match="graphs` cannot be used with `precision=int8`"):
        open_bundle(files / "bundle", graphs=["text.onnx"], runtime=options)
