"""One encoder shared by many threads, or used in a forked process."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mwa_export.bundle.bundle import Bundle
from mwa_export.errors import RuntimeUnavailableError
from mwa_export.inputs.noise import random_pixels, random_texts
from mwa_export.model.load import ModelSource, load_model
from mwa_export.runtimes.backend import Backend
from mwa_export.runtimes.open import open_backend
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.runtimes.pytorch import TorchBackend

pytestmark = pytest.mark.slow
RUNTIMES = ("onnxruntime", "openvino", "torch")
THREADS, CALLS, INPUTS = 8, 1000, 16


def _backend(runtime: Any, files: Path) -> Backend:
    if runtime == "torch":
        return TorchBackend(load_model(ModelSource(files / "checkpoint.pth")))
    if runtime == "openvino":
        pytest.importorskip("openvino")
    options = RuntimeOptions(runtime=runtime, precision="float32", threads=2)
    return open_backend(Bundle.open(files / "bundle"), options).backend


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_thread_gets_its_own_vectors(runtime: str, files: Path) -> None:
    backend, rng = _backend(runtime, files), np.random.default_rng(0)
    manifest = Bundle.open(files / "bundle").manifest
    vocabulary = manifest.model.backbone.vocab_size
    pictures = [random_pixels(rng, 2, backend.image_size) for _ in range(INPUTS)]
    texts = [random_texts(rng, 2, 3 + n % 8, vocabulary) for n in range(INPUTS)]
    serial = [backend.embed_images(pixels) for pixels in pictures]
    serial += [backend.embed_texts(*text) for text in texts]
    calls = CALLS // 10 if runtime == "torch" else CALLS  # the reference is slow, and locked

    def work(thread: int) -> int:
        wrong, order = 0, np.random.default_rng(thread).integers(0, 2 * INPUTS, calls)
        for which in order:
            if which < INPUTS:
                found = backend.embed_images(pictures[which])
            else:
                found = backend.embed_texts(*texts[which - INPUTS])
            wrong += not np.array_equal(found, serial[which])
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(work, range(THREADS))) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_forked_process_gets_an_error_and_never_hangs(runtime: str, files: Path) -> None:
    backend = _backend(runtime, files)
    pixels = random_pixels(np.random.default_rng(0), 1, backend.image_size)
    backend.embed_images(pixels)
    child = os.fork()
    if child == 0:
        try:
            backend.embed_images(pixels)
        except RuntimeUnavailableError as error:
            os._exit(7 if "before this process was forked" in str(error) else 8)
        finally:
            os._exit(9)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
