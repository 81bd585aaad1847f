"""The layer at fault is found for every kind of model; graphs of other models are refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from commands import save
from configs import CONFIGS, MWA
from parity_files import export, quantized

from mwa_export.data.test_set import RetrievalData
from mwa_export.errors import BundleError
from mwa_export.graphs.build import GraphBuilder
from mwa_export.model.synthetic import random_tensors
from mwa_export.parity.run import RunOptions, compare_models

pytestmark = pytest.mark.slow


def test_worst_layer_is_where_the_weights_differ(
    files: Path, data: RetrievalData, tmp_path: Path
) -> None:
    tensors = random_tensors(MWA)
    name = "beit3.encoder.layers.1.ffn.A.fc2.weight"
    tensors[name] = tensors[name] + 0.05 * torch.randn_like(tensors[name])
    damaged = save(tmp_path / "damaged.pth", tensors)
    export(damaged, tmp_path / "damaged", files / "tokenizer-0.spm")
    run = RunOptions(layers=True, any_space=True)
    result = compare_models(files / "checkpoint.pth", tmp_path / "damaged", data, run=run).result
    snr = {(layer.tower, layer.layer): layer.snr_db for layer in result.layers}
    assert [layer.layer for layer in result.layers] == ["block 0", "block 1", "embedding"] * 2
    assert all((value or 999) > 90 for (tower, _), value in snr.items() if tower == "text")
    assert (snr["vision", "block 0"] or 999) > 90
    assert (snr["vision", "block 1"] or 999) < 40
    assert (snr["vision", "embedding"] or 999) < 40


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_of_every_kind_of_model_agree_with_the_reference(
    files: Path, data: RetrievalData, tmp_path: Path, name: str
) -> None:
    path = save(tmp_path / "checkpoint.pth", random_tensors(CONFIGS[name]), CONFIGS[name])
    export(path, tmp_path / "bundle", files / "tokenizer-0.spm")
    run = RunOptions(layers=True)
    result = compare_models(path, tmp_path / "bundle", data, run=run).result
    assert len(result.layers) == 6
    assert min(layer.snr_db or 999 for layer in result.layers) > 90


def test_layers_of_equal_graphs_have_no_noise(files: Path, data: RetrievalData) -> None:
    run = RunOptions(layers=True)
    result = compare_models(files / "bundle", files / "bundle", data, run=run).result
    assert {layer.snr_db for layer in result.layers} == {None}


def test_weights_in_a_data_file_can_be_probed(
    files: Path, data: RetrievalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = GraphBuilder.write
    monkeypatch.setattr(
        GraphBuilder,
        "write",
        lambda self, *args, **more: written(self, *args, **{**more, "external_bytes": 10_000}),
    )
    export(files / "checkpoint.pth", tmp_path / "bundle", files / "tokenizer-0.spm")
    assert (tmp_path / "bundle" / "vision.onnx.data").is_file()
    run = RunOptions(layers=True)
    result = compare_models(files / "bundle", tmp_path / "bundle", data, run=run).result
    assert {layer.snr_db for layer in result.layers} == {None}


def test_graph_with_renamed_values_has_no_layers(
    files: Path, data: RetrievalData, tmp_path: Path
) -> None:
    graph = quantized(files / "bundle", "vision", tmp_path / "vision.int8.onnx")
    model = onnx.load(graph)
    for node in model.graph.node:
        node.input[:] = [n.replace("blocks", "layer") for n in node.input]
        node.output[:] = [n.replace("blocks", "layer") for n in node.output]
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("blocks", "layer")
    onnx.save(model, graph)
    run = RunOptions(graphs=(str(graph),), layers=True)
    with pytest.raises(BundleError, match=r"has no value named blocks\.0.*`layers`"):
        compare_models(files / "bundle", files / "bundle", data, run=run)
