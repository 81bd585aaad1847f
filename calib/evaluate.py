"""Evaluate an assignment of precisions: recall on held-back data, cosine and speed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

import numpy as np

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import Graph, GraphFile
from mwa_export.bundle.quantization import Measured
from mwa_export.calib.dialects import CPU_DIALECTS, Dialect
from mwa_export.calib.precision_search import SiteKey, Trial, names_of
from mwa_export.calib.samples import Samples
from mwa_export.calib.variants import Variants
from mwa_export.cpu import fast_bfloat16, fast_int8, instruction_sets
from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.encoder import Encoder
from mwa_export.errors import DataError
from mwa_export.files import scratch_folder
from mwa_export.memory import release
from mwa_export.metrics.evidence import (
    objection_to_data,
    objection_to_reference,
    repeated_captions,
)
from mwa_export.metrics.ranking import KS, Ranking
from mwa_export.metrics.recall import Pairs, rank_both
from mwa_export.metrics.smoothed import ranking_change
from mwa_export.metrics.verdict import Decision
from mwa_export.progress import Progress
from mwa_export.runtimes.backend import Backend, conformance_cosine, embed
from mwa_export.runtimes.onnxrt import OnnxBackend
from mwa_export.runtimes.open import cpu_backend
from mwa_export.spec import TOWERS, Embeddings, Tower

_SPEED_ROUNDS = 5
_SPEED_BATCH = 8


@dataclass
class HeldBack:
    """Data to measure recall on, with float32 embeddings and rankings."""

    encoder: Encoder  # the bundle in float32
    data: RetrievalData
    progress: Progress
    name: str = "held-back"
    images: Embeddings = field(init=False)
    texts: Embeddings = field(init=False)
    found: tuple[Ranking, Ranking] = field(init=False)

    def __post_init__(self) -> None:
        self.images = self.embed("vision", self.encoder.backend, "float32")
        self.texts = self.embed("text", self.encoder.backend, "float32")
        self.found = rank_both(self.images, self.texts, self._pairs)

    @property
    def _pairs(self) -> Pairs:
        return Pairs(self.data.image_ids, self.data.caption_image_ids)

    def objection(self) -> str | None:
        """Why these data are not evidence about a drop of recall, or None."""
        return data_objection(self.data) or objection_to_reference(self.found[1])

    def embed(self, tower: Tower, backend: Backend, label: str) -> Embeddings:
        """Embed the held-back images or captions. Returns (n, D) float32.

        Raises:
            DataError: an image cannot be read.
        """
        encoder = replace(self.encoder, backend=backend)
        if tower == "vision":
            self.progress(f"embed {self.name} images: {label}", len(self.data.pictures))
            found, failures = encoder.embed_pictures(
                self.data.pictures, on_rows=self.progress.advance
            )
            if failures:
                raise DataError(
                    f"{self.data.name}: {len(failures)} images cannot be read. First error: "
                    f"{failures[min(failures)]} Repair or remove them."
                )
            return found
        self.progress(f"embed {self.name} captions: {label}", len(self.data.captions))
        return encoder.embed_captions(self.data.captions, on_rows=self.progress.advance)

    def measure(self, int8: frozenset[SiteKey], backend: Backend, label: str) -> Trial:
        """Embed all data with a backend that runs these sites in INT8, and compare with float32."""
        images = self.embed("vision", backend, label)
        return self.compare(int8, images, self.embed("text", backend, label))

    def compare(self, int8: frozenset[SiteKey], images: Embeddings, texts: Embeddings) -> Trial:
        """Compare embeddings with those of float32."""
        after = rank_both(images, texts, self._pairs)
        owners = np.arange(len(images)), self._pairs.rows()
        changes = {
            f"{name}@{k}": ranking_change(old, new, k, rows)
            for name, old, new, rows in zip(("TR", "IR"), self.found, after, owners, strict=True)
            for k in KS
        }
        recalls = {"float32": _figures(self.found), "candidate": _figures(after)}
        cosine: dict[Tower, float] = {
            "vision": float((self.images * images).sum(axis=1).mean()),
            "text": float((self.texts * texts).sum(axis=1).mean()),
        }
        return Trial(int8, changes, cosine, recalls)


def _figures(rankings: tuple[Ranking, Ranking]) -> dict[str, float]:
    """The six recall figures in percent, by name."""
    named = zip(("TR", "IR"), rankings, strict=True)
    return {f"{name}@{k}": ranking.recall(k) for name, ranking in named for k in KS}


def data_objection(data: RetrievalData) -> str | None:
    """Why a test set is not evidence, as far as is known before it is embedded; or None."""
    repeated = repeated_captions(data.captions, data.caption_image_ids.tolist())
    return objection_to_data(len(data.pictures), len(data.captions), repeated)


@dataclass
class Evaluator:
    """Measures assignments on one runtime, embedding a tower only once per set of its sites."""

    variants: Variants
    held_back: HeldBack
    dialect: Dialect
    threads: int | None = None
    _embedded: dict[tuple[Tower, frozenset[str]], Embeddings] = field(default_factory=dict)

    def __call__(self, int8: frozenset[SiteKey]) -> Trial:
        """Measure recall and cosines with these sites in INT8; no sites mean float32 itself."""
        if not int8:
            same = self.held_back.compare(int8, self.held_back.images, self.held_back.texts)
            return replace(same, cosine=dict.fromkeys(TOWERS, 1.0))
        parts: dict[Tower, Embeddings] = {}
        for tower in TOWERS:
            names = names_of(int8, tower)
            if (tower, names) not in self._embedded:
                self._embedded[tower, names] = self._embed(tower, names)
            parts[tower] = self._embedded[tower, names]
        return self.held_back.compare(int8, parts["vision"], parts["text"])

    def _embed(self, tower: Tower, names: frozenset[str]) -> Embeddings:
        label = f"{len(names)} of {len(self.variants.sites(tower))} layers in INT8"
        with scratch_folder() as folder:
            graphs = {}
            if names:
                graphs[tower] = self.variants.write(tower, names, self.dialect, folder)
            backend = cpu_backend(
                self.variants.bundle, self.dialect.name, graphs, threads=self.threads
            )
            found = self.held_back.embed(tower, backend, label)
        release()
        return found


def sensitivities(
    variants: Variants,
    samples: Samples,
    dialect: Dialect,
    progress: Progress,
    *,
    exclude: Collection[SiteKey] = (),
) -> dict[SiteKey, float]:
    """Measure the mean of 1 - cosine of the embedding when a single site runs in INT8.

    A few samples are enough, as each cosine averages over D components. The dialect must be ONNX
    Runtime's, whose other layers stay in exact float32.
    """
    found: dict[SiteKey, float] = {}
    exact = OnnxBackend(variants.bundle, check=False)
    for tower in TOWERS:
        sites = [s for s in variants.sites(tower) if SiteKey(tower, s.name) not in exclude]
        wanted = _embed_samples(exact, tower, samples)
        progress(f"{tower} tower: sensitivity of each layer", len(sites))
        for site in sites:
            with scratch_folder() as folder:
                file = variants.write(tower, {site.name}, dialect, folder)
                backend = OnnxBackend(variants.bundle, graphs={tower: file}, check=False)
                got = _embed_samples(backend, tower, samples)
            cosine = (wanted.astype(np.float64) * got).sum(axis=1)
            loss = float(np.maximum(0, 1 - cosine).mean())
            # A layer that overflows in INT8 is quantized last; NaN could not be sorted.
            found[SiteKey(tower, site.name)] = loss if math.isfinite(loss) else math.inf
            progress.advance(1)
        release()
    return found


def _embed_samples(backend: Backend, tower: Tower, samples: Samples) -> Embeddings:
    return np.concatenate([embed(backend, tower, inputs) for inputs in samples.batches(tower)])


def milliseconds(
    backends: Mapping[str, Backend], samples: Samples
) -> dict[Tower, dict[str, float]]:
    """Measure milliseconds per row of several backends on the same batches, by tower.

    Backends are interleaved: each runs once per round, and the result is the median over rounds, so
    that a machine that slows down affects all of them alike.
    """
    times: dict[Tower, dict[str, float]] = {}
    few = samples.first(_SPEED_BATCH)
    for tower in TOWERS:
        rows = few.count(tower)
        taken: dict[str, list[float]] = {name: [] for name in backends}
        for turn in range(_SPEED_ROUNDS + 1):  # the first round is a warm-up
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
    """Add a graph's conformance cosine if its runtime is installed here."""
    dialect, tower = file[1].dialect, file[1].spec.tower
    if dialect not in CPU_DIALECTS or find_spec(dialect) is None:
        return file[1]
    backend = cpu_backend(bundle, dialect, {tower: file}, threads=threads)
    return replace(file[1], conformance=conformance_cosine(backend, bundle, tower))


