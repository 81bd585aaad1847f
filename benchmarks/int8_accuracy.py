"""Measure how INT8 changes embeddings at real size, with and without outliers, and peak memory.

Makes a random checkpoint of base size (every tensor matters), exports it, calibrates on drawn
images and random token ids, quantizes every layer, and compares embeddings of other images and
texts with float32: mean and lowest cosine. Then outliers are injected: 1% of the channels of every
LayerNorm before a quantized GEMM are multiplied by 30, and the weights after them divided by 30.
This leaves the float32 function unchanged but breaks naive INT8. `--ways 0 2` selects ways to
calibrate; `--runtimes onnxruntime openvino` adds the second runtime (inexact on CPUs without VNNI).

    python benchmarks/int8_accuracy.py --samples 64 --out benchmarks/results/int8_accuracy.json
    python benchmarks/int8_accuracy.py --samples 500 --only-memory

The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import command_line, cpu_name

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import GraphFile
from mwa_export.bundle.update import changed_bundle
from mwa_export.calib.calibrate import CalibrationOptions, calibrate
from mwa_export.calib.dialects import DIALECTS
from mwa_export.calib.samples import Samples
from mwa_export.calib.sites import NormFold, find_sites
from mwa_export.calib.smoothing import apply_smoothing
from mwa_export.calib.variants import Variants
from mwa_export.cpu import instruction_sets
from mwa_export.demo.scenes import picture_from_seed
from mwa_export.export.export import bundle_from_model
from mwa_export.graphs.edit import FloatGraph
from mwa_export.inputs.decode import decode_picture
from mwa_export.inputs.preprocess import pixels_from_image
from mwa_export.model.load import ModelSource, load_model
from mwa_export.model.synthetic import beit3_config, random_tensors, training_args
from mwa_export.runtimes.backend import Backend
from mwa_export.runtimes.onnxrt import OnnxBackend
from mwa_export.runtimes.open import cpu_backend
from mwa_export.spec import TOWERS, AdapterConfig, Embeddings, Tower

OUTLIERS, FACTOR = 0.01, 30.0
WAYS = {
    "naive: minmax, no smoothing": CalibrationOptions(method="minmax", smooth=False),
    "auto ranges, no smoothing": CalibrationOptions(smooth=False),
    "auto ranges, smoothing": CalibrationOptions(),
    "auto ranges, smoothing, learned rounding": CalibrationOptions(rounding="learned"),
}


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.workdir) as name:
        folder = Path(name)
        bundle = make_bundle(folder, options.size)
        if options.only_memory:
            results = measure_memory(bundle, make_samples(bundle, options.samples, seed=1))
        else:
            calibration = make_samples(bundle, options.samples, seed=1)
            test = make_samples(bundle, options.test, seed=2)
            broken = with_outliers(bundle, folder / "outliers")
            results = {
                label: compare(source, calibration, test, folder, options)
                for label, source in (("as trained", bundle), ("with outliers", broken))
            }
            results["difference between float32 graphs"] = float_difference(bundle, broken, test)
    results = {
        "machine": {"cpu": cpu_name()},
        "command": command_line(),
        "versions": {n: version(n) for n in ("numpy", "onnx", "onnxruntime", "openvino")},
        "instruction sets": sorted(instruction_sets() or ()),
        "options": {"samples": options.samples, "test": options.test, "size": options.size},
        **results,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=["base", "large"], default="base")
    parser.add_argument("--samples", type=int, default=64, help="images and texts for calibration")
    parser.add_argument("--test", type=int, default=32, help="images and texts for the comparison")
    parser.add_argument(
        "--ways", type=int, nargs="+", choices=range(len(WAYS)), default=list(range(len(WAYS)))
    )
    parser.add_argument(
        "--runtimes", nargs="+", choices=["onnxruntime", "openvino"], default=["onnxruntime"]
    )
    parser.add_argument(
        "--only-memory", action="store_true", help="only calibrate, and measure peak memory"
    )
    parser.add_argument("--workdir", help="folder for temporary files, several GB")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def make_bundle(folder: Path, size: str) -> Bundle:
    """Make a bundle of random weights, in a separate process so that its memory does not count."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_export, args=(folder, size))
    process.start()
    process.join()
    assert process.exitcode == 0
    return Bundle.open(folder / "bundle")


