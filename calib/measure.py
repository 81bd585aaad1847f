"""What the finished graphs do on the runtimes of this machine, for the manifest and for `auto`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from mwa_export.bundle.bundle import Bundle, Graph
from mwa_export.calib.dialects import CPU_DIALECTS, DIALECTS
from mwa_export.calib.evaluate import Evaluator, backend_of, milliseconds
from mwa_export.calib.samples import Samples
from mwa_export.calib.search import Measured, SiteKey
from mwa_export.cpu import fast_bfloat16, fast_int8, instruction_sets
from mwa_export.metrics.recall import SLACK
from mwa_export.progress import Progress
from mwa_export.runtimes.backend import Backend, conformance_cosine
from mwa_export.runtimes.onnxrt import GraphFile, OnnxBackend
from mwa_export.spec import TOWERS, Tower


def with_conformance(bundle: Bundle, file: GraphFile, threads: int | None) -> Graph:
    """The graph's description with its cosine, where a runtime for it is here."""
    dialect, tower = DIALECTS[file[1].dialect], file[1].spec.tower
    if dialect.name not in CPU_DIALECTS or find_spec(dialect.name) is None:
        return file[1]
    backend = backend_of(bundle, dialect, {tower: file}, threads)
    return replace(file[1], conformance=conformance_cosine(backend, bundle, tower))


def measure_runtimes(
    evaluator: Evaluator,
    files: list[GraphFile],
    chosen: frozenset[SiteKey],
    samples: Samples,
    budget: float,
    progress: Progress,
) -> tuple[dict[str, Any], ...]:
    """Recall and speed of every runtime that is here, for the manifest and for `auto`.

    Args:
        evaluator: has the held-back data, and the chosen assignment's embeddings already.
        files: the graphs that go into the bundle.
        chosen: the sites that are INT8 in them.
        samples: to time on.
        budget: recall points that may be lost.
        progress: told about each step.
    """
    bundle, held_back = evaluator.variants.bundle, evaluator.held_back
    backends: dict[str, Backend] = {
        "float32": OnnxBackend(bundle, threads=evaluator.threads, check=False)
    }
    entries: list[dict[str, Any]] = []
    for name in dict.fromkeys(graph.dialect for _path, graph in files):
        if name not in CPU_DIALECTS or find_spec(name) is None:
            continue
        graphs: Mapping[Tower, GraphFile] = {
            file[1].spec.tower: file for file in files if file[1].dialect == name
        }
        label = f"{name} int8"
        backends[label] = backend_of(bundle, DIALECTS[name], graphs, evaluator.threads)
        if name == evaluator.dialect.name:
            entries.append(_entry(name, "int8", evaluator(chosen), budget))
        else:
            entries.append(
                _entry(name, "int8", held_back.measure(chosen, backends[label], label), budget)
            )
    if find_spec("openvino") is not None and fast_bfloat16(instruction_sets()):
        dialect = DIALECTS["openvino"]
        label = "openvino bfloat16"
        backends[label] = backend_of(bundle, dialect, {}, evaluator.threads, precision="bfloat16")
        entries.append(
            _entry(
                "openvino",
                "bfloat16",
                held_back.measure(frozenset(), backends[label], label),
                budget,
            )
        )
    for entry in entries:
        if (entry["runtime"], entry["precision"]) == ("openvino", "int8"):
            # Without VNNI its sums overflow: what it lost here says nothing of other CPUs.
            entry["overflowed"] = fast_int8(instruction_sets()) is False
    progress("time every runtime beside float32 on ONNX Runtime")
    times = milliseconds(backends, samples)
    for entry in entries:
        label = f"{entry['runtime']} {entry['precision']}"
        entry["speedup"] = {t: times[t]["float32"] / times[t][label] for t in TOWERS}
    return tuple(entries)


def _entry(runtime: str, precision: str, measured: Measured, budget: float) -> dict[str, Any]:
    return {
        "runtime": runtime,
        "precision": precision,
        "recall_drop": round(measured.drop, 6),
        "passed": bool(measured.drop <= budget + SLACK),
        "mean_cosine": {tower: round(c, 7) for tower, c in measured.cosine.items()},
        "recall": measured.detail,
    }
