"""Measure TensorRT on this machine's GPU: speed against PyTorch, recall of the demo model, cosines.

    python benchmarks/gpu.py                                # all stages in one Python
    python benchmarks/gpu.py --stages prepare --tensorrt 8  # each stage in a separate Python
    python benchmarks/gpu.py --stages trt                   #   needs only numpy and tensorrt
    python benchmarks/gpu.py --stages torch,ort,report

Stages exchange files through --work:

- prepare (no GPU) makes the demo model's bundle and models of base and large size with random
  weights from seeds, calibrates them, and writes the graphs to compile.
- trt builds engines and times them in turns, on the device and as a caller sees it.
- torch times the unmerged reference (eager float32, eager float16, fused attention, torch.compile)
  and the GPU's GEMM peak.
- ort times ONNX Runtime's CUDA provider, if it is installed.
- report writes GPU.json and GPU.md to benchmarks/results.

The last line of the output is the path of the table. With --live, the table is written after each
measurement, so that a killed stage loses nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import Call, command_line

from mwa_export.errors import MwaExportError, UsageError
from mwa_export.files import new_file
from mwa_export.trt.device import select_device

STAGES = ("prepare", "trt", "torch", "ort", "report")
ON_GPU = ("trt", "torch", "ort")
MODELS = ("demo", "base", "large")
PRECISIONS = ("float16", "bfloat16", "int8", "float8")


def main() -> None:
    options = parse()
    try:
        run(options)
    except MwaExportError as error:
        sys.exit(str(error))
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed here, and this stage needs it.")


def run(options: argparse.Namespace) -> None:
    """Run the requested stages."""
    if options.rtx:
        _rtx_as_tensorrt()
    options.work.mkdir(parents=True, exist_ok=True)
    options.call = Call(options.seconds, lambda: report(options) if options.live else None)
    for stage in options.stages:
        print(f"stage {stage}", flush=True)
        if stage == "report":
            print(report(options))
            continue
        if stage in ON_GPU:
            select_device()
        for model in options.models:
            if stage in ("trt", "ort"):
                make_whole(options.work / model)
            STEPS[stage](options, model)


def make_whole(folder: Path) -> None:
    """Restore the weights in the graphs of a model that was transferred here."""
    from gpu_seeds import grow

    grow(folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stages", type=_list_of(STAGES), default=list(STAGES))
    parser.add_argument("--models", type=_list_of(MODELS), default=list(MODELS))
    parser.add_argument("--precisions", type=_list_of(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--work", type=Path, default=Path("gpu-work"), help="several GB")
    parser.add_argument(
        "--tensorrt",
        type=int,
        choices=[8, 10, 11],
        help="version to prepare for; default: the installed one",
    )
    parser.add_argument("--samples", type=int, default=64, help="samples for calibration")
    parser.add_argument("--recall", type=int, default=500, help="images in the demo's test set")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--builder-level", type=int, help="0 to 5; default: TensorRT's own")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="start no step after this time"
    )
    parser.add_argument("--live", action="store_true", help="report after each measurement")
    parser.add_argument("--merge", type=Path, nargs="+", default=[], help="reports to merge")
    parser.add_argument("--rtx", action="store_true", help="use TensorRT-RTX as TensorRT")
    parser.add_argument("--out-folder", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


def prepare(options: argparse.Namespace, model: str) -> None:
    from gpu_models import Sizes, prepare

    sizes = Sizes(options.samples, 64, options.recall)
    prepare(options.work, model, _major(options), options.precisions, sizes, Steps())


def trt(options: argparse.Namespace, model: str) -> None:
    from gpu_trt import measure

    level = options.builder_level
    measure(
        options.work,
        model,
        rounds=options.rounds,
        level=level,
        progress=Steps(),
        call=options.call,
    )


def torch(options: argparse.Namespace, model: str) -> None:
    from gpu_torch import measure

    measure(options.work, model, rounds=options.rounds, progress=Steps(), call=options.call)


def ort(options: argparse.Namespace, model: str) -> None:
    from gpu_ort import measure

    measure(options.work, model, rounds=options.rounds, progress=Steps(), call=options.call)


def report(options: argparse.Namespace) -> Path:
    """Write the results. Returns the path of the table."""
    from gpu_report import collect, gpus, merged, table

    parts = [json.loads(path.read_text(encoding="utf-8")) for path in options.merge]
    here = collect(options.work, options.models)
    result = merged([*(part["models"] for part in parts), here])
    if not result:
        raise UsageError(f"{options.work}: no stage has left anything here. Run them first.")
    name = next(iter(gpus(result)), "gpu").lower().replace("nvidia ", "").replace(" ", "_")
    page: Path = options.out_folder / f"{name}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "nvidia_smi": nvidia_smi()}
    command = command_line()
    whole = {"command": command, "machine": machine, "models": result}
    if parts:  # the machines that measured matter, not the one that merges
        whole |= {"machine": parts[-1]["machine"], "calls": [part["command"] for part in parts]}
    with new_file(page.with_suffix(".json")) as path:
        path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    with new_file(page) as path:
        path.write_text(f"`{command}`\n\n{table(result)}", encoding="utf-8")
    return page


def _rtx_as_tensorrt() -> None:
    """Use TensorRT-RTX as TensorRT 11, whose interface it has under its own version number."""
    module: Any = importlib.import_module("tensorrt_rtx_bindings")
    module.__version__ = f"11.0+rtx.{module.__version__}"
    sys.modules["tensorrt"] = module


STEPS = {"prepare": prepare, "trt": trt, "torch": torch, "ort": ort}


class Steps:
    """Progress display that prints a line per step."""

    def __call__(self, text: str, total: int | None = None) -> None:
        print(f"  {text}", flush=True)

    def advance(self, rows: int) -> None:
        pass


def nvidia_smi() -> str | None:
    """Return name, driver, clocks and power limit of the GPUs, as reported by nvidia-smi."""
    query = "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _list_of(names: tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        found = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in found if name not in names]
        if unknown or not found:
            raise argparse.ArgumentTypeError(f"expected some of: {', '.join(names)}")
        return found

    return parse


def _major(options: argparse.Namespace) -> int:
    """Return the major version of TensorRT to prepare for."""
    if options.tensorrt is not None:
        return int(options.tensorrt)
    try:
        return int(importlib.import_module("tensorrt").__version__.split(".")[0])
    except ImportError:
        sys.exit("No TensorRT here, so say which one will build: --tensorrt 8, 10 or 11")


if __name__ == "__main__":
    main()
