"""Evaluate an assignment of precisions: recall on held-back data, cosine, speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import Graph, GraphFile
from mwa_export.bundle.quantization import Measured
from mwa_export.calib.dialects import CPU_DIALECTS, DIALECTS, Dialect
from mwa_export.calib.precision_search import SiteKey, Trial
from mwa_export.calib.samples import Samples
from mwa_export.calib.variants import Variants
from mwa_export.cpu import fast_bfloat16, fast_int8, instruction_sets
from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.encoder import Encoder
from mwa_export.errors import DataError
from mwa_export.memory import release
from mwa_export.metrics.recall import SLACK, Recall, recall
from mwa_export.progress import Progress
from mwa_export.runtimes.backend import Backend, conformance_cosine
from mwa_export.runtimes.onnxrt import OnnxBackend
from mwa_export.spec import TOWERS, Embeddings, Tower

_SPEED_ROUNDS = 5
_SPEED_BATCH = 8


@dataclass(frozen=True, slots=True)
class RecallDrop:
    """Recall of a candidate beside that of the float32 graphs, on the same data."""

    reference: Recall
    candidate: Recall

    @property
    def worst(self) -> float:
        """Points lost by the figure that lost most of TR@k and IR@k; negative if all gained."""
        pairs = [(self.reference.tr[k], self.candidate.tr[k]) for k in self.reference.tr]
        pairs += [(self.reference.ir[k], self.candidate.ir[k]) for k in self.reference.ir]
        return max(before - after for before, after in pairs)

    def to_json(self) -> dict[str, Any]:
        """Both sides' six figures in percent."""
        return {
            name: {
                **{f"TR@{k}": value for k, value in side.tr.items()},
                **{f"IR@{k}": value for k, value in side.ir.items()},
            }
            for name, side in (("float32", self.reference), ("candidate", self.candidate))
        }


@dataclass
class HeldBack:
    """The data that recall is measured on, with the float32 embeddings."""

    encoder: Encoder  # the bundle in float32
    data: RetrievalData
    progress: Progress
    images: Embeddings = field(init=False)
    texts: Embeddings = field(init=False)

    def __post_init__(self) -> None:
        self.images = self.embed("vision", self.encoder.backend, "float32")
        self.texts = self.embed("text", self.encoder.backend, "float32")

    def embed(self, tower: Tower, backend: Backend, label: str) -> Embeddings:
        """Embeddings of the held-back pictures or captions, (n, D)."""
        encoder = replace(self.encoder, backend=backend)
        if tower == "vision":
            self.progress(f"embed held-back pictures: {label}", len(self.data.pictures))
            found, failures = encoder.embed_pictures(
                self.data.pictures, on_rows=self.progress.advance
            )
            if failures:
                raise DataError(
                    f"{self.data.name}: {len(failures)} pictures cannot be read, the first: "
                    f"{failures[min(failures)]} Repair or remove them."
                )
            return found
        self.progress(f"embed held-back captions: {label}", len(self.data.captions))
        return encoder.embed_captions(self.data.captions, on_rows=self.progress.advance)

    def measure(self, int8: frozenset[SiteKey], backend: Backend, label: str) -> Trial:
        """Embed everything with a backend that has these sites in INT8, and compare."""
        images = self.embed("vision", backend, label)
        return self.compare(int8, images, self.embed("text", backend, label))

    def compare(self, int8: frozenset[SiteKey], images: Embeddings, texts: Embeddings) -> Trial:
        """These embeddings beside those of float32."""
        drop = self.drop(images, texts)
        return Trial(int8, drop.worst, self.cosines(images, texts), drop.to_json())

    def drop(self, images: Embeddings, texts: Embeddings) -> RecallDrop:
        """Recall with these embeddings beside that of float32."""
        owners, ids = self.data.caption_image_ids, self.data.image_ids
        return RecallDrop(
            recall(self.images, self.texts, owners, image_ids=ids),
            recall(images, texts, owners, image_ids=ids),
        )

    def cosines(self, images: Embeddings, texts: Embeddings) -> dict[Tower, float]:
        """Mean cosine with float32 by tower."""
        return {
            "vision": float((self.images * images).sum(axis=1).mean()),
            "text": float((self.texts * texts).sum(axis=1).mean()),
        }


