"""Build engines of all precisions, measure them, and keep the fastest within the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import (
    Engine,
    EnginePrecision,
    MeasuredEngines,
    RunTime,
    with_engines,
)
from mwa_export.bundle.quantization import HeldBackData
from mwa_export.bundle.update import changed_bundle
from mwa_export.calib.calibration import CALIBRATION
from mwa_export.calib.evaluate import HeldBack
from mwa_export.calib.precision_search import Trial
from mwa_export.calib.samples import split_data
from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.open import open_bundle
from mwa_export.engines.build import build_engines
from mwa_export.engines.graphs import CALIBRATED
from mwa_export.engines.options import EngineOptions
from mwa_export.errors import (
    CalibrationError,
    EngineError,
    ParityError,
    UsageError,
    VerificationError,
)
from mwa_export.files import link_or_copy, scratch_folder
from mwa_export.metrics.recall import MAX_RECALL_DROP, check_recall_drop
from mwa_export.metrics.verdict import CONFIDENCE, Decision, decide
from mwa_export.progress import Progress, Silent
from mwa_export.runtimes.trt import TensorRtBackend
from mwa_export.spec import TOWERS, Tower
from mwa_export.trt.device import Device
from mwa_export.trt.install import find_tensorrt
from mwa_export.trt.timing import Compared, compare_engines
from mwa_export.trt.versions import TensorRt

CANDIDATES: tuple[tuple[EnginePrecision, bool], ...] = (
    *(("float16", False), ("bfloat16", False)),
    *(("int8", False), ("float8", False), ("int8", True), ("float8", True)),
)
"""Precision, and whether attention is float8 too."""


@dataclass
class Candidate:
    """A precision to try, and what was measured with it."""

    precision: EnginePrecision
    float8_attention: bool = False
    engines: dict[Tower, Engine] = field(default_factory=dict)
    speed: dict[Tower, Compared] = field(default_factory=dict)
    recall: Trial | None = None  # None: there were no data to measure it
    decision: Decision | None = None  # on recall
    problem: str | None = None  # why it cannot be used

    @property
    def name(self) -> str:
        """Name for display, such as "int8+attention"."""
        return f"{self.precision}{'+attention' if self.float8_attention else ''}"

    def asked(self, options: EngineOptions) -> EngineOptions:
        """Options that build it, without the speed gate, as all are compared later."""
        return replace(
            options,
            precision=self.precision,
            float8_attention=self.float8_attention,
            speed_gate=False,
        )

    @property
    def milliseconds(self) -> float:
        """Time on the device for one image and one text."""
        return sum(c.timing.median_ms / c.timing.batch for c in self.speed.values())


@dataclass(frozen=True, slots=True)
class Best:
    """Result of `best_engines`."""

    bundle: Bundle
    device: Device
    candidates: tuple[Candidate, ...]
    winner: Candidate
    warnings: tuple[str, ...]


def best_engines(
    path: Path,
    data: RetrievalData | None = None,
    *,
    held_back: RetrievalData | None = None,
    options: EngineOptions | None = None,
    max_recall_drop: float = MAX_RECALL_DROP,
    undecided: Literal["pass", "fail"] | None = None,
    out: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Best:
    """Build engines of all precisions, measure speed and recall, and add the fastest ones.

    Args:
        path: the bundle.
        data: images and captions. Value ranges are measured on ``options.samples`` of the images;
            the others are held back, and recall is measured on them. Without data, no 8-bit engine
            is tried, because its loss of recall would be unknown.
        held_back: a separate set to measure recall on, instead of that part of ``data``.
        options: see EngineOptions; its precision is ignored.
        max_recall_drop: points that each of TR@1/5/10 and IR@1/5/10 may lose against float32.
        undecided: what an undecided verdict on recall counts as. None: it passes for 16 bits and
            fails for 8 bits.
        out: folder of the bundle with the engines; None: the bundle is updated in place.
        force: replace ``out`` if it already exists.
        progress: called for each step.

    Raises:
        ParityError: no precision stays within the budget. The bundle is unchanged.
        EngineError: no engine could be built.
        MissingPackageError, RuntimeUnavailableError: see `build_engines`.
    """
    options, progress = options or EngineOptions(), progress or Silent()
    check_recall_drop(max_recall_drop)
    progress("look for TensorRT and a GPU")
    tensorrt, device = find_tensorrt(options.device)
    bundle = Bundle.open(path)
    bundle.require(*TOWERS, what="the choice of the best engines")
    if data is not None and held_back is None:
        data, held_back = split_data(data, options.samples, options.seed)
    candidates = [Candidate(*kind) for kind in CANDIDATES]
    for candidate in candidates:
        candidate.problem = _not_tried(candidate, bundle, tensorrt, device, held_back)
    # Next to the bundle, so that files can be linked instead of copied.
    with scratch_folder(Path(path)) as scratch:
        trial = scratch / "bundle"
        contest = _Contest(
            bundle, trial, device, options, held_back, max_recall_drop, undecided, progress
        )
        warnings = contest.build(candidates, data)
        tried = [candidate for candidate in candidates if candidate.engines]
        if not tried:
            raise EngineError(f"{path}: no engine could be built. {_problems(candidates)}")
        contest.time(tried)
        contest.measure(tried)
        winner = fastest(candidates)
        if winner is None:
            raise ParityError(
                f"{path}: no engine stays within {max_recall_drop:g} points of recall. "
                f"{_problems(candidates)} The bundle is unchanged. To allow a larger drop: "
                "`max_recall_drop`"
            )
        added = contest.publish(winner, out, force=force)
    return Best(added, device, tuple(candidates), winner, warnings)


def fastest(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the fastest candidate without a problem; None if all have a problem.

    Of equally fast candidates, the first in the order of CANDIDATES wins.
    """
    good = [candidate for candidate in candidates if candidate.problem is None]
    return min(good, key=lambda candidate: candidate.milliseconds, default=None)


