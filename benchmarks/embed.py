"""Compare `mwa-export embed` with its bare model and with Pillow, and measure its memory growth.

Every measurement is a separate process. Contenders take turns in every round, and medians of the
rounds are shown. Quote the ratios: absolute rates depend on the machine and its load. All inputs
are drawn here; 500 images are distinct files and the others are links to them, so every contender
reads them from the page cache.

    python benchmarks/embed.py
    python benchmarks/embed.py --parts base memory          # keeps the other parts of --out
    python benchmarks/embed.py --pictures 200 --texts 2000 --compared 200 --rounds 1 \\
        --parts start pictures texts memory --out smoke.json

clip-retrieval is installed without its dependencies into a temporary folder (its file reader only
needs PyTorch and Pillow). If it cannot be run, it is left out, and the output says why. Results go
to --out as JSON; the last line of the output is its path.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from embed_data import base_bundle, free_bundle, tiny_bundle, write_pictures, write_texts
from machine import command_line, cpu_name

from mwa_export.cpu import cores

HERE = Path(__file__).parent
MIB = 1 << 20
SIZE = 224  # image size of all models except the tiny one
PARTS = ("start", "pictures", "texts", "base", "memory")
INTERVAL = 0.02  # seconds between samples of a process
Result = dict[str, Any]


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.workdir) as name:
        work = Path(name)
        print(f"drawing {max(options.pictures):,} pictures and {max(options.texts):,} texts")
        data = {n: write_pictures(work / f"pictures-{n}", n) for n in options.pictures}
        data[0] = write_pictures(work / "pictures-compared", options.compared)
        texts = {n: write_texts(work / f"texts-{n}.jsonl", n) for n in options.texts}
        free, tiny = free_bundle(work / "free"), tiny_bundle(work / "tiny")
        measure: dict[str, Callable[[], Result]] = {
            "start": lambda: measure_start(options, tiny, data[0], work),
            "pictures": lambda: compare_pictures(options, free, data[0], work),
            "texts": lambda: measure_texts(options, {"free": free, "tiny": tiny}, texts, work),
            "base": lambda: compare_base(options, data[0], work),
            "memory": lambda: {
                "runs": [
                    *(grow(free, "images", data[n], n, work) for n in sorted(options.pictures)),
                    *(grow(free, "texts", texts[n], n, work) for n in sorted(options.texts)),
                ]
            },
        }
        results: Result = json.loads(options.out.read_text()) if options.out.exists() else {}
        for part in options.parts:
            results[part] = {"machine": machine(), **measure[part]()}
            save(options.out, results)
    print(table(results))
    print(options.out)


def save(path: Path, results: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--texts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--compared", type=int, default=6000, help="images in the comparisons")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base-pictures", type=int, default=256)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument(
        "--base-bundle", type=Path, help="bundle with INT8 graphs; default: make one"
    )
    parser.add_argument("--base-runtime", default="openvino", choices=["openvino", "onnxruntime"])
    parser.add_argument("--clip-retrieval", type=Path, help="folder that contains the package")
    parser.add_argument("--workdir", help="folder for temporary files, several GB")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/embed.json"))
    return parser.parse_args()


# --- measurements ----------------------------------------------------------------------------


def measure_start(options: argparse.Namespace, tiny: Path, pictures: Path, work: Path) -> Result:
    """Measure seconds from process start to the first embedded row, including checks."""
    arguments = [tiny, "--images", pictures, "--limit", 64, "--runtime", "onnxruntime"]
    rounds = [embed(arguments, work)["first_row_seconds"] for _ in range(options.rounds)]
    return {"seconds": statistics.median(rounds), "rounds": rounds}


def compare_pictures(options: argparse.Namespace, free: Path, folder: Path, work: Path) -> Result:
    """Compare ours with a nearly free model, Pillow alone, and clip-retrieval's reader."""
    shared = {"pictures": str(folder), "size": SIZE, "workers": cores()}
    contenders: dict[str, Callable[[], Result]] = {
        "embed": lambda: embed([free, "--images", folder, *onnx()], work),
        "pillow": lambda: job("pillow", **shared),
    }
    package, reason = clip_retrieval(options, work)
    if package is not None:
        contenders["clip-retrieval"] = lambda: job("clip_retrieval", package=str(package), **shared)
    return {**interleaved(options.rounds, contenders), "left_out": reason}


