"""The measurements of benchmarks/embed.py, each of which runs in a process of its own.

    python benchmarks/embed_jobs.py JOB '{"argument": ...}'

prints one JSON object. Rates count from the first row to the last: starting Python, imports and
opening the model are not in them.
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
    """What decoding and resizing costs at least: Pillow alone, on that many threads."""
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
    """clip-retrieval's own reader of files with its default batch; nothing is done with a batch.

    The preprocessing is the model's (bicubic square, [-1, 1]), as its users pass in their model's.
    """
    import torch

    path = Path(package) / "clip_retrieval" / "clip_inference" / "reader.py"
    spec = importlib.util.spec_from_file_location("clip_retrieval_reader", path)
    assert spec is not None
    assert spec.loader is not None
    reader = importlib.util.module_from_spec(spec)  # its package's __init__ wants a web server
    spec.loader.exec_module(reader)

    def preprocess(image: Image.Image) -> Any:  # what torchvision's transforms compute
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
    """The bare model on pixels that lie in memory."""
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