def _not_tried(
    candidate: Candidate,
    bundle: Bundle,
    tensorrt: TensorRt,
    device: Device,
    held_back: RetrievalData | None,
) -> str | None:
    """Why a precision is not tried; None if it is."""
    precision = candidate.precision
    try:
        candidate.asked(EngineOptions()).check_gpu(tensorrt, device.capability, device.name)
    except UsageError as error:
        return str(error)
    if precision in CALIBRATED and CALIBRATION not in bundle.manifest.files:
        return "the bundle has no calibration. Make one with `mwa-export quantize`"
    if precision in CALIBRATED and held_back is None:
        return "there are no data to measure its recall on. Pass `data`"
    return None


@dataclass(frozen=True, slots=True)
class _Contest:
    """A trial of several precisions, in a copy of the bundle."""

    bundle: Bundle
    trial: Path  # the copy
    device: Device
    options: EngineOptions
    held_back: RetrievalData | None
    budget: float  # points of recall
    undecided: Literal["pass", "fail"] | None
    progress: Progress

    def build(self, candidates: Sequence[Candidate], data: RetrievalData | None) -> tuple[str, ...]:
        """Build the candidates into the copy. Returns warnings."""
        warnings: list[str] = []
        for candidate in candidates:
            if candidate.problem is not None:
                continue
            asked = candidate.asked(self.options)
            path, out = (
                (self.trial, None) if self.trial.exists() else (self.bundle.path, self.trial)
            )
            try:
                done = build_engines(path, data, options=asked, out=out, progress=self.progress)
            except (CalibrationError, EngineError, UsageError, VerificationError) as error:
                candidate.problem = str(error)
                continue
            candidate.engines = {engine.tower: engine for engine in done.engines}
            warnings += done.warnings
        return tuple(dict.fromkeys(warnings))

    def time(self, tried: Sequence[Candidate]) -> None:
        """Measure the speed of all candidates, interleaved, for each tower."""
        bundle = Bundle.open(self.trial)
        for tower in TOWERS:
            self.progress(f"{tower} tower: compare the speed of all precisions")
            engines = {c.name: (bundle, c.engines[tower]) for c in tried}
            found = compare_engines(engines, self.device)
            for candidate in tried:
                candidate.speed[tower] = found[candidate.name]

    def measure(self, tried: Sequence[Candidate]) -> None:
        """Check conformance vectors of every candidate, and measure recall if there are data."""
        bundle, data = Bundle.open(self.trial), self.held_back
        side = (
            None if data is None else HeldBack(open_bundle(self.bundle.path), data, self.progress)
        )
        eight_bits = sum(candidate.precision in CALIBRATED for candidate in tried)
        # Bonferroni, because one of several candidates may pass by chance
        confidence = 1 - (1 - CONFIDENCE) / max(1, eight_bits)
        for candidate in tried:
            engines, device = tuple(candidate.engines.values()), self.options.device
            try:
                with TensorRtBackend(bundle, engines=engines, device=device) as backend:
                    if side is None:
                        continue
                    label = f"TensorRT {candidate.name}"
                    candidate.recall = side.measure(frozenset(), backend, label)
            except (EngineError, VerificationError) as error:
                candidate.problem = str(error)
                continue
            candidate.decision = decide(
                candidate.recall.changes,
                self.budget,
                confidence=confidence,
                objection=side.objection(),
                accept=self.undecided == "pass",
            )
            candidate.problem = self._refusal(candidate, candidate.decision)

    def _refusal(self, candidate: Candidate, decision: Decision) -> str | None:
        """Why the decision on recall rules out a candidate; None if it does not."""
        allowed = f"{decision.words()}, allowed drop {self.budget:g}"
        if decision.verdict == "fails":
            return f"recall drops too much: {allowed}"
        needs_proof = candidate.precision in CALIBRATED or self.undecided == "fail"
        if decision.verdict == "undecided" and needs_proof and not decision.accepted:
            why = decision.objection or allowed
            return f"recall is undecided: {why} (`undecided=pass` accepts it)"
        return None

    def publish(self, winner: Candidate, out: Path | None, *, force: bool) -> Bundle:
        """Write the bundle with the winner's engines and measurements, without the others."""
        manifest, measured = self.bundle.manifest, self._record(winner)
        engines = [replace(engine, measured=measured) for engine in winner.engines.values()]
        with changed_bundle(self.bundle, out, force=force) as change:
            for engine in engines:
                target = change.folder / engine.file
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(self.trial / engine.file, target)
            added = with_engines(manifest.engines, engines)
            manifest = change.write(replace(manifest, engines=added))
        return Bundle(Path(out or self.bundle.path), manifest)

    def _record(self, winner: Candidate) -> MeasuredEngines | None:
        """Measurements of the winner, recorded for each of its engines; None without recall."""
        recall, data = winner.recall, self.held_back
        if recall is None or winner.decision is None:
            return None
        return MeasuredEngines(
            decision=winner.decision,
            max_recall_drop=self.budget,
            mean_cosine={tower: round(c, 7) for tower, c in recall.cosine.items()},
            recall=recall.detail,
            held_back=None if data is None else HeldBackData(data.name, len(data.pictures)),
            milliseconds={
                tower: RunTime(c.timing.batch, c.timing.length, c.timing.median_ms)
                for tower, c in winner.speed.items()
            },
        )


def _problems(candidates: Sequence[Candidate]) -> str:
    return " ".join(f"{c.name}: {c.problem.rstrip('.')}." for c in candidates if c.problem)
