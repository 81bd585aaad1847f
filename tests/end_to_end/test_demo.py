"""The shipped model performs as the README says, and damage to it is visible."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import refused

from mwa_export.bundle.bundle import Bundle
from mwa_export.demo.run import (
    HELD_BACK,
    HELD_BACK_SEED,
    SAMPLES,
    SAMPLES_SEED,
    SEED,
    STAGES,
    DemoResult,
    assets,
    quantize_demo,
    run_demo,
)
from mwa_export.demo.scenes import picture_from_seed
from mwa_export.encoder.open import open_bundle
from mwa_export.inputs.tokenizer import Tokenizer
from mwa_export.model.checkpoint import read_checkpoint
from mwa_export.model.load import ModelSource, load_model

pytestmark = pytest.mark.slow

PICTURES = 120


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    out = tmp_path_factory.mktemp("work") / "demo"
    stages: list[str] = []
    found = run_demo(out, quantize_demo, pictures=PICTURES, on_stage=stages.append)
    assert stages == list(STAGES), "each stage once, in order"
    return found


def test_shipped_checkpoint_has_the_authors_layout_and_is_small() -> None:
    checkpoint, spm = assets()
    file = read_checkpoint(checkpoint)
    model = load_model(ModelSource(checkpoint))
    assert checkpoint.stat().st_size <= 8_000_000
    assert {str(tensor.dtype) for tensor in file.tensors.values()} == {"torch.float16"}
    assert model.config.enhancer
    assert model.config.adapter is not None
    assert model.config.adapter.mode == "both"
    assert file.args["ffn_adapter_scalar"] == str(model.config.adapter.scale)
    Tokenizer.from_file(spm).check_vocabulary(model.config.backbone.vocab_size)


def test_exported_towers_have_the_references_recall(result: DemoResult) -> None:
    for direction in result.parity.directions:
        for change in direction.recalls:
            assert change.float32 is not None
            assert abs(change.float32 - change.reference) <= 1.0  # of 120 pictures, one is 0.8
    graph = next(stage for stage in result.parity.stages if stage.name == "graph")
    assert min(graph.vision_cosine or 1, graph.text_cosine or 1) > 1 - 1e-9


def test_int8_is_shown_beside_float32_and_keeps_recall(result: DemoResult) -> None:
    assert result.parity.candidate.precision == "int8"
    assert min(cosines.mean for cosines in result.parity.cosines) > 0.9995
    assert max(cosines.mean for cosines in result.parity.cosines) < 1 - 1e-6  # it is not float32
    for direction in result.parity.directions:
        for change in direction.recalls:
            assert abs(change.difference) <= 4.0  # of 120 pictures, chance moves several
    assert min(layer.snr_db or 999 for layer in result.parity.layers) > 20
    page = result.report.read_text(encoding="utf-8")
    assert "float32" in page
    assert "int8" in page


def test_int8_was_calibrated_and_judged_on_pictures_outside_the_test_set(
    result: DemoResult,
) -> None:
    assert len({SEED, SAMPLES_SEED, HELD_BACK_SEED}) == 3
    quantization = Bundle.open(result.folder / "bundle").manifest.quantization
    assert quantization is not None
    assert quantization.data["pictures"] == SAMPLES
    assert quantization.data["name"].endswith(f"seed {SAMPLES_SEED}")
    assert quantization.held_back is not None
    assert quantization.held_back.pictures == HELD_BACK
    shown = {path.read_bytes() for path in (result.folder / "data" / "images").glob("*.jpg")}
    others = ((SAMPLES_SEED, SAMPLES), (HELD_BACK_SEED, HELD_BACK))
    for seed, count in others:
        drawn = {picture_from_seed("target", seed, i).jpeg for i in range(count)}
        assert not drawn & shown


def test_leaving_the_adapters_out_shows(result: DemoResult) -> None:
    reference = result.parity.direction("tr").recalls[0].reference
    assert reference >= 50
    assert reference - result.without_adapters.tr[1] >= 20


def test_demo_leaves_data_bundle_and_report(result: DemoResult) -> None:
    names = sorted(path.name for path in result.folder.iterdir())
    assert names == ["bundle", "data", "parity"]
    assert len(list((result.folder / "data" / "images").glob("*.jpg"))) == PICTURES
    reports = sorted(path.name for path in (result.folder / "parity").iterdir())
    assert reports == ["junit.xml", "report.html", "report.json", "report.md"]
    assert result.report.is_file()
    figures = json.loads((result.folder / "parity" / "report.json").read_text())
    assert figures["candidate"]["source"] == str(result.folder / "bundle")
    assert ".demo." not in json.dumps(figures)  # the temporary folder's name


def test_same_pictures_same_embeddings(result: DemoResult) -> None:
    encoder = open_bundle(result.folder / "bundle")
    paths = sorted((result.folder / "data" / "images").glob("*.jpg"))[:6]
    together = encoder.embed_images(paths, batch=6)
    alone = encoder.embed_images(paths, batch=1)
    assert np.abs(together - alone).max() <= 2e-6


def test_demo_refuses_an_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    assert "exists" in refused("demo", "-o", tmp_path / "demo")
