"""Calibrate from samples: smoothing, ranges and, optionally, learned rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.calib.calibration import Calibration, SiteCalibration
from mwa_export.calib.collect import ChannelStats, channel_stats, gram_matrices, histograms
from mwa_export.calib.histogram import Histogram
from mwa_export.calib.learned_rounding import learned_rounding
from mwa_export.calib.ranges import METHODS, amax_from
from mwa_export.calib.samples import Samples
from mwa_export.calib.sites import Site, find_sites
from mwa_export.calib.smoothing import (
    Smoothing,
    apply_smoothing,
    choose_smoothing,
    joint_weight,
    layer_error,
)
from mwa_export.calib.weights import quantize_weight, weight_scales
from mwa_export.errors import CalibrationError, check_option
from mwa_export.graphs.edit import FloatGraph
from mwa_export.memory import release
from mwa_export.optional import versions_of
from mwa_export.progress import Progress, Silent
from mwa_export.spec import TOWERS, Tower
from mwa_export.version import __version__

AUTO = "auto"
ROUNDINGS = ("nearest", "learned")


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """Options of a calibration: ranges and rounding."""

    method: str = AUTO  # one of ranges.METHODS; "auto": the best for each tensor
    percentile: float = 99.99  # of magnitudes, for the method "percentile"
    smooth: bool = True  # move outliers from activations into weights
    rounding: str = "nearest"  # of weights: one of ROUNDINGS

    def __post_init__(self) -> None:
        for name, known in (("method", (AUTO, *METHODS)), ("rounding", ROUNDINGS)):
            value = getattr(self, name)
            check_option(name, value, value in known, ", ".join(known))
        fits = 50 < self.percentile <= 100
        check_option("percentile", self.percentile, fits, "above 50, at most 100")

    @property
    def chosen(self) -> list[str]:
        """Options that differ from their defaults, for messages."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        usual = CalibrationOptions()
        return [f"`{name}={value}`" for name, value in values if value != getattr(usual, name)]


def calibrate(
    bundle: Bundle,
    samples: Samples,
    options: CalibrationOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Calibration:
    """Calibrate both towers of a bundle on the samples.

    Raises:
        BundleError: the bundle lacks a tower.
        CalibrationError: a graph has nothing to quantize, or an activation is constant or not
            finite; the message names the tensor.
    """
    options, progress = options or CalibrationOptions(), progress or Silent()
    bundle.require(*TOWERS, what="calibration")
    sites: list[SiteCalibration] = []
    for tower in TOWERS:
        sites += _calibrate_tower(bundle, tower, samples, options, progress)
        release()
    manifest = bundle.manifest
    return Calibration(
        space_id=manifest.space_id,
        graphs={t: manifest.files[bundle.describe(t).file].sha256 for t in TOWERS},
        data={
            "name": samples.name,
            "sha256": samples.sha256,
            "pictures": samples.count("vision"),
            "captions": samples.count("text"),
            "seed": samples.seed,
        },
        versions={"mwa-export": __version__, **versions_of("numpy", "onnx", "onnxruntime")},
        sites=tuple(sites),
    )


def _calibrate_tower(
    bundle: Bundle, tower: Tower, samples: Samples, options: CalibrationOptions, progress: Progress
) -> list[SiteCalibration]:
    file = bundle.graph(tower)
    graph = FloatGraph.load(file[0])
    sites = find_sites(graph)
    if not sites:
        raise CalibrationError(
            f"{file[0]}: found no GEMM that is named after a block, so there is nothing to "
            "quantize. Expected a graph that `mwa-export onnx` exported."
        )
    stats = channel_stats(file, sites, samples, progress)
    smoothings = _smooth(graph, sites, stats, options, progress)
    divide = {name: s.divide for name, s in smoothings.items() if s.divide is not None}
    smoothed = apply_smoothing(graph, {site.name: site for site in sites}, divide)
    found = histograms(file, sites, samples, divide, progress)
    learned: dict[str, dict[str, NDArray[np.int8]]] = {}
    if options.rounding == "learned":
        for site, gram in gram_matrices(file, sites, samples, divide, progress):
            weights = {name: smoothed.tensors[f"{name}.weight"] for name in site.linears}
            learned[site.name] = {
                name: learned_rounding(w, weight_scales(w), gram) for name, w in weights.items()
            }
    progress(f"{tower} tower: choose ranges", len(sites))
    result = []
    for site in sites:
        result.append(
            _choose(
                tower,
                site,
                smoothed,
                stats[site.name],
                found[site.name],
                smoothings[site.name],
                learned.get(site.name, {}),
                options,
            )
        )
        progress.advance(1)
    return result


def _smooth(
    graph: FloatGraph,
    sites: Sequence[Site],
    stats: Mapping[str, ChannelStats],
    options: CalibrationOptions,
    progress: Progress,
) -> dict[str, Smoothing]:
    if not options.smooth:
        return {site.name: Smoothing(None, None, 0.0, 0.0) for site in sites}
    progress("choose the smoothing of each layer", len(sites))
    chosen = {}
    for site in sites:
        chosen[site.name] = choose_smoothing(
            joint_weight(graph, site), stats[site.name], foldable=bool(site.folds)
        )
        progress.advance(1)
    return chosen


def _choose(
    tower: Tower,
    site: Site,
    smoothed: FloatGraph,
    stats: ChannelStats,
    histogram: Histogram,
    smoothing: Smoothing,
    learned: dict[str, NDArray[np.int8]],
    options: CalibrationOptions,
) -> SiteCalibration:
    """Choose the range of a site: by the given method, or by the least error of its output."""
    divide = smoothing.divide
    rows = stats.rows if divide is None else (stats.rows / divide).astype(np.float32)
    weight = joint_weight(smoothed, site)
    scales = weight_scales(weight)
    int8 = (
        np.concatenate([learned[name] for name in site.linears], axis=1)
        if learned
        else quantize_weight(weight, scales)
    )
    wanted = rows @ weight
    methods = METHODS if options.method == AUTO else (options.method,)
    candidates = {m: amax_from(histogram, m, percentile=options.percentile) for m in methods}
    errors = {m: layer_error(rows, int8, scales, a, wanted) for m, a in candidates.items()}
    method = min(errors, key=lambda name: (errors[name], name))
    mean = (stats.mean if divide is None else stats.mean / divide).astype(np.float32)
    return SiteCalibration(
        tower=tower,
        site=site.name,
        tensor=site.tensor,
        width=site.width,
        method=method,
        amax=candidates[method],
        alpha=smoothing.alpha,
        error=errors[method],
        error_unsmoothed=smoothing.plain_error if options.smooth else errors[method],
        histogram={
            "digest": histogram.digest(),
            "values": histogram.count,
            "amax": histogram.amax,
        },
        divide=divide,
        mean=mean,
        weights=learned,
    )
