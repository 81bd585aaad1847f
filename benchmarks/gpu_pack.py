"""Pack prepared models for transfer to a GPU machine: graphs without their weights.

    python benchmarks/gpu_pack.py WORK OUT

gpu_seeds.py restores the weights byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from gpu_seeds import RECIPE, VECTORS, Hole, Seed, drawn, levels, steps_of, with_holes

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import CONFORMANCE, write_manifest
from mwa_export.calib.calibration import CALIBRATION, Calibration
from mwa_export.calib.sites import find_sites
from mwa_export.calib.smoothing import apply_smoothing
from mwa_export.calib.weights import weight_scales
from mwa_export.graphs.edit import FloatGraph
from mwa_export.runtimes.backend import inputs_of
from mwa_export.runtimes.ort_session import run_graph, session
from mwa_export.spec import TOWERS, Tower

_SEEDS = "seeds."  # prefix of the files of seeds
_LEAST = 4096  # minimum bytes of a tensor that is replaced by a seed
_PATCHES = 0.02  # maximum share of an int8 weight's values to patch; otherwise it is transferred
_STAYS_HERE = ("checkpoint.pth", "samples/", "test/", "engines/", _SEEDS)


def reseed(folder: Path) -> None:
    """Redraw the weights of a model's bundle from seeds, and update its conformance vectors."""
    bundle = Bundle.open(folder / "bundle")
    vectors = bundle.conformance()
    found: dict[str, Any] = {}
    for tower in TOWERS:
        path, graph = bundle.graph(tower)
        redraw(folder, path, tower)
        found[tower] = run_graph(session(path), graph, inputs_of(vectors, tower))
    replace(vectors, **found).save(bundle.path / CONFORMANCE)
    write_manifest(bundle.path, bundle.manifest)


def redraw(folder: Path, path: Path, prefix: str) -> None:
    """Redraw every large matrix of a graph from a seed, keeping its spread."""
    graph, seeds, steps = FloatGraph.load(path), dict[str, Seed](), dict[str, Any]()
    for name, array in graph.tensors.items():
        if array.dtype == np.float32 and array.ndim > 1 and array.nbytes >= _LEAST:
            seeds[name] = seed = Seed(f"{prefix}.{name}", array.shape)
            found = dict(zip(("row_steps", "column_steps"), steps_of(array), strict=True))
            steps |= {f"{seed.name}.{kind}": values for kind, values in found.items()}
    for name, seed in seeds.items():
        graph.tensors[name] = drawn(seed, steps)
    graph.write(path)
    stored = {name: asdict(seed) for name, seed in seeds.items()}
    (folder / f"{_SEEDS}{prefix}.json").write_text(json.dumps(stored), encoding="utf-8")
    np.savez_compressed(folder / f"{_SEEDS}{prefix}.npz", **steps)


