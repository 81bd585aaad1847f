"""Exported graphs are correct for every shape, clean and portable."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cases import ALL
from configs import CONFIGS
from exported import difference, write_graph
from onnx import numpy_helper

from mwa_export.export.verify import TOLERANCE
from mwa_export.inputs.noise import random_pixels, random_texts
from mwa_export.inputs.preprocess import normalize
from mwa_export.model.load import Model
from mwa_export.model.synthetic import random_tensors
from mwa_export.runtimes.ort_session import session
from mwa_export.runtimes.pytorch import TorchBackend
from mwa_export.spec import ImageInput, ModelConfig, Tower
from mwa_export.towers.extract import tower_from_model
from mwa_export.towers.merge import merge_tower
from mwa_export.towers.steps import STEPS


def random_model(config: ModelConfig) -> Model:
    tensors = random_tensors(config)
    unused = ("logit_scale", "beit3.vision_embed.mask_token")
    return Model(config, {k: v for k, v in tensors.items() if k not in unused}, (), ())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [tuple(STEPS), ()], ids=["merged", "unmerged"])
def test_exported_towers_compute_what_is_right(
    name: str, steps: tuple[str, ...], tmp_path: Path
) -> None:
    assert difference(ALL[name](), tmp_path, steps=steps) <= TOLERANCE / 10


@pytest.mark.slow
@pytest.mark.parametrize("image_input", ["float32", "uint8"])
def test_vision_graph_serves_every_batch_size(
    image_input: ImageInput, config: ModelConfig, tmp_path: Path
) -> None:
    model = random_model(config)
    runner = session(write_graph(model, "vision", tmp_path / "v.onnx", image_input=image_input))
    reference, rng = TorchBackend(model), np.random.default_rng(0)
    for batch in (1, 2, 7, 33):
        pixels = random_pixels(rng, batch, config.backbone.image_size)
        image = pixels if image_input == "uint8" else normalize(pixels)
        found = runner.run(["embedding"], {"image": image})[0]
        assert np.abs(found - reference.embed_images(pixels)).max() <= TOLERANCE
        assert np.abs(np.linalg.norm(found, axis=1) - 1).max() <= 1e-6


def test_text_graph_serves_every_batch_size_and_length(tmp_path: Path) -> None:
    backbone = CONFIGS["mwa"].backbone
    config = ModelConfig(
        type(backbone)(
            **{**{k: getattr(backbone, k) for k in backbone.__slots__}, "text_positions": 1022}
        ),
        CONFIGS["mwa"].adapter,
        True,
    )
    model = random_model(config)
    runner = session(write_graph(model, "text", tmp_path / "t.onnx"))
    reference, rng = TorchBackend(model), np.random.default_rng(0)
    for batch in (1, 2, 7, 33):
        for length in (3, 16, 64):
            ids, mask = random_texts(rng, batch, length, config.backbone.vocab_size)
            found = runner.run(["embedding"], {"token_ids": ids, "padding_mask": mask})[0]
            assert np.abs(found - reference.embed_texts(ids, mask)).max() <= TOLERANCE


def test_padding_can_be_trimmed_exactly(tmp_path: Path) -> None:
    runner = session(write_graph(random_model(CONFIGS["mwa"]), "text", tmp_path / "t.onnx"))
    ids, mask = random_texts(np.random.default_rng(0), 1, 9, 90)
    wide_ids, wide_mask = (
        np.pad(ids, ((0, 0), (0, 40)), constant_values=1),
        np.pad(mask, ((0, 0), (0, 40)), constant_values=1),
    )
    short = runner.run(None, {"token_ids": ids, "padding_mask": mask})[0]
    wide = runner.run(None, {"token_ids": wide_ids, "padding_mask": wide_mask})[0]
    assert np.abs(short - wide).max() <= 2e-7


@pytest.mark.parametrize("steps", [tuple(STEPS), ()], ids=["merged", "unmerged"])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_graph_is_clean(
    tower: Tower, steps: tuple[str, ...], config: ModelConfig, tmp_path: Path
) -> None:
    model = onnx.load(write_graph(random_model(config), tower, tmp_path / "g.onnx", steps=steps))
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    nodes, constants = list(model.graph.node), {i.name for i in model.graph.initializer}
    read = {value for node in nodes for value in node.input} | {"embedding"}
    assert not [node.name for node in nodes if not read & set(node.output)], "dead nodes"
    assert not constants - read, "dead weights"
    assert not [n.name for n in nodes if n.input and set(n.input) <= constants], "foldable nodes"
    assert not [n.name for n in nodes if n.op_type in ("Identity", "Constant", "Dropout")]
    keys = Counter(
        (n.op_type, tuple(n.input), tuple(a.SerializeToString() for a in n.attribute))
        for n in nodes
    )
    assert max(keys.values()) == 1, "duplicate nodes"
    small = Counter(
        (i.data_type, tuple(i.dims), i.raw_data)
        for i in model.graph.initializer
        if i.name.startswith("constant.")
    )
    assert max(small.values()) == 1, "duplicate constants"
    assert len({node.name for node in nodes}) == len(nodes)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_layer_norms_are_kept_whole(tower: Tower, tmp_path: Path) -> None:
    config = CONFIGS["mwa"]
    model = onnx.load(write_graph(random_model(config), tower, tmp_path / "g.onnx"))
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops["LayerNormalization"] == 5 * config.backbone.layers + 1  # 4 of BEiT-3, 1 enhancer
    assert not ops["ReduceMean"]
    assert {o.domain: o.version for o in model.opset_import} == {"": 17}


def test_inputs_and_output_are_named_as_documented(tmp_path: Path) -> None:
    model = random_model(CONFIGS["plain"])
    wanted: dict[tuple[Tower, ImageInput], list[str]] = {
        ("vision", "float32"): ["image float ['batch', 3, 32, 32]"],
        ("vision", "uint8"): ["image uint8 ['batch', 32, 32, 3]"],
        ("text", "float32"): [
            "token_ids int64 ['batch', 'length']",
            "padding_mask int64 ['batch', 'length']",
        ],
    }
    for (tower, image_input), inputs in wanted.items():
        path = write_graph(model, tower, tmp_path / "g.onnx", image_input=image_input)
        graph = onnx.load(path).graph
        assert [_describe(value) for value in graph.input] == inputs
        assert [_describe(value) for value in graph.output] == ["embedding float ['batch', 128]"]


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    return f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} {dims}"


def test_external_data_is_one_file_with_a_relative_name(tmp_path: Path) -> None:
    model = random_model(CONFIGS["mwa"])
    inline = session(write_graph(model, "text", tmp_path / "inline.onnx"))
    folder = tmp_path / "before"
    folder.mkdir()
    path = write_graph(model, "text", folder / "t.onnx", external_bytes=0)
    assert sorted(file.name for file in folder.iterdir()) == ["t.onnx", "t.onnx.data"]
    proto = onnx.load(path, load_external_data=False)
    locations = {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert locations == {"t.onnx.data"}
    moved = folder.rename(tmp_path / "after")
    ids, mask = random_texts(np.random.default_rng(0), 2, 8, 90)
    feed = {"token_ids": ids, "padding_mask": mask}
    found = session(moved / "t.onnx").run(None, feed)[0]
    assert np.array_equal(found, inline.run(None, feed)[0])


def test_weights_in_the_file_are_the_merged_weights(tmp_path: Path) -> None:
    model = random_model(CONFIGS["norm_in_learned"])
    plan, raw = tower_from_model(model.config, model.tensors, "text")
    _, merged = merge_tower(plan, raw, STEPS)
    stored = {
        i.name: numpy_helper.to_array(i)
        for i in onnx.load(write_graph(model, "text", tmp_path / "g.onnx")).graph.initializer
    }
    name = "blocks.1.fc2_up.weight"
    assert torch.equal(torch.from_numpy(stored[name].copy()).T, merged[name])
