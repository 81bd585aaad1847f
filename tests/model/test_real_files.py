"""Files written by training and other tools are read without silent loss or needless refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused, run, save
from configs import CONFIGS, MWA
from safetensors.torch import save_file

from mwa_export.errors import BundleError, CheckpointError, VerificationError
from mwa_export.export.export import bundle_from_model
from mwa_export.files import new_folder
from mwa_export.model.checkpoint import ReadOptions, read_checkpoint
from mwa_export.model.load import ModelSource, load_model
from mwa_export.model.synthetic import random_tensors, training_args
from mwa_export.spec import tower_of

# --- silently wrong before ------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1e20, 1e38, 0.0, 1e-30])
def test_head_that_leaves_no_unit_vector_is_never_verified(factor: float, tmp_path: Path) -> None:
    tensors = random_tensors(MWA)
    tensors["vision_head.weight"] *= factor
    model = load_model(ModelSource(save(tmp_path / "a.pth", tensors)))
    with pytest.raises(VerificationError, match="not of unit length"):
        bundle_from_model(model, tmp_path / "b")


def test_shards_with_more_than_their_index_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="does not list for it, such as b"):
        read_checkpoint(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="contains both"):
        read_checkpoint(tmp_path)
    assert read_checkpoint(tmp_path / "model.safetensors").layout == "safetensors"


@pytest.mark.parametrize(
    "wrong",
    [
        {"encoder_layers": 3},
        {"encoder_embed_dim": 192},
        {"encoder_ffn_embed_dim": 100},
        {"vocab_size": 64010},
        {"patch_size": 16},
        {"ffn_num": 128},
    ],
)
def test_stored_size_that_the_tensors_do_not_have_is_refused(
    wrong: dict[str, int], tmp_path: Path
) -> None:
    args = training_args(MWA)
    vars(args).update(wrong)
    torch.save({"model": random_tensors(MWA), "args": args}, tmp_path / "a.pth")
    ((name, value),) = wrong.items()
    assert f"its args say {name}={value}, but its tensors" in refused("inspect", tmp_path / "a.pth")


def test_folder_that_appears_while_another_is_written_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write() -> None:
        with new_folder(out, marker="m") as folder:
            (folder / "m").touch()
            out.mkdir()
            (out / "precious").write_text("x")

    with pytest.raises(BundleError, match="exists"):
        write()
    assert (out / "precious").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "saved",
    [
        lambda state, args: {"state_dict": state, "config": vars(args)},
        lambda state, args: {"model": {"model": state, "args": args}},
        lambda state, args: {"state_dict": state, "args": {}, "hyper_parameters": vars(args)},
    ],
)
def test_options_are_found_where_training_leaves_them(
    saved: Callable[..., Any], tmp_path: Path
) -> None:
    args = training_args(MWA)
    torch.save(saved(random_tensors(MWA), args), tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").args == vars(args)


# --- promised before, and not kept ----------------------------------------------------------------


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_adapter_of_one_tower_can_be_split_and_rejoined(tower: str, tmp_path: Path) -> None:
    def of_tower(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: t for name, t in tensors.items() if tower_of(name) in (None, tower)}

    trained = of_tower(random_tensors(MWA))
    plain = of_tower(random_tensors(CONFIGS["plain"], 1))
    base = save(tmp_path / "base.pth", {n: trained.get(n, t) for n, t in plain.items()})
    whole, out = save(tmp_path / "whole.pth", trained), tmp_path / "a.safetensors"
    assert run("split", whole, "--base", base, "-o", out).status == 0
    outcome = run("onnx", "--base", base, "--adapter", out, "-o", tmp_path / "b")
    assert outcome.status == 0, outcome.stderr
    assert "in the same embedding space" not in outcome.stderr


class DictSubclass(dict[str, Any]):
    """Dict of a training framework's own class."""


@pytest.mark.parametrize("protocol", range(1, 6))
def test_subclass_of_dict_is_a_dict_in_every_protocol(protocol: int, tmp_path: Path) -> None:
    saved = {
        "model": DictSubclass({"a.weight": torch.ones(2)}),
        "args": DictSubclass(num_max_bpe_tokens=32),
    }
    torch.save(
        saved, tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=False
    )
    found = read_checkpoint(tmp_path / "a.pth")
    assert torch.equal(found.tensors["a.weight"], torch.ones(2))
    assert found.args == {"num_max_bpe_tokens": 32}


