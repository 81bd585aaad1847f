"""Measure how time and peak memory of recall and of a comparison grow with the number of queries.

Two models are simulated by random unit vectors of realistic recall, with five captions per image;
the candidate is the reference plus a little noise. `recall` (one model) and `compare` (two models,
all measures) are measured against the two usual ways to compute recall, with the whole score matrix
in memory: numpy.argsort, and torch.topk as in the reference evaluation. Matrices above 2 GiB are
left out. All must give equal recall.

Every measurement is a separate process. Sizes and jobs take turns in every round, and medians of
the rounds are shown. Seconds are those of the job alone, without starting Python, imports and
loading the embeddings. The peak is that of the whole process; "added" is the job's share of it.
Quote the ratios: absolute times depend on the machine and its load.

    python benchmarks/parity.py
    python benchmarks/parity.py --large --rounds 1

Results go to --out as JSON; the last line of the output is its path.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import cpu_name
from numpy.typing import NDArray

CAPTIONS = 5  # per image
LARGE = 31_000  # images of Flickr30k, all splits
SIGNAL, SPREAD = 4.2, 1.0  # right scores above wrong ones, in standard deviations: mean and spread
CANDIDATE_NOISE = 0.03  # length of the noise added to a unit vector, about that of int8
MOST_SCORES = 2 << 30  # maximum bytes of a whole score matrix
MIB = 1 << 20
KS = (1, 5, 10)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Recalls = list[float]  # percent: TR@1, 5, 10, IR@1, 5, 10


def main() -> None:
    options = parse()
    if options.generate is not None:
        return generate(options.data, options.generate, options.width)
    if options.job is not None:
        return print(json.dumps(measure(options.data, options.job)))
    sizes = [*options.images, *([LARGE] if options.large else [])]
    with tempfile.TemporaryDirectory(dir=options.workdir) as name:
        folders = {images: Path(name) / str(images) for images in sizes}
        for images, folder in folders.items():
            folder.mkdir()
            run(options, "--generate", str(images), "--data", str(folder))
        rounds = measure_all(options, folders)
    rows = [row for images in folders for row in summarize(images, rounds[images])]
    results = {
        "machine": machine(options.threads),
        "options": {"width": options.width, "rounds": options.rounds},
        "sizes": [{"images": n, "captions": CAPTIONS * n, "left_out": left_out(n)} for n in sizes],
        "results": rows,
    }
    print(table(rows))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--images", type=int, nargs="+", default=[1000, 5000], help="sizes; 5000 is COCO's test set"
    )
    parser.add_argument("--large", action="store_true", help=f"also {LARGE} images, as Flickr30k")
    parser.add_argument(
        "--width", type=int, default=768, help="width of the embeddings, at least 32"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workdir", help="folder for temporary files, 1.2 GB with --large")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/parity.json"))
    # Used when this script calls itself, for one measurement or one data set per process.
    parser.add_argument("--job", choices=list(JOBS), help=argparse.SUPPRESS)
    parser.add_argument("--generate", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.width < 32 or options.rounds < 1 or min(options.images) < 10:
        parser.error("expected a width of at least 32, 1 round and 10 images")
    options.images = list(dict.fromkeys(options.images))
    options.large = options.large and LARGE not in options.images
    return options


def machine(threads: int) -> dict[str, Any]:
    facts: Any = np.show_config(mode="dicts")
    blas = facts["Build Dependencies"]["blas"]
    torch = None
    if importlib.util.find_spec("torch") is not None:
        from importlib.metadata import version

        torch = version("torch")
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas['name']} {blas['version']}",
        "torch": torch,
    }


# --- running ---------------------------------------------------------------------------------


def run(options: argparse.Namespace, *arguments: str) -> str:
    """Run this script in a separate process. Returns its last line."""
    threads = str(options.threads)
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    command = [sys.executable, __file__, *arguments, "--width", str(options.width)]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **dict.fromkeys(names, threads)},
    )
    return done.stdout.strip().rpartition("\n")[2]


def measure_all(
    options: argparse.Namespace, folders: dict[int, Path]
) -> dict[int, list[dict[str, dict[str, Any]]]]:
    """Run all rounds, alternating sizes and jobs. Returns size -> per round, job -> measurement."""
    rounds: dict[int, list[dict[str, dict[str, Any]]]] = {images: [] for images in folders}
    for number in range(1, options.rounds + 1):
        for images, folder in folders.items():
            measured = {}
            for job in jobs(images):
                measured[job] = json.loads(run(options, "--job", job, "--data", str(folder)))
                seconds = measured[job]["seconds"]
                note = f"round {number}, {images} images, {job}: {seconds:.2f} s"
                print(note, file=sys.stderr, flush=True)
            check_recalls(images, measured)
            rounds[images].append(measured)
    return rounds


def measure(folder: Path, job: str) -> dict[str, Any]:
    """Run one job on the data in a folder, in this process."""
    prepare = JOBS[job]
    arrays = [np.load(folder / f"{name}.npy") for name in ("images", "texts")]
    if job == "compare":
        arrays += [np.load(folder / f"candidate_{name}.npy") for name in ("images", "texts")]
    work = prepare(arrays, np.arange(len(arrays[1])) // CAPTIONS)
    before = _peak_bytes()
    start = time.perf_counter()
    recalls = work()
    seconds = time.perf_counter() - start
    peak = _peak_bytes()
    return {
        "seconds": seconds,
        "peak_bytes": peak,
        "added_bytes": peak - before,
        "recalls": recalls,
    }


# --- data ------------------------------------------------------------------------------------


def generate(folder: Path, images: int, width: int) -> None:
    """Write unit vectors of both models.

    Scores of random vectors have a standard deviation of 1 / sqrt(width). Captions are mostly
    noise, so that right scores are SIGNAL of these on average, varying by image. TR@1 is about 85%
    and IR@1 about 65% for 5,000 images; both fall as the number of images grows.

    Runs in a separate process, because on Linux a process inherits its parent's peak memory.
    """
    rng = np.random.default_rng([images, width])
    picture = _unit(_noise(rng, images, width))
    strength = rng.normal(SIGNAL, SPREAD, images).astype(np.float32) / np.float32(width**0.5)
    text = _unit(_noise(rng, CAPTIONS * images, width))
    text += np.repeat(strength[:, None] * picture, CAPTIONS, axis=0)
    for name, vectors in (("images", picture), ("texts", _unit(text))):
        np.save(folder / f"{name}.npy", vectors)
        change = _unit(_noise(rng, len(vectors), width), CANDIDATE_NOISE)
        np.save(folder / f"candidate_{name}.npy", _unit(vectors + change))


def _noise(rng: np.random.Generator, rows: int, width: int) -> Floats:
    return rng.standard_normal((rows, width), dtype=np.float32)


def _unit(vectors: Floats, length: float = 1.0) -> Floats:
    vectors *= np.float32(length) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


# --- jobs ------------------------------------------------------------------------------------
# Each imports its dependencies and returns the work to be timed.

Work = Callable[[], Recalls]


def prepare_recall(arrays: list[Floats], owners: Ints) -> Work:
    from mwa_export.metrics.recall import recall

    def work() -> Recalls:
        found = recall(arrays[0], arrays[1], owners)
        return [*found.tr.values(), *found.ir.values()]

    return work


def prepare_compare(arrays: list[Floats], owners: Ints) -> Work:
    from mwa_export.parity.measure import compare
    from mwa_export.parity.result import Vectors

    def work() -> Recalls:
        result = compare(Vectors(arrays[0], arrays[1]), Vectors(arrays[2], arrays[3]), owners)
        return [change.reference for found in result.directions for change in found.recalls]

    return work


def prepare_argsort(arrays: list[Floats], owners: Ints) -> Work:
    images, texts = arrays

    def work() -> Recalls:
        scores = images @ texts.T
        best_texts = np.argsort(-scores, axis=1)[:, : max(KS)]
        tr = owners[best_texts] == np.arange(len(images))[:, None]
        best_images = np.argsort(-scores.T, axis=1)[:, : max(KS)]
        ir = best_images == owners[:, None]
        return [100 * float(hits[:, :k].any(axis=1).mean()) for hits in (tr, ir) for k in KS]

    return work


def prepare_topk(arrays: list[Floats], owners: Ints) -> Work:
    """Use the method of `RetrievalHandler.metric` in the reference's engine_for_finetuning.py."""
    import torch

    images, texts = map(torch.from_numpy, arrays)
    image_of_text = torch.from_numpy(owners)
    rows = torch.arange(len(images))

    def work() -> Recalls:
        scores = images @ texts.t()
        recalls = []
        for k in KS:
            hits = rows.unsqueeze(1) == image_of_text[scores.topk(k, dim=1).indices]
            recalls.append(100 * hits.float().max(dim=1)[0].mean().item())
        for k in KS:
            hits = image_of_text.unsqueeze(0) == rows[scores.topk(k, dim=0).indices]
            recalls.append(100 * hits.float().max(dim=0)[0].mean().item())
        return recalls

    return work