def measure_runtimes(
    evaluator: Evaluator,
    files: list[GraphFile],
    chosen: frozenset[SiteKey],
    samples: Samples,
    judge: Callable[[Trial], Decision],
    progress: Progress,
) -> tuple[Measured, ...]:
    """Measure recall and speed of every installed runtime, for the manifest and for `auto`.

    ``judge``: gives the verdict on a measurement of the held-back data.
    """
    bundle, held_back = evaluator.variants.bundle, evaluator.held_back
    threads = evaluator.threads
    backends: dict[str, Backend] = {"float32": OnnxBackend(bundle, threads=threads, check=False)}
    found: dict[tuple[str, str], Trial] = {}
    for name in dict.fromkeys(graph.dialect for _path, graph in files):
        if name not in CPU_DIALECTS or find_spec(name) is None:
            continue
        graphs = {file[1].spec.tower: file for file in files if file[1].dialect == name}
        label = f"{name} int8"
        backends[label] = cpu_backend(bundle, name, graphs, threads=threads)
        if name == evaluator.dialect.name:  # already measured
            found[name, "int8"] = evaluator(chosen)
        else:
            found[name, "int8"] = held_back.measure(chosen, backends[label], label)
    if find_spec("openvino") is not None and fast_bfloat16(instruction_sets()):
        label = "openvino bfloat16"
        backends[label] = cpu_backend(bundle, "openvino", {}, threads=threads, precision="bfloat16")
        found["openvino", "bfloat16"] = held_back.measure(frozenset(), backends[label], label)
    progress("compare the speed of all runtimes with float32 on ONNX Runtime")
    times = milliseconds(backends, samples)
    return tuple(
        Measured(
            runtime=runtime,
            precision=precision,
            decision=judge(trial),
            mean_cosine={tower: round(c, 7) for tower, c in trial.cosine.items()},
            recall=trial.detail,
            # Without VNNI, OpenVINO's sums overflow: the drop here does not apply to other CPUs.
            overflowed=fast_int8(instruction_sets()) is False
            if (runtime, precision) == ("openvino", "int8")
            else None,
            speedup={t: times[t]["float32"] / times[t][f"{runtime} {precision}"] for t in TOWERS},
        )
        for (runtime, precision), trial in found.items()
    )