ODD_TENSORS = {
    "complex": torch.ones(2, dtype=torch.complex64),
    "float8": torch.ones(2).to(torch.float8_e4m3fn),
    "sparse": torch.ones(2, 2).to_sparse(),
    "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
    "meta": torch.ones(2, device="meta"),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_odd_tensor_beside_the_weights_is_named_and_can_be_ignored(
    kind: str, zipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.pth"
    saved = {"model": {"a.weight": torch.ones(2), "criterion.queue": ODD_TENSORS[kind]}}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"criterion\.queue is "):
        read_checkpoint(path)
    found = read_checkpoint(path, ReadOptions(ignore=("criterion.*",)))
    assert list(found.tensors) == ["a.weight"]


def test_tower_is_exported_although_a_layer_of_the_other_is_missing(tmp_path: Path) -> None:
    tensors = random_tensors(MWA)
    gone = [name for name in tensors if ".layers.1." in name and ".B." in name]
    kept = {name: tensor for name, tensor in tensors.items() if name not in gone}
    path = save(tmp_path / "a.pth", kept)
    assert "--towers vision" in refused("onnx", path, "-o", tmp_path / "b")
    assert run("onnx", path, "-o", tmp_path / "b", "--towers", "vision").status == 0


def test_shadow_of_a_moving_average_is_found(tmp_path: Path) -> None:
    saved = {"model": {"a": torch.ones(1)}, "ema": {"shadow": {"a": torch.zeros(1)}, "decay": 0.9}}
    torch.save(saved, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth", ReadOptions(ema=True))
    assert np.array_equal(found.tensors["a"], [0])


# --- names and disks ------------------------------------------------------------------------------


def test_long_name_is_one_error(tmp_path: Path, checkpoint: Path) -> None:
    assert "name too long" in refused("inspect", "x" * 300).lower()
    out = tmp_path / ("x" * 300 + ".safetensors")
    assert "name too long" in refused("split", checkpoint, "--base", checkpoint, "-o", out).lower()


def test_output_whose_name_is_no_text_is_refused_before_the_work(
    checkpoint: Path, tmp_path: Path
) -> None:
    message = refused("onnx", checkpoint, "-o", f"{tmp_path}/b\udcff")
    assert "is not valid UTF-8" in message
    assert "is not the name of a new folder" in refused(
        "onnx", checkpoint, "-o", f"{tmp_path}/none/.."
    )


# --- options that were lost -----------------------------------------------------------------------


def _hub_folder(folder: Path, config: dict[str, Any]) -> Path:
    save_file(random_tensors(MWA), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**vars(training_args(MWA)), **config}))
    return folder


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_config_beside_the_weights_counts_however_they_are_named(name: str, tmp_path: Path) -> None:
    folder = _hub_folder(tmp_path, {"encoder_attention_heads": 4, "num_max_bpe_tokens": 20})
    backbone = load_model(ModelSource(folder / name)).config.backbone
    assert (backbone.heads, backbone.max_text_length) == (4, 20)


def test_heads_of_a_base_are_those_of_the_pair(tmp_path: Path) -> None:
    args = training_args(CONFIGS["plain"])
    args.encoder_attention_heads = 4
    torch.save({"model": random_tensors(CONFIGS["plain"]), "args": args}, tmp_path / "base.pth")
    added = {n: t for n, t in random_tensors(MWA).items() if "mlp_" in n or "enhancemlp" in n}
    args = training_args(MWA)
    del args.encoder_attention_heads
    torch.save({"model": added, "args": args}, tmp_path / "a.pth")
    model = load_model(ModelSource(base=tmp_path / "base.pth", adapter=tmp_path / "a.pth"))
    assert model.config.backbone.heads == 4


def test_adapter_of_one_tower_on_a_whole_base_makes_that_tower(tmp_path: Path) -> None:
    trained = random_tensors(MWA)
    vision = {n: t for n, t in trained.items() if tower_of(n) in (None, "vision")}
    plain = random_tensors(CONFIGS["plain"], 1)
    base = save(tmp_path / "base.pth", {n: trained.get(n, t) for n, t in plain.items()})
    out = tmp_path / "a.safetensors"
    assert run("split", save(tmp_path / "v.pth", vision), "--base", base, "-o", out).status == 0
    assert load_model(ModelSource(base=base, adapter=out)).towers == ("vision",)


def test_gathered_weights_count_beside_those_of_each_rank(tmp_path: Path) -> None:
    _hub_folder(tmp_path, {})
    (tmp_path / "global_step5").mkdir()
    (tmp_path / "global_step5" / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"x")
    assert read_checkpoint(tmp_path).layout == "safetensors (Hugging Face)"


class DictConfig:
    """Stand-in with the layout of an OmegaConf configuration."""

    def __init__(self, **values: Any) -> None:
        self._metadata = None
        self._content = {name: _Node(value) for name, value in values.items()}


class _Node:
    def __init__(self, value: Any) -> None:
        self._val = value


@pytest.mark.parametrize("key", ["args", "hyper_parameters", "cfg", "opt"])
def test_options_of_a_configuration_library_are_read(key: str, tmp_path: Path) -> None:
    saved = {"model": {"a.weight": torch.ones(1)}, key: DictConfig(num_max_bpe_tokens=20)}
    torch.save(saved, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").args["num_max_bpe_tokens"] == 20


def test_options_written_otherwise_are_not_refused(tmp_path: Path) -> None:
    args = training_args(MWA)
    for name, value in {
        "in_chans": "3",
        "layernorm_eps": "1e-05",
        "vocab_size": np.int64(5),
        "patch_size": (8, 8),
        "max_rel_pos": 128,
        "encoder_layers": -1,
    }.items():
        setattr(args, name, value)
    torch.save({"model": random_tensors(MWA), "args": args}, tmp_path / "a.pth")
    assert load_model(ModelSource(tmp_path / "a.pth")).config == MWA


def test_tensors_of_training_alone_may_be_odd(tmp_path: Path) -> None:
    tensors = {**random_tensors(MWA), "n_averaged": torch.tensor(3)}
    tensors["beit3.vision_embed.mask_token"] = torch.empty(0)
    tensors["logit_scale"] = torch.ones(1).expand(300)
    assert load_model(ModelSource(save(tmp_path / "a.pth", tensors))).config == MWA


@pytest.mark.parametrize("field", ["embed_dim", "patch_size", "layers", "vocab_size"])
def test_manifest_with_an_impossible_size_is_one_error(field: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", random_tensors(MWA))
    assert run("onnx", path, "-o", tmp_path / "b").status == 0
    manifest = tmp_path / "b" / "manifest.json"
    data = json.loads(manifest.read_text())
    data["model"]["backbone"][field] = -1
    manifest.write_text(json.dumps(data))
    assert "is not a manifest" in refused("inspect", tmp_path / "b")
