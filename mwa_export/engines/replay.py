"""Write the graphs that engines are compiled from, to debug engines with NVIDIA's tools."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import Profile
from mwa_export.bundle.manifest import Conformance
from mwa_export.data.test_sets import TestSet, as_test_set
from mwa_export.engines.graphs import EngineGraph, engine_graph
from mwa_export.engines.options import EngineOptions
from mwa_export.engines.replay_script import SCRIPT, Replay, script
from mwa_export.errors import ProfileError, UsageError, check_option
from mwa_export.files import check_new_folder, new_folder
from mwa_export.graphs.edit import FloatGraph
from mwa_export.graphs.rounded import in_float32
from mwa_export.inputs.preprocess import arrays_of
from mwa_export.progress import Progress, Silent
from mwa_export.runtimes.backend import BFLOAT16_COSINE, inputs_of
from mwa_export.spec import Tower
from mwa_export.trt.profiles import Arrays, pieces, profiles_of, text_lengths
from mwa_export.trt.versions import SUPPORTED, TYPED_ONLY, is_typed

Feed = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class EngineGraphs:
    """Result of `write_engine_graphs`."""

    folder: Path
    graphs: tuple[EngineGraph, ...]  # one per tower


def write_engine_graphs(
    path: str | os.PathLike[str],
    data: TestSet | None = None,
    *,
    out: str | os.PathLike[str],
    options: EngineOptions | None = None,
    for_tensorrt: int = 11,
    force: bool = False,
    progress: Progress | None = None,
) -> EngineGraphs:
    """Write the graphs of `build_engines`, inputs for them, and a script that replays them.

    This needs neither TensorRT nor a GPU. The graphs are checked on ONNX Runtime.

    Args:
        path: the bundle, which is not changed.
        data: see `build_engines`.
        out: the new folder.
        options: those that determine graphs and shapes are used: ``precision``,
            ``float8_attention``, ``batches``, ``lengths``, ``samples`` and ``seed``.
        for_tensorrt: major version; 10 and 11 read the same graphs.
        force: replace ``out`` if an earlier call wrote it.
        progress: called for each step.

    Raises:
        BundleError: ``out`` already exists and may not be replaced.
        UsageError: this TensorRT does not support the precision.
        ProfileError: the shapes fit neither the graphs nor any conformance vector.
        CalibrationError: int8 or float8, and the bundle has no calibration.
        VerificationError: a graph does not compute what the float32 graph computes.
    """
    options, progress, out = options or EngineOptions(), progress or Silent(), Path(out)
    _check_version(options, for_tensorrt)
    check_new_folder(out, marker=SCRIPT, force=force)
    data = as_test_set(data)
    bundle = Bundle.open(path)
    options.check_bundle(bundle, data)
    vectors = bundle.conformance()
    jobs = [_job(bundle, vectors, tower, options) for tower in bundle.manifest.towers]
    samples = options.draw(path, data)
    graphs, replays = [], []
    with new_folder(out, marker=SCRIPT, force=force) as folder:
        for job in jobs:
            batches = () if samples is None else samples.batches(job.tower)
            graph = engine_graph(
                bundle,
                job.tower,
                options.precision,
                is_typed(for_tensorrt),
                folder,
                progress,
                batches=batches,
                attention8=options.float8_attention,
            )
            replays.append(_replay(job, graph, folder, rounded=options.precision == "bfloat16"))
            graphs.append(replace(graph, path=out / graph.path.name))
        text = script(replays, options.precision, for_tensorrt)
        (folder / SCRIPT).write_text(text, encoding="utf-8")
    return EngineGraphs(out, tuple(graphs))


def _check_version(options: EngineOptions, tensorrt: int) -> None:
    expected = ", ".join(map(str, SUPPORTED))
    check_option("for_tensorrt", tensorrt, tensorrt in SUPPORTED, f"one of {expected}")
    lacks = options.precision in TYPED_ONLY or options.float8_attention
    if lacks and not is_typed(tensorrt):
        raise UsageError(
            f"`for_tensorrt={tensorrt}`: does not support {options.words}. Use "
            "`engine_precision=float16` or `engine_precision=int8`, or TensorRT 10 or later."
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """A tower, the shapes of its engine, and inputs of these shapes."""

    tower: Tower
    profiles: tuple[Profile, ...]
    feeds: tuple[list[Feed], ...]  # for each profile, the inputs of its runs


def _job(bundle: Bundle, vectors: Conformance, tower: Tower, options: EngineOptions) -> _Job:
    spec, lengths = bundle.describe(tower).spec, None
    inputs = inputs_of(vectors, tower)
    if tower == "text":
        lengths = text_lengths(options.lengths, bundle.manifest.max_length)
        inputs = _no_longer_than(lengths.max, inputs)
    profiles = profiles_of(spec, options.batches, lengths)
    names, arrays = [port.name for port in spec.inputs], arrays_of(spec, inputs)
    feeds = [
        [dict(zip(names, piece.arrays, strict=True)) for piece in pieces(spec, [profile], arrays)]
        for profile in profiles
    ]
    return _Job(tower, profiles, tuple(feeds))


def _no_longer_than(longest: int, inputs: Arrays) -> Arrays:
    """Select texts of at most ``longest`` tokens.

    Raises:
        ProfileError: there are no such texts.
    """
    lengths = (inputs[1] == 0).sum(axis=1)
    if longest < lengths.min():
        raise ProfileError(
            f"`lengths`: max length {longest} is below {lengths.min()}, the shortest text of the "
            f"bundle's conformance vectors. Expected at least {lengths.min()}."
        )
    return tuple(array[lengths <= longest, :longest] for array in inputs)


def _replay(job: _Job, graph: EngineGraph, folder: Path, *, rounded: bool) -> Replay:
    """Write the inputs of a graph; ``rounded``: also write the copy that ONNX Runtime needs."""
    reference = None
    if rounded:
        reference = f"{graph.path.stem}.rounded.onnx"
        in_float32(FloatGraph.load(graph.path)).write(folder / reference)
    names = [f"{job.tower}.inputs{index or ''}.json" for index in range(len(job.feeds))]
    for name, feeds in zip(names, job.feeds, strict=True):
        runs = [{key: _encoded(array) for key, array in feed.items()} for feed in feeds]
        (folder / name).write_text(json.dumps(runs), encoding="utf-8")
    least = min(BFLOAT16_COSINE, graph.cosine)  # an engine may be as far off as its graph is
    return Replay(graph.path.name, reference, tuple(names), job.profiles, least)


def _encoded(array: NDArray[Any]) -> dict[str, str]:
    """Encode an array for Polygraphy's JSON."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    content = base64.b64encode(file.getvalue()).decode("ascii")
    return {"array": content, "polygraphy_class": "ndarray"}
