"""Collect statistics of a float32 graph over the samples, in memory of O(sites), not O(samples).

There are three passes: channel extremes and sample rows; histograms; and, for learned rounding,
Gram matrices. The second and third depend on the smoothing that is chosen after the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.manifest import GraphFile
from mwa_export.calib.histogram import Histogram
from mwa_export.calib.samples import Samples
from mwa_export.calib.sites import Site
from mwa_export.errors import CalibrationError
from mwa_export.inputs.preprocess import feed_of
from mwa_export.progress import Progress
from mwa_export.runtimes.ort_session import session_with_outputs

Floats = NDArray[np.float32]
GRAM_BYTES = 1 << 30  # bytes of Gram matrices in memory at a time
ROWS = 512  # sample rows per site, drawn uniformly over all tokens of all samples


class ChannelStats:
    """Statistics of a site from the first pass."""

    def __init__(self, width: int) -> None:
        self.low = np.full(width, np.inf, np.float32)  # (width,) smallest value of each channel
        self.high = np.full(width, -np.inf, np.float32)  # (width,) largest value of each channel
        self.total = np.zeros(width)  # (width,) sum over all tokens
        self.tokens = 0
        self.rows = np.empty((0, width), np.float32)  # at most ROWS tokens, drawn uniformly
        self._keys = np.empty(0)

    @property
    def amax(self) -> Floats:
        """(width,) largest magnitude of each channel."""
        amax: Floats = np.maximum(np.abs(self.low), np.abs(self.high))
        return amax

    @property
    def mean(self) -> NDArray[np.float64]:
        """(width,) mean of each channel."""
        return self.total / max(1, self.tokens)

    def add(self, values: Floats, keys: NDArray[np.float64]) -> None:
        """Add tokens, (n, width).

        ``keys``: (n,), uniform in [0, 1). The ROWS tokens with the smallest keys are kept as the
        sample, so that it does not depend on the batches.
        """
        np.minimum(self.low, values.min(axis=0), out=self.low)
        np.maximum(self.high, values.max(axis=0), out=self.high)
        self.total += values.sum(axis=0, dtype=np.float64)
        self.tokens += len(values)
        best = np.argpartition(keys, ROWS)[:ROWS] if len(keys) > ROWS else np.arange(len(keys))
        rows = np.concatenate([self.rows, values[best]])
        all_keys = np.concatenate([self._keys, keys[best]])
        if len(all_keys) > ROWS:
            keep = np.argpartition(all_keys, ROWS)[:ROWS]
            rows, all_keys = rows[keep], all_keys[keep]
        self.rows, self._keys = rows, all_keys


def channel_stats(
    file: GraphFile, sites: Sequence[Site], samples: Samples, progress: Progress
) -> dict[str, ChannelStats]:
    """First pass: extremes, means and sample rows of each site, by its name.

    Raises:
        CalibrationError: an activation is not finite, or is constant over all samples.
    """
    stats = {site.name: ChannelStats(site.width) for site in sites}
    rng = np.random.default_rng(samples.seed)
    for site, values in _activations(file, sites, samples, progress, "first pass", {}):
        stats[site.name].add(values, rng.random(len(values)))
    for site in sites:
        found = stats[site.name]
        if not (found.high > found.low).any():
            raise CalibrationError(
                f"{site.tensor}: is constant over all {samples.count(file[1].spec.tower)} samples, "
                "so it has no range. Check the checkpoint, and that the samples differ."
            )
    return stats


def histograms(
    file: GraphFile,
    sites: Sequence[Site],
    samples: Samples,
    divide: Mapping[str, Floats],
    progress: Progress,
) -> dict[str, Histogram]:
    """Second pass: histogram of each site's activation, divided by its ``divide``, (width,)."""
    found = {site.name: Histogram() for site in sites}
    for site, values in _activations(file, sites, samples, progress, "histograms", divide):
        found[site.name].add(values)
    return found


def gram_matrices(
    file: GraphFile,
    sites: Sequence[Site],
    samples: Samples,
    divide: Mapping[str, Floats],
    progress: Progress,
) -> Iterator[tuple[Site, NDArray[np.float32]]]:
    """Third pass: yield XᵀX of each site's smoothed activation X, (width, width).

    As many sites as fit into GRAM_BYTES are collected at a time; each group runs all samples.
    """
    for group in _groups(sites):
        grams = {site.name: np.zeros((site.width, site.width), np.float32) for site in group}
        label = f"products of {group[0].name} to {group[-1].name}"
        for site, x in _activations(file, group, samples, progress, label, divide):
            grams[site.name] += x.T @ x
        for site in group:
            yield site, grams.pop(site.name)


def _groups(sites: Sequence[Site]) -> list[list[Site]]:
    """Group consecutive sites whose matrices fit into GRAM_BYTES."""
    groups: list[list[Site]] = []
    room = 0
    for site in sites:
        size = 4 * site.width**2
        if not groups or size > room:
            groups.append([])
            room = GRAM_BYTES
        groups[-1].append(site)
        room -= size
    return groups


def _activations(
    file: GraphFile,
    sites: Sequence[Site],
    samples: Samples,
    progress: Progress,
    label: str,
    divide: Mapping[str, Floats],
) -> Iterator[tuple[Site, Floats]]:
    """Yield each site's divided activation for each batch, (tokens, width), without padding."""
    path, graph = file
    tower = graph.spec.tower
    names = [site.tensor for site in sites]
    runner = session_with_outputs(path, names)
    progress(f"{tower} tower: {label}", samples.count(tower))
    for inputs in samples.batches(tower):
        arrays = runner.run(names, feed_of(graph.spec, inputs))
        real = inputs[1] == 0 if tower == "text" else None
        for index, site in enumerate(sites):
            values, arrays[index] = arrays[index], None  # freed as soon as it is counted
            tokens = values[real] if real is not None else values.reshape(-1, site.width)
            if not np.isfinite(tokens).all():
                raise CalibrationError(
                    f"{path.name}: {site.tensor} contains values that are not finite. The "
                    "checkpoint overflows on these samples and cannot be calibrated. Check it with "
                    "`mwa-export parity`."
                )
            yield site, tokens / divide[site.name] if site.name in divide else tokens
        progress.advance(len(inputs[0]))