JOBS: dict[str, Callable[[list[Floats], Ints], Work]] = {
    "recall": prepare_recall,
    "compare": prepare_compare,
    "numpy.argsort": prepare_argsort,
    "torch.topk": prepare_topk,
}
PEERS = ("numpy.argsort", "torch.topk")


def jobs(images: int) -> list[str]:
    return [job for job in JOBS if job not in left_out(images)]


def left_out(images: int) -> dict[str, str]:
    """Return the peers that are not measured at a size, with reasons."""
    needed = 4 * CAPTIONS * images**2
    if needed > MOST_SCORES:
        return dict.fromkeys(PEERS, f"a score matrix of {needed / 2**30:.1f} GiB")
    if importlib.util.find_spec("torch") is None:
        return {"torch.topk": "PyTorch is not installed"}
    return {}


# --- results ---------------------------------------------------------------------------------


def check_recalls(images: int, measured: dict[str, dict[str, Any]]) -> None:
    """Exit if jobs disagree by more than rounding can explain: one query, or one in 10,000."""
    queries = np.repeat([images, CAPTIONS * images], len(KS))
    allowed = 100 * np.maximum(1.01, queries / 10_000) / queries
    for job, result in measured.items():
        if (_off(result, measured["recall"]) > allowed).any():
            expected = measured["recall"]["recalls"]
            sys.exit(f"{images} images: {job} gives {result['recalls']} and recall {expected}")