@dataclass
class Evaluator:
    """Measures assignments on one runtime; a tower is embedded once per set of its sites."""

    variants: Variants
    held_back: HeldBack
    dialect: Dialect
    threads: int | None = None
    _embedded: dict[tuple[Tower, frozenset[str]], Embeddings] = field(default_factory=dict)

    def __call__(self, int8: frozenset[SiteKey]) -> Trial:
        """Recall drop and cosines with these sites in INT8; with none at all, float32 itself."""
        if not int8:
            drop = self.held_back.drop(self.held_back.images, self.held_back.texts)
            return Trial(int8, 0.0, dict.fromkeys(TOWERS, 1.0), drop.to_json())
        parts: dict[Tower, Embeddings] = {}
        for tower in TOWERS:
            names = frozenset(key.name for key in int8 if key.tower == tower)
            if (tower, names) not in self._embedded:
                self._embedded[tower, names] = self._embed(tower, names)
            parts[tower] = self._embedded[tower, names]
        return self.held_back.compare(int8, parts["vision"], parts["text"])

    def _embed(self, tower: Tower, names: frozenset[str]) -> Embeddings:
        label = f"{len(names)} of {len(self.variants.sites(tower))} layers in INT8"
        with TemporaryDirectory(prefix="mwa-export-") as folder:
            graphs = {}
            if names:
                graphs[tower] = self.variants.write(tower, names, self.dialect, Path(folder))
            backend = backend_of(self.variants.bundle, self.dialect, graphs, self.threads)
            found = self.held_back.embed(tower, backend, label)
        release()
        return found


def backend_of(
    bundle: Bundle,
    dialect: Dialect,
    graphs: Mapping[Tower, GraphFile],
    threads: int | None = None,
    *,
    precision: str | None = None,
) -> Backend:
    """The runtime that a dialect is made for, with some graphs replaced; unchecked.

    Args:
        dialect: "openvino" or "onnxruntime".
        precision: of what is not INT8, on OpenVINO; None: bfloat16 where the CPU is fast at it.
    """
    if dialect.name == "openvino":
        from mwa_export.runtimes.ov import OpenVinoBackend

        if precision is None:
            precision = "bfloat16" if fast_bfloat16(instruction_sets()) else "float32"
        return OpenVinoBackend(
            bundle, graphs=graphs, threads=threads, precision=precision, check=False
        )
    return OnnxBackend(bundle, graphs=graphs, threads=threads, check=False)


def sensitivities(
    variants: Variants,
    samples: Samples,
    dialect: Dialect,
    progress: Progress,
    *,
    exclude: Collection[SiteKey] = (),
) -> dict[SiteKey, float]:
    """Mean of 1 - cosine of the embedding when one site alone is in INT8 and all else in float32.

    Args:
        samples: a few; the mean over them is steady because it is one over D components too.
        dialect: of ONNX Runtime, whose float32 is exact; others round what is not INT8 as well.
    """
    found: dict[SiteKey, float] = {}
    exact = OnnxBackend(variants.bundle, check=False)
    for tower in TOWERS:
        sites = [s for s in variants.sites(tower) if SiteKey(tower, s.name) not in exclude]
        wanted = _embed_samples(exact, tower, samples)
        progress(f"{tower} tower: sensitivity of each layer", len(sites))
        for site in sites:
            with TemporaryDirectory(prefix="mwa-export-") as folder:
                file = variants.write(tower, {site.name}, dialect, Path(folder))
                backend = OnnxBackend(variants.bundle, graphs={tower: file}, check=False)
                got = _embed_samples(backend, tower, samples)
            cosine = (wanted.astype(np.float64) * got).sum(axis=1)
            found[SiteKey(tower, site.name)] = float(np.maximum(0, 1 - cosine).mean())
            progress.advance(1)
        release()
    return found


