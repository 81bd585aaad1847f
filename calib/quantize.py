"""Quantize a float32 bundle: calibrate, choose precisions, and add INT8 graphs."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import GraphFile
from mwa_export.bundle.quantization import HeldBackData, Measured, Quantization
from mwa_export.bundle.update import Change, changed_bundle
from mwa_export.calib.calibrate import CalibrationOptions, calibrate
from mwa_export.calib.calibration import CALIBRATION, Calibration
from mwa_export.calib.curve import write_curve
from mwa_export.calib.decision import Rule, Undecided, cut_captions
from mwa_export.calib.dialects import DIALECTS, named_dialects, primary_dialect
from mwa_export.calib.earlier import earlier_quantization, joined, replaced_graphs
from mwa_export.calib.evaluate import (
    Evaluator,
    HeldBack,
    measure_runtimes,
    milliseconds,
    sensitivities,
    with_conformance,
)
from mwa_export.calib.page import FILES
from mwa_export.calib.precision_search import (
    SearchResult,
    SiteKey,
    named_sites,
    names_of,
    savings,
    search,
)
from mwa_export.calib.samples import SAMPLES, Samples, divided, take_samples
from mwa_export.calib.sites import find_sites
from mwa_export.calib.variants import Variants
from mwa_export.cpu import check_threads
from mwa_export.data.test_set import RetrievalData
from mwa_export.data.test_sets import TestSet, as_test_set
from mwa_export.encoder.open import open_bundle
from mwa_export.errors import UsageError, check_option
from mwa_export.files import scratch_folder
from mwa_export.graphs.edit import FloatGraph
from mwa_export.metrics.recall import MAX_RECALL_DROP, SLACK, check_recall_drop
from mwa_export.metrics.verdict import Decision
from mwa_export.progress import Progress, Silent
from mwa_export.runtimes.open import cpu_backend
from mwa_export.runtimes.options import LABELS
from mwa_export.spec import TOWERS, Tower
from mwa_export.version import __version__

SENSITIVITY_ROWS = 16


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """Options of `quantize_bundle`."""

    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    samples: int = SAMPLES
    seed: int = 0
    dialects: tuple[str, ...] = ()  # or "all"; empty: those of the installed CPU runtimes
    max_recall_drop: float = MAX_RECALL_DROP  # points, of each of the six recall figures
    keep: tuple[str, ...] = ()  # patterns of layers that always stay in high precision
    points: int = 3  # of the trade-off curve, in addition to those that the search needs
    search: bool = True  # False: all layers in INT8, and the drop is only measured
    time_budget: float | None = None  # minutes, after which the search tries nothing new
    undecided: Undecided = None  # what an undecided verdict counts as
    threads: int | None = None
    tokenizer: Path | None = None  # for a bundle that was exported without one

    def __post_init__(self) -> None:
        check_option("samples", self.samples, self.samples >= 1, "at least 1")
        check_option("seed", self.seed, self.seed >= 0, "at least 0")
        check_option("points", self.points, 0 <= self.points <= 20, "0 to 20")
        minutes = self.time_budget
        check_option("time_budget", minutes, minutes is None or minutes > 0, "more than 0 minutes")
        check_recall_drop(self.max_recall_drop)
        check_threads("threads", self.threads)

    @property
    def rule(self) -> Rule:
        """The recall budget, and what an undecided verdict counts as."""
        return Rule(self.max_recall_drop, self.undecided)


@dataclass(frozen=True, slots=True)
class Quantized:
    """Result of `quantize`."""

    bundle: Bundle
    calibration: Calibration
    result: SearchResult | None  # None: recall was not measured, because there were no data
    quantization: Quantization  # as in the manifest
    decision: Decision | None  # on recall, measured on the runtime of the search
    warnings: tuple[str, ...]


def quantize(
    path: str | os.PathLike[str],
    data: TestSet | None,
    *,
    held_back: TestSet | None = None,
    calibration: Path | None = None,
    options: QuantizeOptions | None = None,
    out: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Quantized:
    """Calibrate, find the fastest precisions within the recall budget, and add INT8 graphs.

    Args:
        path: the bundle, whose float32 graphs are quantized.
        data: a test set or its path. Samples are drawn from it; without ``held_back``, recall is
            decided on the images that were not drawn.
        held_back: separate data to decide on recall, which the search never sees.
        calibration: an earlier calibration.json, used instead of samples.
        options: see QuantizeOptions.
        out: folder of the bundle with the INT8 graphs; None: the bundle is updated in place.
        force: replace ``out`` if it already exists.
        progress: called for each step.

    Raises:
        CalibrationError: too few samples, noise, a constant or non-finite activation, or a
            calibration of a different graph.
        ParityError: no assignment with INT8 is expected to stay within the budget, or the chosen
            one fails. The bundle is unchanged.
        UsageError: options contradict each other, or there are no data to calibrate with.
    """
    options, progress = options or QuantizeOptions(), progress or Silent()
    named_dialects(options.dialects)  # refuses before the work starts
    if calibration is not None:
        ignored = options.calibration.chosen
        if data is None and held_back is None and options.samples != SAMPLES:
            ignored.append(f"`samples={options.samples}`")
        if ignored:
            raise UsageError(
                f"{', '.join(ignored)}: has no effect with an earlier calibration ({calibration}). "
                "Omit it, or calibrate again without `calibration`."
            )
    data, held_back = as_test_set(data), as_test_set(held_back)
    progress("open the bundle and check its conformance vectors")
    bundle = Bundle.open(path)
    bundle.require(*TOWERS, what="quantization")
    if options.keep:  # fail now, not after minutes of work
        named_sites(_sites_in(bundle), options.keep)
    found = None if calibration is None else Calibration.load(calibration)
    if data is None and found is None:
        raise UsageError(
            "no data to calibrate with. Pass images with captions like those that will be "
            "embedded (`data`), or an earlier calibration (`calibration`)."
        )
    with changed_bundle(bundle, out, force=force) as change:  # refuses before the work starts
        earlier = earlier_quantization(bundle, calibration)
        quantized = _quantize(change, bundle, found, earlier, data, held_back, options, progress)
    return replace(quantized, bundle=Bundle(Path(out or path), quantized.bundle.manifest))


def _quantize(
    change: Change,
    bundle: Bundle,
    found: Calibration | None,
    earlier: Quantization | None,
    data: RetrievalData | None,
    held_back: RetrievalData | None,
    options: QuantizeOptions,
    progress: Progress,
) -> Quantized:
    """Do the work of `quantize` and write its files. ``earlier``: see `earlier_quantization`."""
    folder, dialects = change.folder, named_dialects(options.dialects)
    side = open_bundle(bundle, lent_tokenizer=options.tokenizer)
    fitting, trying, held_back = divided(
        data, held_back, options.samples, options.seed, fit=found is None, search=options.search
    )
    judge, rule = None, options.rule
    warnings: tuple[str, ...] = ()
    if held_back is not None:
        warnings = rule.doubts(held_back, progress) + cut_captions(side, held_back)
        judge = HeldBack(side, held_back, progress)
    samples: Samples | None = None
    if found is None:
        assert fitting is not None
        samples = take_samples(side, fitting, options.samples, options.seed)
        found = calibrate(bundle, samples, options.calibration, progress=progress)
    variants = Variants(bundle, found)
    kept = named_sites(_all_sites(variants), options.keep)
    decider, few, result, decision = None, None, None, None
    times: dict[Tower, float] = {}
    measured: tuple[Measured, ...] = ()
    if judge is None or held_back is None:
        if earlier is not None and not options.keep:
            kept = frozenset(SiteKey(t, name) for t in TOWERS for name in earlier.kept.get(t, ()))
        chosen = frozenset(_all_sites(variants)) - kept
        warnings = ("recall was not measured (no `data`), so `auto` will not choose these graphs",)
    else:
        primary, threads = primary_dialect(dialects), options.threads
        few = samples or take_samples(side, trying or held_back, options.samples, options.seed)
        tried = judge if trying is None else HeldBack(side, trying, progress, "search")
        evaluator = Evaluator(variants, tried, primary, threads)
        result, times = _search(evaluator, few, kept, len(held_back.pictures), options, progress)
        chosen = result.chosen.int8
        if not chosen:
            raise rule.nothing_fits(result)
        progress("decide on held-back data that the search has not seen")
        decider = evaluator if tried is judge else Evaluator(variants, judge, primary, threads)
        judged = partial(rule.judge, objection=judge.objection())
        decision = judged(decider(chosen))
        if options.search:
            rule.refuse(decision)
    high = {
        tower: tuple(s.name for s in variants.sites(tower) if SiteKey(tower, s.name) not in chosen)
        for tower in TOWERS
    }
    if earlier is not None and earlier.kept != high:
        earlier = None  # all INT8 graphs of a bundle share one calibration and choice of layers
    gone = replaced_graphs(bundle, earlier, dialects)
    change.drop(*(name for graph in gone for name in bundle.manifest.files_of(graph.file)))
    if lost := sorted({graph.dialect for graph in gone} - {dialect.name for dialect in dialects}):
        again = " ".join(f"`dialects={name}`" for name in lost)
        warnings += (f"removed the INT8 graphs of the earlier quantization: {again}",)
    if earlier is None or result is not None:
        change.drop(*FILES)
    files: list[GraphFile] = []
    for dialect in dialects:
        progress(f"write the graphs for {dialect.runtime}")
        files += [
            variants.write(tower, names_of(chosen, tower), dialect, folder) for tower in TOWERS
        ]
    graphs = [with_conformance(bundle, file, options.threads) for file in files]
    if decider is not None and few is not None:
        measured = measure_runtimes(decider, files, chosen, few, judged, progress)
    found.save(folder)
    if result is not None:
        write_curve(folder, result, times, options.max_recall_drop, decision)
    progress("write the manifest")
    quantization = Quantization(
        mwa_export=__version__,
        calibration=CALIBRATION,
        data=found.data,
        max_recall_drop=options.max_recall_drop,
        held_back=None if held_back is None else _described(held_back),
        measured=measured,
        kept=high,
    )
    if earlier is not None:
        quantization, unmeasured = joined(earlier, quantization)
        warnings += tuple(
            f"recall of the graphs for {LABELS[runtime]} was measured on other data, so `auto` "
            "will no longer choose them. To measure them again, pass their dialect too"
            for runtime in unmeasured
        )
    others = [graph for graph in bundle.manifest.graphs if graph not in gone]
    manifest = change.write(
        replace(bundle.manifest, graphs=(*others, *graphs), quantization=quantization)
    )
    return Quantized(Bundle(folder, manifest), found, result, quantization, decision, warnings)


def _described(data: RetrievalData) -> HeldBackData:
    return HeldBackData(data.name, len(data.pictures), len(data.captions))


def _all_sites(variants: Variants) -> list[SiteKey]:
    return [SiteKey(tower, site.name) for tower in TOWERS for site in variants.sites(tower)]


def _sites_in(bundle: Bundle) -> list[SiteKey]:
    towers = {tower: find_sites(FloatGraph.load(bundle.graph(tower)[0])) for tower in TOWERS}
    return [SiteKey(tower, site.name) for tower, sites in towers.items() for site in sites]


def _search(
    evaluator: Evaluator,
    samples: Samples,
    kept: frozenset[SiteKey],
    pictures: int,
    options: QuantizeOptions,
    progress: Progress,
) -> tuple[SearchResult, dict[Tower, float]]:
    """Run the search. Returns its result, and milliseconds per row of each tower without INT8.

    ``pictures``: number of images of the data that will decide.
    """
    variants = evaluator.variants
    sites = [key for key in _all_sites(variants) if key not in kept]
    few = samples.first(SENSITIVITY_ROWS)
    sensitivity = sensitivities(variants, few, DIALECTS["onnxruntime"], progress, exclude=kept)
    progress("compare the speed of INT8 and float32")
    saved, times = _savings(evaluator, frozenset(sites), samples)
    result = search(
        sensitivity,
        saved,
        evaluator,
        max_drop=options.max_recall_drop + SLACK if options.search else math.inf,
        pictures=pictures if options.rule.can_be_decided(pictures) else None,
        points=options.points,
        progress=progress,
        seconds=math.inf if options.time_budget is None else 60 * options.time_budget,
    )
    return result, times


def _savings(
    evaluator: Evaluator, int8: frozenset[SiteKey], samples: Samples
) -> tuple[dict[SiteKey, float], dict[Tower, float]]:
    """Measure the time that INT8 saves at each site, and the time of each tower without INT8.

    Both are in milliseconds per row, on the runtime of the search.
    """
    variants, dialect = evaluator.variants, evaluator.dialect
    with scratch_folder() as folder:
        graphs: dict[Tower, GraphFile] = {
            tower: variants.write(tower, names_of(int8, tower), dialect, folder) for tower in TOWERS
        }
        open_ = partial(cpu_backend, variants.bundle, dialect.name, threads=evaluator.threads)
        times = milliseconds({"float": open_({}), "int8": open_(graphs)}, samples)
    macs = {
        SiteKey(tower, site.name): float(site.macs)
        for tower in TOWERS
        for site in variants.sites(tower)
        if SiteKey(tower, site.name) in int8
    }
    high = {tower: times[tower]["float"] for tower in TOWERS}
    return savings(macs, high, {tower: times[tower]["int8"] for tower in TOWERS}), high
