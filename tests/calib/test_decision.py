"""Recall loss by INT8 is judged in the right direction, end to end on the shipped model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import files_below

from mwa_export.bundle.bundle import Bundle
from mwa_export.calib.calibration import Calibration
from mwa_export.calib.quantize import Quantized, QuantizeOptions, quantize
from mwa_export.data.test_set import RetrievalData
from mwa_export.data.test_sets import read_data
from mwa_export.demo.run import KEPT, assets
from mwa_export.demo.scenes import write_scenes
from mwa_export.errors import ParityError
from mwa_export.export.export import ExportOptions, bundle_from_model
from mwa_export.model.load import ModelSource, load_model

pytestmark = pytest.mark.slow

PICTURES = 320
USUAL = QuantizeOptions(
    samples=32, keep=KEPT, search=False, points=0, dialects=("onnxruntime",), threads=1
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint, spm = assets()
    folder = tmp_path_factory.mktemp("demo") / "bundle"
    bundle_from_model(load_model(ModelSource(checkpoint)), folder, ExportOptions(tokenizer=spm))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> RetrievalData:
    folder = tmp_path_factory.mktemp("pictures")
    return read_data(write_scenes(folder / "data", family="target", count=PICTURES, seed=31))


@pytest.fixture(scope="module")
def usual(
    bundle: Path, pictures: RetrievalData, tmp_path_factory: pytest.TempPathFactory
) -> Quantized:
    out = tmp_path_factory.mktemp("usual") / "bundle"
    return quantize(bundle, pictures, options=replace(USUAL, max_recall_drop=4.0), out=out)


def judged(
    bundle: Path,
    calibration: Calibration,
    held_back: RetrievalData,
    folder: Path,
    options: QuantizeOptions,
) -> Quantized:
    """Quantize with an earlier calibration, and decide on these pictures."""
    folder.mkdir()
    calibration.save(folder)
    file, out = folder / "calibration.json", folder / "bundle"
    return quantize(bundle, None, held_back=held_back, calibration=file, options=options, out=out)


def clipped(calibration: Calibration, share: float) -> Calibration:
    """Ranges that cut off all but a share of the values: a fault of known kind."""
    sites = tuple(replace(site, amax=share * site.amax) for site in calibration.sites)
    return replace(calibration, sites=sites)


def test_usual_ranges_pass_a_budget_that_the_pictures_can_decide(usual: Quantized) -> None:
    assert usual.decision is not None
    assert usual.decision.verdict == "passes", usual.decision
    assert usual.warnings == ()
    manifest = Bundle.open(usual.bundle.path).manifest
    assert manifest.quantization is not None
    (int8,) = (entry for entry in manifest.quantization.measured if entry.precision == "int8")
    assert int8.decision == usual.decision


def test_budget_below_what_the_pictures_can_show_is_undecided_and_said_first(
    bundle: Path, usual: Quantized, pictures: RetrievalData, tmp_path: Path
) -> None:
    options = replace(USUAL, max_recall_drop=0.5)
    done = judged(bundle, usual.calibration, pictures, tmp_path / "out", options)
    assert done.decision is not None
    assert done.decision.verdict == "undecided"
    assert "320 held-back images cannot show" in done.warnings[0]


def test_planted_loss_fails(
    bundle: Path, usual: Quantized, pictures: RetrievalData, tmp_path: Path
) -> None:
    broken, options = clipped(usual.calibration, 0.05), replace(USUAL, max_recall_drop=4.0)
    done = judged(bundle, broken, pictures, tmp_path / "out", options)
    assert done.decision is not None
    assert done.decision.verdict == "fails", done.decision


def test_search_finds_no_way_round_a_loss_in_the_only_layer(
    bundle: Path, usual: Quantized, pictures: RetrievalData, tmp_path: Path
) -> None:
    kept = ("text:*", "*fc*", "*.out", "*adapter*", "*enhancer*", "vision:blocks.[123].*")
    options = replace(USUAL, max_recall_drop=4.0, keep=kept, search=True)
    before = files_below(bundle)
    with pytest.raises(ParityError, match="The bundle is unchanged"):
        judged(bundle, clipped(usual.calibration, 0.02), pictures, tmp_path / "out", options)
    assert files_below(bundle) == before
    assert not (tmp_path / "out" / "bundle").exists()


@pytest.mark.parametrize("fault", ["shuffled", "one caption for all"])
def test_data_that_cannot_show_a_loss_are_no_evidence(
    bundle: Path, usual: Quantized, pictures: RetrievalData, tmp_path: Path, fault: str
) -> None:
    if fault == "shuffled":
        owners = np.random.default_rng(0).permutation(pictures.caption_image_ids)
        wrong, word = replace(pictures, caption_image_ids=owners), "near chance"
    else:
        captions = ("a picture",) * len(pictures.captions)
        wrong, word = replace(pictures, captions=captions), "another image"
    options = replace(USUAL, max_recall_drop=50.0)
    done = judged(bundle, usual.calibration, wrong, tmp_path / "out", options)
    assert done.decision is not None
    assert done.decision.verdict == "undecided"
    assert word in (done.decision.objection or "")
