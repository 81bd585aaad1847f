"""Streaming statistics equal those of all values at once; bad activations are reported."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from calib_files import Array, make_samples
from hypothesis import given, settings
from hypothesis import strategies as st

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import GraphFile
from mwa_export.calib import collect
from mwa_export.calib.collect import ROWS, ChannelStats, channel_stats, gram_matrices, histograms
from mwa_export.calib.histogram import Histogram
from mwa_export.calib.sites import Site, find_sites
from mwa_export.errors import CalibrationError
from mwa_export.graphs.edit import FloatGraph
from mwa_export.inputs.preprocess import feed_of
from mwa_export.progress import Silent
from mwa_export.runtimes.ort_session import session_with_outputs
from mwa_export.spec import Tower

Opened = tuple[GraphFile, tuple[Site, ...]]


def opened(files: Path, tower: Tower) -> Opened:
    file = Bundle.open(files / "bundle").graph(tower)
    return file, find_sites(FloatGraph.load(file[0]))


def all_values(file: GraphFile, sites: tuple[Site, ...], tower: Tower) -> dict[str, Array]:
    """Every token of each site, one sample after the other and without any padding."""
    samples = make_samples()
    found: dict[str, list[Array]] = {site.name: [] for site in sites}
    tensors = [site.tensor for site in sites]
    runner = session_with_outputs(file[0], tensors)
    for row in range(samples.count(tower)):
        if tower == "vision":
            inputs: tuple[Array, ...] = (samples.pixels[row : row + 1],)
        else:
            ids = np.asarray([samples.sequences[row]], np.int64)
            inputs = ids, np.zeros_like(ids)
        feed = feed_of(file[1].spec, inputs)
        for site, value in zip(sites, runner.run(tensors, feed), strict=True):
            found[site.name].append(value.reshape(-1, site.width))
    return {name: np.concatenate(parts) for name, parts in found.items()}


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_streaming_equals_all_values_at_once_without_padding(files: Path, tower: Tower) -> None:
    file, sites = opened(files, tower)
    exact = all_values(file, sites, tower)
    divide = {sites[0].name: np.linspace(0.5, 2, sites[0].width).astype(np.float32)}
    stats = channel_stats(file, sites, make_samples(), Silent())
    counted = histograms(file, sites, make_samples(), divide, Silent())
    grams = {s.name: g for s, g in gram_matrices(file, sites, make_samples(), divide, Silent())}
    for site in sites:
        values, found = exact[site.name], stats[site.name]
        assert found.tokens == len(values), "padding is left out"
        assert np.allclose(found.low, values.min(0), atol=1e-5)
        assert np.allclose(found.high, values.max(0), atol=1e-5)
        assert np.allclose(found.amax, np.abs(values).max(0), atol=1e-5)
        assert np.allclose(found.mean, values.mean(0, dtype=np.float64), atol=1e-5)
        assert found.rows.shape == (min(ROWS, len(values)), site.width)
        smoothed = values / divide.get(site.name, np.float32(1))
        once = Histogram()
        once.add(smoothed.astype(np.float32, copy=False))
        streamed = counted[site.name]
        assert streamed.count == once.count == values.size
        assert streamed.amax == pytest.approx(once.amax, rel=1e-5)
        assert streamed.limit == once.limit
        # Batches of other sizes round otherwise, which moves a value on an edge to the next bin.
        moved = np.abs(np.cumsum(streamed.counts) - np.cumsum(once.counts)).max()
        assert moved <= 1e-3 * once.count
        exact_gram = smoothed.astype(np.float64).T @ smoothed
        assert np.abs(grams[site.name] - exact_gram).max() <= 1e-4 * np.abs(exact_gram).max()


def test_gram_matrices_come_in_groups_that_fit(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, sites = opened(files, "text")
    whole = [g for _site, g in gram_matrices(file, sites, make_samples(), {}, Silent())]
    monkeypatch.setattr(collect, "GRAM_BYTES", 4 * max(site.width for site in sites) ** 2)
    assert len(collect._groups(sites)) > 1
    parts = [g for _site, g in gram_matrices(file, sites, make_samples(), {}, Silent())]
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=6))
def test_statistics_do_not_depend_on_the_cut(sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    values, keys = rng.normal(size=(sum(sizes), 3)).astype(np.float32), rng.random(sum(sizes))
    cut, once = ChannelStats(3), ChannelStats(3)
    once.add(values, keys)
    edges = np.cumsum(sizes)[:-1]
    for part, part_keys in zip(np.split(values, edges), np.split(keys, edges), strict=True):
        cut.add(part, part_keys)
    assert np.array_equal(cut.low, once.low)
    assert np.array_equal(cut.high, once.high)
    assert np.allclose(cut.mean, values.mean(0, dtype=np.float64), atol=1e-6)
    expected = values[np.argsort(keys)[:ROWS]]
    for stats in (cut, once):
        assert sorted(stats.rows.tolist()) == sorted(expected.tolist())


def changed(file: GraphFile, folder: Path, tensors: dict[str, Array]) -> GraphFile:
    """The graph with some of its weights replaced."""
    graph = FloatGraph.load(file[0])
    path = folder / "text.onnx"
    FloatGraph(graph.model, {**graph.tensors, **tensors}).write(path)
    return path, file[1]


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_activation_that_is_not_finite_is_named(files: Path, tmp_path: Path, value: float) -> None:
    file, sites = opened(files, "text")
    name = f"{sites[0].linears[0]}.bias"
    bias = np.full_like(FloatGraph.load(file[0]).tensors[name], value)
    bad = changed(file, tmp_path, {name: bias})
    after = re.escape(sites[1].tensor)
    with pytest.raises(CalibrationError, match=f"{after} contains values that are not finite"):
        channel_stats(bad, sites, make_samples(), Silent())


def test_constant_activation_is_named(files: Path, tmp_path: Path) -> None:
    file, sites = opened(files, "text")
    graph = FloatGraph.load(file[0])
    norm = graph.producer(sites[0].tensor)
    assert norm is not None
    assert norm.op_type == "LayerNormalization"
    weight = np.zeros_like(graph.tensors[norm.input[1]])
    # What is left is the norm's bias: it differs by channel, and is the same for every token.
    same = changed(file, tmp_path, {norm.input[1]: weight})
    channel_stats(file, sites[:1], make_samples(), Silent())
    name = re.escape(sites[0].tensor)
    with pytest.raises(CalibrationError, match=f"^{name}: is constant over all 24 samples"):
        channel_stats(same, sites[:1], make_samples(), Silent())