def pack(folder: Path, out: Path) -> None:
    """Copy the files that the GPU machine needs, with holes in place of weights."""
    recipe: dict[str, Any] = {}
    holes, vectors = _holes(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith(_STAYS_HERE):
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        if ".onnx" not in path.name:
            shutil.copyfile(path, out / name)
            continue
        content = path.read_bytes()
        likely = [hole for hole in holes if _may_be_in(hole, path.name)]
        rest, found = with_holes(content, likely, vectors)
        (out / name).write_bytes(rest)
        sha256 = hashlib.sha256(content).hexdigest()
        recipe[name] = {"sha256": sha256, "holes": [asdict(hole) for hole in found]}
        print(f"  {folder.name}/{name}: {len(rest):,} of {len(content):,} bytes travel", flush=True)
    (out / RECIPE).write_text(json.dumps(recipe), encoding="utf-8")
    np.savez_compressed(out / VECTORS, **vectors)


def _known_seeds(folder: Path) -> tuple[dict[str, dict[str, Seed]], dict[str, Any]]:
    """Return prefix -> tensor -> seed, and the steps of all tensors."""
    known, steps = dict[str, dict[str, Seed]](), dict[str, Any]()
    for path in folder.glob(f"{_SEEDS}*.json"):
        stored = json.loads(path.read_text(encoding="utf-8"))
        seeds = {name: Seed(s["name"], tuple(s["shape"])) for name, s in stored.items()}
        known[path.name.removeprefix(_SEEDS).removesuffix(".json")] = seeds
        with np.load(path.with_suffix(".npz")) as arrays:
            steps |= dict(arrays)
    return known, steps


def _holes(folder: Path) -> tuple[list[Hole], dict[str, Any]]:
    """Return all holes that a model's graphs may have, and the arrays for int8 weights."""
    known, vectors = _known_seeds(folder)
    holes = [Hole(s, dtype) for p in known.values() for s in p.values() for dtype in ("<f4", "<f2")]
    for tower in TOWERS:
        for path in (folder / "graphs").glob(f"{tower}.*.onnx"):
            found = _parts(FloatGraph.load(path).tensors, known.get(tower, {}))
            holes += [hole for _name, _array, hole in found if hole.rows is not None]
        path = folder / "graphs" / f"{tower}.int8.onnx"
        if tower in known and path.exists():
            holes += _int8_holes(folder / "bundle", tower, path, known[tower], vectors)
    return [*dict.fromkeys(holes)], vectors


def _may_be_in(hole: Hole, file: str) -> bool:
    """Whether a file may contain a hole: searching every file would take minutes."""
    owner = "plain" if ".plain-" in file else file.partition(".")[0]
    return hole.seed.name.startswith(f"{owner}.") and (hole.vectors is None or ".int8." in file)


def _int8_holes(
    bundle: Path, tower: Tower, path: Path, seeds: Mapping[str, Seed], vectors: dict[str, Any]
) -> list[Hole]:
    tensors, smoothing = FloatGraph.load(path).tensors, _smoothing(bundle, tower)
    holes = []
    for name, array, hole in _parts(tensors, seeds, ".int8"):
        part = (slice(*(hole.rows or (None,))), slice(*(hole.columns or (None,))))
        rows, scaled = smoothing(weight_of(name, seeds), part)
        values = hole.of(drawn(hole.seed, vectors))
        wrong = np.flatnonzero(levels(values, rows, scaled) != array)
        if len(wrong) <= _PATCHES * array.size:
            prefix, patches = f"{tower}.{name}", array.reshape(-1)[wrong]
            parts = {"rows": rows, "columns": scaled, "where": wrong, "patches": patches}
            vectors |= {f"{prefix}.{part}": value for part, value in parts.items()}
            holes.append(replace(hole, dtype="|i1", vectors=prefix))
    return holes


def _parts(
    tensors: Mapping[str, Any], seeds: Mapping[str, Seed], suffix: str = ""
) -> Iterator[tuple[str, Any, Hole]]:
    """Yield weights of a graph that are a seed's tensor, or consecutive rows or columns of it.

    Parts are named LINEAR.NUMBER.weight.
    """
    used = dict.fromkeys(seeds, 0)
    for name, array in tensors.items():
        if not name.endswith(f".weight{suffix}"):
            continue
        weight = weight_of(name, seeds)
        if weight not in seeds or array.ndim != 2:
            continue
        whole, first = seeds[weight].shape, used[weight]
        axis = 1 if array.shape[0] == whole[0] else 0
        used[weight] = first + array.shape[axis]
        span = None if array.shape == whole else (first, used[weight])
        rows, columns = (span, None) if axis == 0 else (None, span)
        yield name, array, Hole(seeds[weight], array.dtype.str, columns=columns, rows=rows)


def weight_of(name: str, seeds: Mapping[str, Seed]) -> str:
    """Return the name of the seeded tensor that a graph's weight is, or is part of."""
    weight = name.removesuffix(".int8")
    return (
        weight if weight in seeds else f"{weight.removesuffix('.weight').rpartition('.')[0]}.weight"
    )


def _smoothing(bundle: Path, tower: Tower) -> Callable[[str, tuple[slice, slice]], tuple[Any, Any]]:
    """Return a function from a weight and its part to the factors of rows and columns for int8."""
    graph = FloatGraph.load(Bundle.open(bundle).graph(tower)[0])
    calibration = Calibration.load(bundle / CALIBRATION).of(tower)
    sites = {site.name: site for site in find_sites(graph)}
    divide = {name: c.divide for name, c in calibration.items() if c.divide is not None}
    smoothed = apply_smoothing(graph, sites, divide).tensors
    site_of = {f"{linear}.weight": name for name in divide for linear in sites[name].linears}

    def factors(weight: str, part: tuple[slice, slice]) -> tuple[Any, Any]:
        before = graph.tensors[weight][:, part[1]].astype(np.float64)
        after = smoothed[weight][:, part[1]]
        rows = np.ones(len(before)) if weight not in site_of else divide[site_of[weight]]
        before *= rows[:, None]
        columns = (after * before).sum(axis=0) / (before * before).sum(axis=0)
        return rows[part[0]], columns / weight_scales(after)  # scales are computed over all rows

    return factors


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    for meta in sorted(Path(sys.argv[1]).glob("*/meta.json")):
        pack(meta.parent, Path(sys.argv[2]) / meta.parent.name)