def _embed_samples(backend: Backend, tower: Tower, samples: Samples) -> Embeddings:
    parts = []
    for inputs in samples.batches(tower):
        embed: Callable[..., Embeddings] = (
            backend.embed_images if tower == "vision" else backend.embed_texts
        )
        parts.append(embed(*inputs))
    return np.concatenate(parts)


def milliseconds(
    backends: Mapping[str, Backend], samples: Samples
) -> dict[Tower, dict[str, float]]:
    """Milliseconds per row of several backends on the same batches, by tower.

    Interleaved: in every round each backend runs once, and the medians are taken over the rounds,
    so that a machine that slows down hits all alike.
    """
    times: dict[Tower, dict[str, float]] = {}
    few = samples.first(_SPEED_BATCH)
    for tower in TOWERS:
        rows = few.count(tower)
        taken: dict[str, list[float]] = {name: [] for name in backends}
        for turn in range(_SPEED_ROUNDS + 1):  # the first warms up
            for name, backend in backends.items():
                start = time.perf_counter()
                _embed_samples(backend, tower, few)
                if turn:
                    taken[name].append(time.perf_counter() - start)
        times[tower] = {
            name: 1000 * statistics.median(values) / rows for name, values in taken.items()
        }
    return times


def with_conformance(bundle: Bundle, file: GraphFile, threads: int | None) -> Graph:
    """The graph with its cosine, if its runtime is installed here."""
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
) -> tuple[Measured, ...]:
    """Recall and speed of every runtime that is here, for the manifest and for `auto`.

    Args:
        evaluator: has the held-back data, and the chosen assignment's embeddings already.
        budget: recall points that may be lost.
    """
    bundle, held_back = evaluator.variants.bundle, evaluator.held_back
    backends: dict[str, Backend] = {
        "float32": OnnxBackend(bundle, threads=evaluator.threads, check=False)
    }
    found: dict[tuple[str, str], Trial] = {}
    for name in dict.fromkeys(graph.dialect for _path, graph in files):
        if name not in CPU_DIALECTS or find_spec(name) is None:
            continue
        graphs: Mapping[Tower, GraphFile] = {
            file[1].spec.tower: file for file in files if file[1].dialect == name
        }
        label = f"{name} int8"
        backends[label] = backend_of(bundle, DIALECTS[name], graphs, evaluator.threads)
        measured_before = name == evaluator.dialect.name
        found[name, "int8"] = (
            evaluator(chosen)
            if measured_before
            else held_back.measure(chosen, backends[label], label)
        )
    if find_spec("openvino") is not None and fast_bfloat16(instruction_sets()):
        dialect = DIALECTS["openvino"]
        label = "openvino bfloat16"
        backends[label] = backend_of(bundle, dialect, {}, evaluator.threads, precision="bfloat16")
        found["openvino", "bfloat16"] = held_back.measure(frozenset(), backends[label], label)
    progress("time every runtime beside float32 on ONNX Runtime")
    times = milliseconds(backends, samples)
    return tuple(
        Measured(
            runtime=runtime,
            precision=precision,
            recall_drop=round(trial.drop, 6),
            passed=bool(trial.drop <= budget + SLACK),
            mean_cosine={tower: round(c, 7) for tower, c in trial.cosine.items()},
            recall=trial.detail,
            # Without VNNI OpenVINO's sums overflow: its drop here says nothing of other CPUs.
            overflowed=fast_int8(instruction_sets()) is False
            if (runtime, precision) == ("openvino", "int8")
            else None,
            speedup={t: times[t]["float32"] / times[t][f"{runtime} {precision}"] for t in TOWERS},
        )
        for (runtime, precision), trial in found.items()
    )
