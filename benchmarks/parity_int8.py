"""Run parity on graphs made by another tool: ONNX Runtime's dynamic INT8.

Quantizes both towers of the demo's bundle with `onnxruntime.quantization.quantize_dynamic`, and
compares them with the float32 graphs on the demo's 500 images and 2,500 captions.

    mwa-export demo -o demo
    python benchmarks/parity_int8.py demo --out benchmarks/results/parity_int8.json

The last line of the output is the path of the result.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

from machine import cpu_name
from onnxruntime.quantization import quantize_dynamic

from mwa_export.data.test_sets import read_data
from mwa_export.parity.result import Parity
from mwa_export.parity.run import RunOptions, compare_models

DEFAULT_OUT = Path(__file__).parent / "results" / "parity_int8.json"


def compare_int8(demo: Path) -> Parity:
    """Quantize the demo's towers and compare them with the float32 ones."""
    bundle = demo / "bundle"
    with tempfile.TemporaryDirectory() as folder:
        graphs = []
        for tower in ("vision", "text"):
            graphs.append(str(Path(folder) / f"{tower}.int8.onnx"))
            quantize_dynamic(bundle / f"{tower}.onnx", graphs[-1])
        run = RunOptions(graphs=tuple(graphs), layers=True)
        return compare_models(
            bundle, bundle, read_data(demo / "data" / "dataset.json"), run=run
        ).result


def main() -> None:
    """Run, print the recalls, and write the figures without file names of this machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder made by `mwa-export demo`")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # ONNX Runtime's advice to preprocess
    result = compare_int8(arguments.demo)
    figures = {
        name: part
        for name, part in result.to_json().items()
        if name in ("directions", "cosines", "cross", "layers", "confidence", "resamples", "seed")
    }
    figures["machine"] = {"cpu": cpu_name(), "python": platform.python_version()}
    figures["versions"] = {name: version(name) for name in ("mwa-export", "numpy", "onnxruntime")}
    for direction in result.directions:
        for change in direction.recalls:
            print(
                f"{direction.direction.upper()}@{change.k} {change.reference:.2f} to "
                f"{change.candidate:.2f}, interval {change.low:+.2f} to {change.high:+.2f}, "
                f"{change.won} won, {change.lost} lost"
            )
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
