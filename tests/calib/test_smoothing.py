"""Smoothing moves outliers into the weights: the function stays, and the INT8 error falls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calib_files import embed, float_graph
from configs import CONFIGS
from numpy.typing import NDArray

from mwa_export.calib.collect import ChannelStats
from mwa_export.calib.sites import find_sites
from mwa_export.calib.smoothing import (
    apply_smoothing,
    choose_smoothing,
    joint_weight,
    smoothing_scales,
)
from mwa_export.spec import Tower


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_function_is_unchanged_whatever_the_scales(name: str, tower: Tower, tmp_path: Path) -> None:
    graph = float_graph(name, tower, tmp_path)
    sites = {site.name: site for site in find_sites(graph)}
    rng = np.random.default_rng(0)
    divide = {
        key: np.exp(rng.uniform(-3, 3, site.width)).astype(np.float32)
        for key, site in sites.items()
    }
    before = {key: value.copy() for key, value in graph.tensors.items()}
    exact = embed(graph, tower, tmp_path)
    smoothed = apply_smoothing(graph, sites, divide)
    assert np.abs(embed(smoothed, tower, tmp_path) - exact).max() <= 2e-6
    assert all(np.array_equal(graph.tensors[key], value) for key, value in before.items())
    added = len(smoothed.nodes) - len(graph.nodes)
    assert added == sum(not site.folds for site in sites.values())
    for site in sites.values():
        assert not np.allclose(joint_weight(smoothed, site), joint_weight(graph, site))


def stats_of(values: NDArray[Any]) -> ChannelStats:
    stats = ChannelStats(values.shape[1])
    stats.add(values.astype(np.float32), np.random.default_rng(0).random(len(values)))
    return stats


def test_outliers_are_smoothed_away() -> None:
    rng = np.random.default_rng(0)
    values, weight = rng.normal(size=(400, 64)), rng.normal(size=(64, 32)).astype(np.float32)
    values[:, 5] *= 30
    weight[5] /= 30
    found = choose_smoothing(weight, stats_of(values), foldable=True)
    assert found.alpha is not None
    assert found.error < 0.05 * found.plain_error
    assert found.divide is not None
    assert found.divide[5] == found.divide.max()
    small = np.delete(found.divide, 5)
    assert found.divide[5] > 8 * np.median(small)


def test_site_that_nothing_absorbs_is_smoothed_only_where_it_is_worth_a_node() -> None:
    rng = np.random.default_rng(0)
    values, weight = rng.normal(size=(400, 64)), rng.normal(size=(64, 32)).astype(np.float32)
    even = choose_smoothing(weight, stats_of(values), foldable=False)
    assert even.divide is None
    assert even.alpha is None
    assert even.error == even.plain_error
    values[:, 5] *= 100
    assert choose_smoothing(weight, stats_of(values), foldable=False).divide is not None


def test_channels_that_are_zero_or_unread_are_left_alone() -> None:
    scales = smoothing_scales(
        np.asarray([0, 4, 1, 2], np.float32), np.asarray([1, 1, 0, 2], np.float32), 0.5
    )
    assert scales[[0, 2]].tolist() == [1, 1]
    assert scales[1] / scales[3] == pytest.approx(2.0)
    assert np.log(scales[[1, 3]]).sum() == pytest.approx(0, abs=1e-6)
