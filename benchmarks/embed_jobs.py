"""Measurements of benchmarks/embed.py that run in separate processes.

    python benchmarks/embed_jobs.py JOB '{"argument": ...}'

Prints one JSON object. Rates are measured from the first row to the last, without starting Python,
imports and opening the model.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Result = dict[str, Any]


def pillow(pictures: str, size: int, workers: int) -> Result:
    """Measure the lower bound for decoding and resizing: Pillow alone, on ``workers`` threads."""
    paths = sorted(Path(pictures).rglob("*.jpg"))
    with ThreadPoolExecutor(workers) as pool:
        start = time.perf_counter()
        total = 0
        for first in range(0, len(paths), 256):
            for pixels in pool.map(lambda path: _pixels(path, size), paths[first : first + 256]):
                total += len(pixels)
        seconds = time.perf_counter() - start
    assert total == size * len(paths)
    return _rate(len(paths), seconds)


def clip_retrieval(pictures: str, size: int, workers: int, package: str) -> Result:
    """Measure clip-retrieval's file reader with its default batch; batches are discarded.

    It gets the model's preprocessing (bicubic square, [-1, 1]), as its users pass their model's.
    """
    import torch

    path = Path(package) / "clip_retrieval" / "clip_inference" / "reader.py"
    spec = importlib.util.spec_from_file_location("clip_retrieval_reader", path)
    assert spec is not None
    assert spec.loader is not None
    reader = importlib.util.module_from_spec(spec)  # the package's __init__ needs a web server
    spec.loader.exec_module(reader)

    def preprocess(image: Image.Image) -> Any:  # equals torchvision's transforms
        rgb = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()
        return pixels.float().div_(255).sub_(0.5).div_(0.5)

    start = time.perf_counter()
    batches = reader.FilesReader(
        lambda keys: keys, preprocess, None, pictures, 256, workers, enable_text=False
    )
    rows = sum(len(batch["image_filename"]) for batch in batches)
    return _rate(rows, time.perf_counter() - start)


def model_images(bundle: str, batch: int, rows: int, runtime: Result) -> Result:
    """Measure the bare model on pixels in memory."""
    backend, size = _backend(bundle, runtime)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    backend.embed_images(pixels)
    start = time.perf_counter()
    for _ in range(max(1, rows // batch)):
        backend.embed_images(pixels)
    return _rate(batch * max(1, rows // batch), time.perf_counter() - start)


JOBS = {job.__name__: job for job in (pillow, clip_retrieval, model_images)}


def _backend(bundle: str, runtime: Result) -> tuple[Any, int]:
    from mwa_export.bundle.bundle import Bundle
    from mwa_export.runtimes.open import open_backend
    from mwa_export.runtimes.options import RuntimeOptions

    opened = Bundle.open(bundle)
    backend = open_backend(opened, RuntimeOptions(check=False, **runtime)).backend
    return backend, backend.image_size


def _pixels(path: Path, size: int) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def _rate(rows: int, seconds: float) -> Result:
    return {"rows": rows, "seconds": round(seconds, 4), "rows_per_second": round(rows / seconds, 2)}


if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](**json.loads(sys.argv[2]))))
