"""Outliers in the norms break naive INT8, but not smoothed INT8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from calib_files import Array, cosine, embeddings, make_samples, names

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.update import changed_bundle
from mwa_export.calib.calibrate import CalibrationOptions, calibrate
from mwa_export.calib.calibration import Calibration
from mwa_export.calib.dialects import DIALECTS
from mwa_export.calib.sites import NormFold, find_sites
from mwa_export.calib.smoothing import apply_smoothing
from mwa_export.calib.variants import Variants
from mwa_export.graphs.edit import FloatGraph
from mwa_export.runtimes.onnxrt import OnnxBackend
from mwa_export.spec import TOWERS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(files: Path) -> Bundle:
    return Bundle.open(files / "bundle")


def embedded(bundle: Bundle, found: Calibration | None, folder: Path) -> list[Array]:
    """Both towers in INT8; in float32 without a calibration."""
    graphs = {}
    if found is not None:
        variants = Variants(bundle, found)
        for tower in TOWERS:
            chosen = names(variants.sites(tower))
            graphs[tower] = variants.write(tower, chosen, DIALECTS["onnxruntime"], folder)
    return embeddings(OnnxBackend(bundle, graphs=graphs, check=False))


def with_outliers(bundle: Bundle, out: Path) -> Bundle:
    """1 % of the normalized channels 30 times as large, and the weights behind divided."""
    rng = np.random.default_rng(0)
    with changed_bundle(bundle, out) as change:
        for tower in TOWERS:
            path = bundle.graph(tower)[0]
            graph = FloatGraph.load(path)
            sites, divide = {site.name: site for site in find_sites(graph)}, {}
            for site in sites.values():
                normed = sum(f.width for f in site.folds if isinstance(f, NormFold))
                if normed:
                    scale = np.ones(site.width, np.float32)
                    scale[rng.permutation(normed)[: max(1, round(0.01 * normed))]] = 1 / 30
                    divide[site.name] = scale
            apply_smoothing(graph, sites, divide).write(change.folder / path.name)
        change.write(bundle.manifest)
    return Bundle.open(out)


def test_outliers_break_naive_int8_and_not_the_smoothed_one(bundle: Bundle, tmp_path: Path) -> None:
    outliers = with_outliers(bundle, tmp_path / "outliers")
    exact = embedded(bundle, None, tmp_path)
    same = embedded(outliers, None, tmp_path)
    assert max(float(np.abs(a - b).max()) for a, b in zip(exact, same, strict=True)) <= 2e-6

    def quality(source: Bundle, options: CalibrationOptions) -> float:
        found = calibrate(source, make_samples(), options)
        return min(map(cosine, exact, embedded(source, found, tmp_path)))

    smooth, naive = CalibrationOptions(), CalibrationOptions("minmax", smooth=False)
    before, after = quality(bundle, smooth), quality(outliers, smooth)
    broken = quality(outliers, naive)
    assert abs(after - before) <= 0.0005
    assert 1 - broken >= 10 * (1 - after), (before, after, broken)
