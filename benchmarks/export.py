"""Measure exports at real sizes: seconds, peak memory, and the merged graph's speed.

Makes a random checkpoint and runs `mwa-export onnx` on it in a separate process, which also
compares both towers with the PyTorch reference. Then exports the unmerged reference with plain
torch.onnx.export, and times both graphs on ONNX Runtime: interleaved in every round, medians of the
rounds. Quote the ratios: absolute times depend on the machine and its load.

    python benchmarks/export.py --size base
    python benchmarks/export.py --size large --image-size 384 --enhancer --no-speed

The last line of the output is one JSON object; --out also writes it to a file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import cpu_name

from mwa_export.bench.plain import plain_export
from mwa_export.inputs.noise import random_pixels, random_texts
from mwa_export.inputs.preprocess import normalize
from mwa_export.model.load import Model, ModelSource, load_model
from mwa_export.model.reference import reference_from_tensors
from mwa_export.model.synthetic import beit3_config, random_tensors, training_args
from mwa_export.runtimes.ort_session import session
from mwa_export.spec import AdapterConfig
from mwa_export.towers.export import onnx_from_tower
from mwa_export.towers.extract import tower_from_model
from mwa_export.towers.forward import TowerPlan
from mwa_export.towers.merge import merge_tower
from mwa_export.towers.steps import STEPS

TEXT_LENGTH = 64


def main() -> None:
    options = parse()
    results: dict[str, Any] = {"machine": machine(options.threads), "options": vars(options).copy()}
    results["options"].pop("out")
    with tempfile.TemporaryDirectory(dir=options.workdir) as name:
        folder = Path(name)
        checkpoint = write_checkpoint(options, folder)
        results["export"] = measure_export(options, checkpoint, folder)
        print(describe_export(results["export"]), flush=True)
        if options.speed:
            model = load_model(ModelSource(checkpoint))
            results["speed"] = measure_speed(options, model, folder)
            for tower, speed in results["speed"].items():
                print(describe_speed(tower, speed), flush=True)
    line = json.dumps(results)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(line)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--size", choices=["base", "large"], default="base")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--layernorm", choices=["none", "in", "out"], default="in")
    parser.add_argument("--bottleneck", type=int, default=64)
    parser.add_argument("--no-adapter", action="store_true")
    parser.add_argument("--enhancer", action="store_true")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--steps", action="store_true", help="also time the graph without each merge step"
    )
    parser.add_argument("--no-speed", dest="speed", action="store_false")
    parser.add_argument("--workdir", help="folder for temporary files, several GB at size large")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def machine(threads: int) -> dict[str, Any]:
    import onnx
    import onnxruntime

    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def write_checkpoint(options: argparse.Namespace, folder: Path) -> Path:
    adapter = None
    if not options.no_adapter:
        adapter = AdapterConfig("both", options.bottleneck, options.layernorm, 0.6, "parallel")
    config = beit3_config(
        options.size, image_size=options.image_size, adapter=adapter, enhancer=options.enhancer
    )
    path = folder / "checkpoint.pth"
    torch.save({"model": random_tensors(config), "args": training_args(config)}, path)
    return path


def measure_export(options: argparse.Namespace, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Run the command as users do; peak memory is what the system reports for the process."""
    code = "from mwa_export.cli.main import main; main()"
    bundle = folder / "bundle"
    command = [sys.executable, "-c", code, "onnx", str(checkpoint), "-o", str(bundle), "-q"]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    model = load_model(ModelSource(checkpoint))
    weights = 4 * sum(tensor.numel() for tensor in model.tensors.values())
    return {
        "seconds": round(seconds, 1),
        "parameters": weights // 4,
        "weights_bytes": weights,
        "peak_bytes": peak,
        "peak_over_weights": round(peak / weights, 2),
        "bundle_bytes": sum(entry["bytes"] for entry in manifest["files"].values()),
        "largest_difference_from_reference": manifest["export"][
            "largest_difference_from_reference"
        ],
    }


def measure_speed(options: argparse.Namespace, model: Model, folder: Path) -> dict[str, Any]:
    reference = reference_from_tensors(model.config, model.tensors)
    results = {}
    for tower in ("vision", "text"):
        feed = _feed(tower, model, options.batch)
        graphs = {"plain": plain_export(reference, tower, feed, folder / f"plain_{tower}.onnx")}
        for name, steps in _choices(tower, options.steps).items():
            plan, tensors = tower_from_model(model.config, model.tensors, tower)
            graphs[name] = _write(
                merge_tower(plan, tensors, steps), folder / f"{name}_{tower}.onnx"
            )
        results[tower] = interleave(graphs, feed, options.rounds, options.threads)
    return results


def interleave(
    graphs: dict[str, Path], feed: dict[str, Any], rounds: int, threads: int
) -> dict[str, Any]:
    """Time every graph once per round, so that changes in the machine's load affect all equally."""
    runners = {name: session(path, threads=threads) for name, path in graphs.items()}
    outputs = {name: runner.run(None, feed)[0] for name, runner in runners.items()}  # warm-up
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner.run(None, feed)
            times[name].append(time.perf_counter() - start)
    plain = times["plain"]
    return {
        name: {
            "median_ms": round(1000 * statistics.median(taken), 1),
            "min_ms": round(1000 * min(taken), 1),
            "speedup": round(
                statistics.median(p / t for p, t in zip(plain, taken, strict=True)), 3
            ),
            "difference": float(np.abs(outputs[name] - outputs["plain"]).max()),
        }
        for name, taken in times.items()
    }


def describe_export(result: dict[str, Any]) -> str:
    differences = ", ".join(
        f"{tower} {value:.1e}"
        for tower, value in result["largest_difference_from_reference"].items()
    )
    return (
        f"{result['parameters'] / 1e6:.0f} M parameters: exported and checked in "
        f"{result['seconds']} s, peak memory {result['peak_bytes'] / 1e9:.2f} GB = "
        f"{result['peak_over_weights']} x the float32 weights; difference {differences}"
    )


def describe_speed(tower: str, speed: dict[str, Any]) -> str:
    lines = [f"| {tower} | median ms | speed against plain |", "|---|---|---|"]
    lines += [f"| {n} | {r['median_ms']} | {r['speedup']:.3f} x |" for n, r in speed.items()]
    return "\n".join(lines)


def _choices(tower: str, each: bool) -> dict[str, list[str]]:
    choices = {"merged": list(STEPS)}
    if each:
        other = "text-mask" if tower == "vision" else "constants"
        for left_out in STEPS:
            if left_out != other:
                choices[f"without {left_out}"] = [step for step in STEPS if step != left_out]
        choices["unmerged"] = []
    return choices


def _feed(tower: str, model: Model, batch: int) -> dict[str, Any]:
    rng, backbone = np.random.default_rng(0), model.config.backbone
    if tower == "vision":
        return {"image": normalize(random_pixels(rng, batch, backbone.image_size))}
    ids, mask = random_texts(rng, batch, TEXT_LENGTH, backbone.vocab_size)
    return {"token_ids": ids, "padding_mask": mask}


def _write(merged: tuple[TowerPlan, dict[str, torch.Tensor]], path: Path) -> Path:
    return onnx_from_tower(*merged, path)[0]


if __name__ == "__main__":
    main()
