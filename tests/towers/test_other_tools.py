"""ONNX Runtime's own quantization and transformer optimizer can read the float32 graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from configs import CONFIGS
from numpy.typing import NDArray

from mwa_export.inputs.noise import random_pixels, random_texts
from mwa_export.inputs.preprocess import normalize
from mwa_export.model.synthetic import random_tensors
from mwa_export.runtimes.ort_session import session
from mwa_export.spec import TOWERS, ModelConfig, Tower
from mwa_export.towers.export import onnx_from_tower
from mwa_export.towers.extract import tower_from_model
from mwa_export.towers.merge import merge_tower
from mwa_export.towers.steps import STEPS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("elsewhere")]
KINDS = ("plain", "mwa", "norm_out")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's tools leave files in the working directory."""
    monkeypatch.chdir(tmp_path)


def _graph(config: ModelConfig, tower: Tower, out: Path) -> Path:
    plan, tensors = tower_from_model(config, random_tensors(config), tower)
    onnx_from_tower(*merge_tower(plan, tensors, STEPS), out)
    return out


def _feed(config: ModelConfig, tower: Tower) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(0)
    if tower == "vision":
        return {"image": normalize(random_pixels(rng, 2, config.backbone.image_size))}
    ids, mask = random_texts(rng, 2, 7, config.backbone.vocab_size)
    return {"token_ids": ids, "padding_mask": mask}


def _same(one: Path, other: Path, feed: dict[str, NDArray[np.generic]]) -> bool:
    first, second = (session(path).run(None, feed)[0] for path in (one, other))
    return bool(np.abs(first - second).max() <= 1e-5)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_prepares_a_graph_for_quantization(
    kind: str, tower: Tower, tmp_path: Path
) -> None:
    shape_inference = pytest.importorskip("onnxruntime.quantization.shape_inference")
    config = CONFIGS[kind]
    path = _graph(config, tower, tmp_path / "graph.onnx")
    prepared = tmp_path / "prepared.onnx"
    shape_inference.quant_pre_process(str(path), str(prepared))
    assert _same(path, prepared, _feed(config, tower))
    known = {value.name for value in onnx.load(prepared).graph.value_info}
    assert len(known) > 50  # symbolic shape inference came through


@pytest.mark.parametrize("model_type", ["vit", "bert", "clip"])
@pytest.mark.parametrize("tower", TOWERS)
def test_onnx_runtimes_transformer_optimizer_fuses_a_graph(
    tower: Tower, model_type: str, tmp_path: Path
) -> None:
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
    config = CONFIGS["mwa"]
    path = _graph(config, tower, tmp_path / "graph.onnx")
    width, heads = config.backbone.embed_dim, config.backbone.heads
    fused = optimizer.optimize_model(
        str(path), model_type=model_type, num_heads=heads, hidden_size=width, opt_level=0
    )
    fused.save_model_to_file(str(tmp_path / "fused.onnx"))
    assert fused.get_fused_operator_statistics()["SkipLayerNormalization"] > 0
    assert _same(path, tmp_path / "fused.onnx", _feed(config, tower))