def measure_texts(
    options: argparse.Namespace, bundles: dict[str, Path], texts: dict[int, Path], work: Path
) -> Result:
    """Measure rows per second on distinct texts; fewer texts for the slower model."""
    counts = {"free": sorted(texts)[len(texts) // 2], "tiny": min(texts)}
    contenders: dict[str, Callable[[], Result]] = {
        name: partial(embed, [bundle, "--texts", texts[counts[name]], *onnx()], work)
        for name, bundle in bundles.items()
    }
    return {**interleaved(options.rounds, contenders), "count": counts}


def compare_base(options: argparse.Namespace, folder: Path, work: Path) -> Result:
    """Compare the whole job with the bare model in INT8: base, 224 pixels, same runtime, batch."""
    runtime = options.base_runtime
    bundle = options.base_bundle or base_bundle(work / "base", runtime)
    chosen = {"runtime": runtime, "precision": "int8", "threads": cores(), "allow_slow": True}
    batch, rows = 32, options.base_pictures
    asked = ["--runtime", runtime, "--precision", "int8", "--allow-slow", "--batch", batch]
    contenders: dict[str, Callable[[], Result]] = {
        "embed": lambda: embed([bundle, "--images", folder, "--limit", rows, *asked], work),
        "model": lambda: job(
            "model_images", bundle=str(bundle), batch=batch, rows=rows, runtime=chosen
        ),
    }
    return interleaved(options.rounds, contenders)


def grow(free: Path, kind: str, source: Path, count: int, work: Path) -> Result:
    """Measure the memory of one run, see `Observed.result`."""
    found = embed([free, f"--{kind}", source, *onnx()], work)
    return {
        "kind": kind,
        "rows": count,
        "rows_per_second": found["rows_per_second"],
        "wall_seconds": found["wall_seconds"],
        "rss_at_tenth": found["rss_at_tenth"],
        "rss_most_later": found["rss_most_later"],
        "rss_at_end": found["rss_at_end"],
        "added_by_last_nine_tenths": found["rss_most_later"] - found["rss_at_tenth"],
    }


def interleaved(rounds: int, contenders: dict[str, Callable[[], Result]]) -> Result:
    """Run every contender in every round. Returns median rates and ratios of ours to the others.

    The order is reversed in every other round.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            rate = contenders[name]()["rows_per_second"]
            found[name].append(rate)
            print(f"  round {number + 1}: {name} {rate:,.1f} rows/s", flush=True)
    ours = next(iter(contenders))
    return {
        "rows_per_second": {name: statistics.median(rates) for name, rates in found.items()},
        f"{ours}_over": {
            name: statistics.median(a / b for a, b in zip(found[ours], rates, strict=True))
            for name, rates in found.items()
            if name != ours
        },
        "rounds": found,
    }


# --- processes -------------------------------------------------------------------------------


def onnx() -> list[object]:
    return ["--runtime", "onnxruntime", "--precision", "float32"]


def job(name: str, **arguments: Any) -> Result:
    """Run a measurement of embed_jobs.py."""
    command = [sys.executable, str(HERE / "embed_jobs.py"), name, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr}")
    found: Result = json.loads(done.stdout.splitlines()[-1])
    return found


def embed(arguments: list[object], work: Path) -> Result:
    """Run `mwa-export embed ARGUMENTS` and observe the process."""
    out, log = work / "out", work / "log.jsonl"
    code = "from mwa_export.cli.main import main; main()"
    command = [sys.executable, "-c", code, "embed", *map(str, arguments), "-o", str(out)]
    seen = Observed(log)
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--log-json", str(log), "-q"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    watcher = threading.Thread(target=seen.watch, args=(process.pid, start))
    watcher.start()
    errors = process.stderr.read().decode() if process.stderr else ""
    status = process.wait()
    wall = time.perf_counter() - start
    seen.ended = True
    watcher.join()
    if status:
        sys.exit(f"embed: exit status {status}\n{errors}")
    finish = [json.loads(line) for line in log.read_text().splitlines()][-1]
    log.unlink()
    shutil.rmtree(out)
    return {
        "rows_per_second": finish["rows_done"] / finish["seconds"],
        "wall_seconds": round(wall, 3),
        **seen.result(wall),
    }


class Observed:
    """Resident memory of a process over time, and the time of the first row in its log."""

    def __init__(self, log: Path) -> None:
        self.log, self.ended = log, False
        self.first_row: float | None = None
        self.memory: list[tuple[float, int]] = []

    def watch(self, pid: int, start: float) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self.ended:
            now = time.perf_counter() - start
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except (OSError, IndexError, ValueError):
                break
            if pages:
                self.memory.append((now, pages * page))
            if (
                self.first_row is None
                and self.log.exists()
                and "first-rows" in self.log.read_text()
            ):
                self.first_row = now
            time.sleep(INTERVAL)

    def result(self, wall: float) -> Result:
        """Return bytes of memory after a tenth of the time since the first row, and later."""
        first = self.first_row or 0.0
        tenth = first + 0.1 * (wall - first)
        at = [rss for now, rss in self.memory if now <= tenth] or [self.memory[0][1]]
        later = [rss for now, rss in self.memory if now > tenth] or [self.memory[-1][1]]
        return {
            "first_row_seconds": None if self.first_row is None else round(self.first_row, 3),
            "rss_at_tenth": at[-1],
            "rss_most_later": max(later),
            "rss_at_end": later[-1],
        }


def clip_retrieval(options: argparse.Namespace, work: Path) -> tuple[Path | None, str | None]:
    """Return the folder of clip-retrieval, or the reason why it cannot be measured."""
    folder = options.clip_retrieval or work / "clip-retrieval"
    if options.clip_retrieval is None:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "clip-retrieval"]
        done = subprocess.run(
            [*command, "--target", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return None, f"clip-retrieval cannot be installed: {done.stderr.strip()[-200:]}"
    if not (folder / "clip_retrieval/clip_inference/reader.py").is_file():
        return None, f"{folder}: has no clip_retrieval/clip_inference/reader.py"
    return folder, None


# --- results ---------------------------------------------------------------------------------


def machine() -> Result:
    packages = ("numpy", "pillow", "onnxruntime", "openvino", "torch", "pyarrow")
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "versions": {name: version(name) for name in packages},
        "command": command_line(),
    }


def table(results: Result) -> str:
    """Format the measured parts as Markdown: measurement, target, result."""
    rows = {
        "base": base_rows,
        "pictures": picture_rows,
        "texts": text_rows,
        "memory": memory_rows,
        "start": start_rows,
    }
    lines = ["| | target | found |", "| --- | --- | --- |"]
    for part in (part for part in rows if part in results):
        lines += [f"| {' | '.join(row)} |" for row in rows[part](results[part])]
    return "\n".join(lines)


Row = tuple[str, str, str]


def base_rows(base: Result) -> list[Row]:
    found = f"{100 * base['embed_over']['model']:.1f} %"
    return [("whole job / bare model, base 224 INT8", ">= 95 %", found)]


def picture_rows(pictures: Result) -> list[Row]:
    over, cores = pictures["embed_over"], pictures["machine"]["cores"]
    per_core = {name: rate / cores for name, rate in pictures["rows_per_second"].items()}
    pillow = f"{per_core['embed']:,.0f} / {per_core['pillow']:,.0f} = {100 * over['pillow']:.1f} %"
    peer = str(pictures["left_out"])
    if "clip-retrieval" in over:
        rate = per_core["clip-retrieval"]
        peer = f"{over['clip-retrieval']:.2f} x ({rate:,.0f} per second and core)"
    return [
        ("pictures of 640x480 per second and core, free model, / Pillow", ">= 90 %", pillow),
        ("rows/s over clip-retrieval's reader, free model", ">= 1.5 x", peer),
    ]


def text_rows(texts: Result) -> list[Row]:
    return [
        (f"texts, {name} model", ">= 20,000 rows/s", f"{rate:,.0f} rows/s")
        for name, rate in texts["rows_per_second"].items()
    ]


def memory_rows(memory: Result) -> list[Row]:
    return [
        (
            f"memory, {run['rows']:,} {run['kind']}: the last 90 % adds",
            "< 50 MiB",
            f"{run['added_by_last_nine_tenths'] / MIB:.1f} MiB, from "
            f"{run['rss_at_tenth'] / MIB:,.0f} MiB; {run['rows_per_second']:,.0f} rows/s",
        )
        for run in memory["runs"]
    ]


def start_rows(start: Result) -> list[Row]:
    return [("start to first row, tiny bundle", "< 2 s", f"{start['seconds']:.2f} s")]


if __name__ == "__main__":
    main()