def summarize(images: int, rounds: list[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = []
    for job in rounds[0]:
        mine = [measured[job] for measured in rounds]
        rows.append(
            {
                "images": images,
                "captions": CAPTIONS * images,
                "job": job,
                "median_seconds": _median(mine, "seconds"),
                "min_seconds": round(min(result["seconds"] for result in mine), 3),
                "peak_bytes": int(_median(mine, "peak_bytes")),
                "added_bytes": int(_median(mine, "added_bytes")),
                # medians of each round's ratio; above 1: this job takes longer than `other`
                "seconds_over": {
                    other: round(statistics.median(_ratios(rounds, job, other)), 3)
                    for other in ("recall", *PEERS)
                    if other in rounds[0]
                },
                "recalls": [round(value, 3) for value in mine[0]["recalls"]],
                "largest_difference_of_recall": max(
                    round(float(_off(measured[job], measured["recall"]).max()), 3)
                    for measured in rounds
                ),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    others = ("recall", *PEERS)
    head = ["images x captions", "job", "median s", "peak MiB", "added MiB"]
    head += [f"time / {other}" for other in others]
    lines = [" | ".join(head), " | ".join(["---"] * 2 + ["---:"] * (len(head) - 2))]
    for row in rows:
        cells = [f"{row['images']:,} x {row['captions']:,}", row["job"]]
        cells += [f"{row['median_seconds']:.2f}"]
        cells += [f"{row[name] / MIB:,.0f}" for name in ("peak_bytes", "added_bytes")]
        ratios = row["seconds_over"]
        cells += [f"{ratios[other]:.2f}" if other in ratios else "" for other in others]
        lines.append(" | ".join(cells))
    notes = [
        f"{images:,} images without {job}: {reason}"
        for images in dict.fromkeys(row["images"] for row in rows)
        for job, reason in left_out(images).items()
    ]
    return "\n".join([*(f"| {line} |" for line in lines), *notes])


def _off(result: dict[str, Any], other: dict[str, Any]) -> NDArray[np.float64]:
    return np.abs(np.array(result["recalls"], np.float64) - np.array(other["recalls"], np.float64))


def _median(results: list[dict[str, Any]], name: str) -> float:
    return float(round(statistics.median(result[name] for result in results), 3))


def _ratios(rounds: list[dict[str, dict[str, Any]]], job: str, other: str) -> list[float]:
    return [float(found[job]["seconds"]) / float(found[other]["seconds"]) for found in rounds]


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