def _export(folder: Path, size: str) -> None:
    import torch

    config = beit3_config(size, adapter=AdapterConfig("both", 64, "in", 0.6, "parallel"))
    path = folder / "checkpoint.pth"
    torch.save({"model": random_tensors(config), "args": training_args(config)}, path)
    bundle_from_model(load_model(ModelSource(path)), folder / "bundle")


def make_samples(bundle: Bundle, count: int, seed: int) -> Samples:
    """Make samples: drawn images, and texts of 8 to 30 random ids (the weights have no words)."""
    backbone = bundle.manifest.model.backbone
    rng = np.random.default_rng(seed)
    pixels = []
    for index in range(count):
        picture = picture_from_seed("target", seed, index)
        image = decode_picture(picture.jpeg, "drawing")
        pixels.append(pixels_from_image(image, backbone.image_size))
    lengths = rng.integers(6, 29, count)
    texts = tuple((0, *rng.integers(4, backbone.vocab_size, n).tolist(), 2) for n in lengths)
    return Samples(np.stack(pixels), texts, "drawn", "drawn", seed)


def with_outliers(bundle: Bundle, out: Path) -> Bundle:
    """Multiply 1% of the normalized channels by 30 without changing the float32 function."""
    rng = np.random.default_rng(0)
    with changed_bundle(bundle, out) as change:
        for tower in TOWERS:
            path = bundle.graph(tower)[0]
            graph = FloatGraph.load(path)
            sites = {site.name: site for site in find_sites(graph)}
            divide = {}
            for site in sites.values():
                if not any(isinstance(fold, NormFold) for fold in site.folds):
                    continue
                scale = np.ones(site.width, np.float32)
                normed = sum(f.width for f in site.folds if isinstance(f, NormFold))
                chosen = rng.permutation(normed)[: max(1, round(OUTLIERS * normed))]
                scale[chosen] = 1 / FACTOR
                divide[site.name] = scale
            apply_smoothing(graph, sites, divide).write(change.folder / path.name)
        change.write(bundle.manifest)
    return Bundle.open(out)


def compare(
    bundle: Bundle, calibration: Samples, test: Samples, folder: Path, chosen: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Compute cosines for the chosen ways to calibrate, on the chosen runtimes."""
    exact = embed_all(OnnxBackend(bundle, check=False), test)
    results: dict[str, dict[str, Any]] = {}
    for way, options in (list(WAYS.items())[number] for number in chosen.ways):
        start = time.perf_counter()
        variants = Variants(bundle, calibrate(bundle, calibration, options))
        print(f"{way}: calibrated in {time.perf_counter() - start:.0f} s", flush=True)
        results[way] = {}
        for name in chosen.runtimes:
            graphs: dict[Tower, GraphFile] = {
                tower: variants.write(
                    tower, {s.name for s in variants.sites(tower)}, DIALECTS[name], folder
                )
                for tower in TOWERS
            }
            found = embed_all(cpu_backend(bundle, name, graphs), test)
            results[way][name] = cosines(exact, found)
            print(f"  {name}: {results[way][name]}", flush=True)
    return results


def float_difference(one: Bundle, other: Bundle, test: Samples) -> float:
    """Return the largest difference between the float32 graphs, to show that injection is exact."""
    ours, theirs = (embed_all(OnnxBackend(b, check=False), test) for b in (one, other))
    return max(float(np.abs(ours[tower] - theirs[tower]).max()) for tower in TOWERS)


def measure_memory(bundle: Bundle, samples: Samples) -> dict[str, Any]:
    """Measure the peak memory of this process, which only draws the samples and calibrates."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    calibrate(bundle, samples)
    return {
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_bytes_before": before,
        "seconds": round(time.perf_counter() - start, 1),
    }


def embed_all(backend: Backend, samples: Samples) -> Mapping[Tower, Embeddings]:
    images = [backend.embed_images(*inputs) for inputs in samples.batches("vision")]
    texts = [backend.embed_texts(*inputs) for inputs in samples.batches("text")]
    return {"vision": np.concatenate(images), "text": np.concatenate(texts)}


def cosines(
    exact: Mapping[Tower, Embeddings], found: Mapping[Tower, Embeddings]
) -> dict[str, dict[str, float]]:
    result: dict[str, dict[str, float]] = {}
    for tower in TOWERS:
        cosine = (exact[tower].astype(np.float64) * found[tower]).sum(axis=1)
        result[tower] = {
            "mean": round(float(cosine.mean()), 6),
            "least": round(float(cosine.min()), 6),
        }
    return result


if __name__ == "__main__":
    main()
