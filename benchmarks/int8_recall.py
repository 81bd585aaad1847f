"""Measure what INT8 costs the demo model in recall, on a test set that is large enough to tell.

The demo has 500 test images, too few to resolve the 0.2 points of R@1 that INT8 may cost. Therefore
the demo's INT8 graphs are compared with the float32 graphs of its bundle on 5,000 images with
25,000 captions that neither training nor quantization has seen:

- as ten galleries of 500 images, the task of the demo: the mean of the ten differences, with
  Student's interval;
- as one gallery of 5,000, a harder task (less recall to lose, smaller margins), with the interval
  of `mwa-export parity`.

    mwa-export demo -o demo
    python benchmarks/int8_recall.py demo

The last line of the output is the path of the result. About 4 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import cpu_name
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.cpu import fast_int8, instruction_sets
from mwa_export.data.test_set import RetrievalData
from mwa_export.data.test_sets import read_data
from mwa_export.demo.scenes import write_scenes
from mwa_export.encoder.open import open_bundle
from mwa_export.metrics.recall import recall
from mwa_export.parity.measure import compare
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.spec import Tower

DEFAULT_OUT = Path(__file__).parent / "results" / "int8_recall.json"
SEED = 6073  # not used by the demo or its training
GALLERY = 500
T_95 = {5: 2.776, 10: 2.262, 20: 2.093}  # galleries -> Student's t, two-sided 95%

Vectors = NDArray[np.float32]
Pair = tuple[Vectors, Vectors]  # images, texts


def embed(bundle: Path, data: RetrievalData, runtime: str, precision: str) -> Pair:
    """Embed the whole set on one runtime."""
    options = RuntimeOptions(runtime, precision, allow_slow=True)
    side = open_bundle(bundle, runtime=options)
    images, failed = side.embed_pictures(data.pictures)
    assert not failed, failed
    return images, side.embed_captions(data.captions)


def differences(data: RetrievalData, before: Pair, after: Pair) -> dict[str, list[float]]:
    """Return recall after minus before, in points, for each gallery of GALLERY images."""
    found: dict[str, list[float]] = {}
    for start in range(0, len(data.image_ids), GALLERY):
        rows = slice(start, start + GALLERY)
        ids = data.image_ids[rows]
        own = np.isin(data.caption_image_ids, ids)
        captions = data.caption_image_ids[own]
        one, other = (
            recall(images[rows], texts[own], captions, image_ids=ids)
            for images, texts in (before, after)
        )
        for k in one.tr:
            found.setdefault(f"TR@{k}", []).append(other.tr[k] - one.tr[k])
            found.setdefault(f"IR@{k}", []).append(other.ir[k] - one.ir[k])
    return found


def with_interval(values: list[float]) -> dict[str, float]:
    """Return the mean and its 95% interval."""
    mean = statistics.mean(values)
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return {"difference": mean, "low": mean - half, "high": mean + half}


def measure(bundle: Path, data: RetrievalData, before: Pair, runtime: str) -> dict[str, Any]:
    """Compare INT8 on one runtime with float32."""
    after = embed(bundle, data, runtime, "int8")
    rows = np.searchsorted(data.image_ids, data.caption_image_ids)
    parity = compare(before, after, rows)
    galleries = {
        name: with_interval(values) for name, values in differences(data, before, after).items()
    }
    towers: tuple[Tower, ...] = ("vision", "text")
    return {
        "mean_cosine": {
            tower: float((one * other).sum(axis=1, dtype=np.float64).mean())
            for tower, one, other in zip(towers, before, after, strict=True)
        },
        "galleries_of_500": galleries,
        "one_gallery": {
            f"{d.direction.upper()}@{r.k}": {
                "float32": r.reference,
                "int8": r.candidate,
                "difference": r.difference,
                "low": r.low,
                "high": r.high,
            }
            for d in parity.directions
            for r in d.recalls
        },
        "reached": all(
            galleries[name]["difference"] >= -0.2 and galleries[name]["low"] >= -1
            for name in ("TR@1", "IR@1")
        ),
    }


def main() -> None:
    """Draw, embed, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder made by `mwa-export demo`")
    parser.add_argument("--galleries", type=int, choices=sorted(T_95), default=10)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    arguments = parser.parse_args()
    bundle = arguments.demo / "bundle"
    manifest = Bundle.open(bundle).manifest
    quantization = manifest.quantization
    assert quantization is not None, f"{bundle}: has no INT8 graphs"
    pictures = GALLERY * arguments.galleries
    with tempfile.TemporaryDirectory() as folder:
        data = read_data(write_scenes(Path(folder), family="target", count=pictures, seed=SEED))
        before = embed(bundle, data, "onnxruntime", "float32")
        dialects = {g.dialect for g in manifest.graphs if g.precision == "int8"}
        runtimes = sorted(dialects & {"onnxruntime", "openvino"})
        figures = {name: measure(bundle, data, before, name) for name in runtimes}
    for name, figure in figures.items():
        for task in ("galleries_of_500", "one_gallery"):
            for recall_name, entry in figure[task].items():
                print(
                    f"{name} {task} {recall_name} {entry['difference']:+.2f} points, interval "
                    f"{entry['low']:+.2f} to {entry['high']:+.2f}"
                )
    result = {
        "target": "R@1 drop <= 0.2 points, upper 95 % bound <= 1, in galleries of 500",
        "pictures": pictures,
        "captions": len(data.captions),
        "seed": SEED,
        "int8_layers_kept": quantization.kept,
        "calibration": quantization.data,
        "runtimes": figures,
        "machine": {
            "cpu": cpu_name(),
            "instruction_sets": sorted(instruction_sets() or ()),
            "fast_int8": fast_int8(instruction_sets()),
            "python": platform.python_version(),
        },
        "versions": {
            name: version(name) for name in ("mwa-export", "numpy", "onnxruntime", "openvino")
        },
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
