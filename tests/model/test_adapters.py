"""A base and an adapter file give the trained model: nothing is lost, and misfits are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import files_below, refused, run, save
from configs import BACKBONE, CONFIGS, MWA
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mwa_export.errors import AdapterError, BundleError, CheckpointError, UsageError
from mwa_export.model.adapters import split
from mwa_export.model.checkpoint import ReadOptions, read_checkpoint
from mwa_export.model.load import Model, ModelSource, load_model
from mwa_export.model.options import ModelOptions
from mwa_export.model.space import space_id
from mwa_export.model.state_dict import expected_shapes
from mwa_export.model.synthetic import random_tensors, training_args
from mwa_export.spec import HEAD_OF_TOWER, ModelConfig

Tensors = dict[str, Tensor]
HEADS = ("vision_head.weight", "language_head.weight")


def _save(path: Path, tensors: Tensors, config: ModelConfig | None = None) -> Path:
    data: dict[str, Any] = {"model": tensors}
    if config is not None:
        data["args"] = training_args(config)
    torch.save(data, path)
    return path


def _base_of(tensors: Tensors) -> Tensors:
    """What training started from: a pretrained backbone with the head of its pretraining task."""
    backbone = expected_shapes(CONFIGS["plain"])
    base = {name: t for name, t in tensors.items() if name in backbone and name not in HEADS}
    return {**base, "mlm_head.weight": torch.randn(90, 128), "mlm_head.bias": torch.zeros(90)}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The base of every model that ``trained`` makes."""
    return _save(tmp_path / "base.pth", _base_of(_tensors(MWA)))


def _tensors(config: ModelConfig) -> Tensors:
    """Models of all kinds on one backbone, with values that halves can hold."""
    shared = random_tensors(CONFIGS["plain"], 0)
    return {n: shared.get(n, t).half().float() for n, t in random_tensors(config, 1).items()}


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    """Save a model that was trained on ``base``."""

    def save(config: ModelConfig = MWA) -> Path:
        return _save(tmp_path / "trained.pth", _tensors(config), config)

    return save


def _split(trained: Path, base: Path) -> Path:
    out = trained.with_name("adapter.safetensors")
    model = load_model(ModelSource(trained))
    split(model.tensors, model.config, read_checkpoint(base), out)
    return out


def _same(one: Model, other: Model) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(one.tensors[name].float(), other.tensors[name].float()) for name in one.tensors
    )


def _space(model: Model) -> str:
    return space_id(model.config, model.tensors, {}, None)


@pytest.mark.slow
def test_base_and_adapter_are_the_trained_model(
    config: ModelConfig, trained: Callable[..., Path], base: Path
) -> None:
    whole = load_model(ModelSource(trained(config)))
    parts = load_model(ModelSource(base=base, adapter=_split(trained(config), base)))
    assert _same(parts, whole)
    assert parts.config == whole.config == config
    assert _space(parts) == _space(whole)


def test_adapter_file_holds_only_what_training_added(
    trained: Callable[..., Path], base: Path
) -> None:
    with safe_open(_split(trained(), base), framework="pt") as file:
        names = set(file.keys())
    added = expected_shapes(MWA).keys() - expected_shapes(CONFIGS["plain"]).keys()
    assert names == added | set(HEADS)


def test_fine_tuned_tensor_goes_into_the_adapter_file(
    trained: Callable[..., Path], base: Path
) -> None:
    name = "beit3.encoder.layer_norm.A.weight"
    tensors = _base_of(_tensors(MWA))
    _save(base, {**tensors, name: tensors[name] + 0.5})
    with safe_open(_split(trained(), base), framework="pt") as file:
        assert name in file.keys()  # noqa: SIM118  # no dict


def test_half_precision_base_of_the_same_values_is_the_same_base(
    trained: Callable[..., Path], base: Path, tmp_path: Path
) -> None:
    whole = load_model(ModelSource(trained()))
    adapter = _split(trained(), base)
    halves = _save(
        tmp_path / "halves.pth", {n: t.half() for n, t in _base_of(_tensors(MWA)).items()}
    )
    parts = load_model(ModelSource(base=halves, adapter=adapter))
    assert _same(parts, whole)
    assert _space(parts) == _space(whole)
    assert _split(trained(), halves).read_bytes() == adapter.read_bytes()


def test_adapter_of_another_base_is_refused(
    trained: Callable[..., Path], base: Path, tmp_path: Path
) -> None:
    adapter = _split(trained(), base)
    tensors = _base_of(_tensors(MWA))
    name = "beit3.encoder.layers.0.ffn.A.fc1.bias"
    other = _save(tmp_path / "other.pth", {**tensors, name: tensors[name] + 1e-3})
    with pytest.raises(AdapterError, match=f"split from another base. {other} has other values"):
        load_model(ModelSource(base=other, adapter=adapter))
    del tensors[name]
    other = _save(tmp_path / "other.pth", tensors)
    with pytest.raises(AdapterError, match=f"{other} lacks {name}. Pass the base that was used"):
        load_model(ModelSource(base=other, adapter=adapter))


def test_adapter_of_another_width_is_refused(
    trained: Callable[..., Path], base: Path, tmp_path: Path
) -> None:
    adapter = _split(trained(), base)
    narrow = ModelConfig(replace(BACKBONE, embed_dim=64))
    other = _save(tmp_path / "narrow.pth", random_tensors(narrow))
    with pytest.raises(AdapterError, match=f"was trained for width 128.*{other} has width 64"):
        load_model(ModelSource(base=other, adapter=adapter))


def test_adapter_cannot_be_put_on_something_else(
    trained: Callable[..., Path], base: Path, tmp_path: Path
) -> None:
    adapter = _split(trained(), base)
    other = _save(tmp_path / "other.pth", {"resnet.weight": torch.ones(2)})
    with pytest.raises(AdapterError, match=f"{other}: is not a BEiT-3 base"):
        load_model(ModelSource(base=other, adapter=adapter))


def test_adapter_file_without_metadata_works_with_options(base: Path, tmp_path: Path) -> None:
    tensors = _tensors(MWA)
    left = tensors.keys() - _base_of(tensors).keys()
    path = tmp_path / "adapter.pth"
    torch.save({name: tensors[name] for name in left}, path)
    source = ModelSource(base=base, adapter=path)
    with pytest.raises(UsageError, match="`adapter_scale=NUMBER`, `ffn_option="):
        load_model(source)
    model = load_model(source, ModelOptions(adapter_scale=0.6, ffn_option="parallel"))
    assert model.config == MWA
    assert _same(model, load_model(ModelSource(_save(tmp_path / "whole.pth", tensors, MWA))))


def test_adapter_file_alone_says_how_to_use_it(trained: Callable[..., Path], base: Path) -> None:
    adapter = _split(trained(), base)
    with pytest.raises(AdapterError, match=f"{adapter}: is an adapter file.*`base=BASE` `adapter="):
        load_model(ModelSource(adapter))


def test_base_alone_says_that_an_adapter_brings_the_heads(base: Path) -> None:
    message = r"captioning or pretraining \(mlm_head\).*use `base` and `adapter`"
    with pytest.raises(CheckpointError, match=message):
        load_model(ModelSource(base))


def test_adapter_file_with_broken_metadata_is_refused(
    trained: Callable[..., Path], base: Path
) -> None:
    adapter = _split(trained(), base)
    with safe_open(adapter, framework="pt") as file:
        tensors = {n: file.get_tensor(n).clone() for n in file.keys()}  # noqa: SIM118  # no dict
        metadata = file.metadata()
    for broken in ({"base_tensors": "["}, {"base_tensors": None}, {"format": "adapter 2"}):
        kept = {k: v for k, v in {**metadata, **broken}.items() if v is not None}
        save_file(tensors, adapter, kept)
        with pytest.raises(AdapterError, match=f"{adapter}: .*metadata"):
            load_model(ModelSource(base=base, adapter=adapter))


def test_split_refuses_a_base_without_common_weights(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    other = _save(tmp_path / "other.pth", random_tensors(CONFIGS["plain"], 7))
    with pytest.raises(AdapterError, match=f"{other}: shares no tensor with the checkpoint"):
        _split(trained(), other)


def test_split_refuses_a_checkpoint_that_adds_nothing(trained: Callable[..., Path]) -> None:
    path = trained()
    with pytest.raises(AdapterError, match="nothing to split off"):
        _split(path, path)
    assert not path.with_name("adapter.safetensors").exists()


def test_split_command_writes_the_file_and_its_share(
    trained: Callable[..., Path], base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "coco.safetensors"
    outcome = run("split", trained(), "--base", base, "-o", out)
    assert outcome.status == 0
    assert outcome.stdout == f"{out}\n"
    assert "tensors differ from the base" in outcome.stderr
    assert json.loads(run("inspect", "--base", base, "--adapter", out, "--json").stdout)["model"]
    assert "exists" in refused("split", trained(), "--base", base, "-o", out)
    assert run("split", trained(), "--base", base, "-o", out, "--force").status == 0


def test_split_command_keeps_the_old_file_when_the_disk_is_full(
    trained: Callable[..., Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "coco.safetensors"
    out.write_bytes(b"old")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    message = refused("split", trained(), "--base", base, "-o", out, "--force")
    assert message.startswith(f"{out}: cannot be written (I/O error: No space left on device")
    assert files_below(folder) == {"coco.safetensors": b"old"}


def test_split_does_not_replace_a_folder_by_a_file(
    trained: Callable[..., Path], base: Path, tmp_path: Path
) -> None:
    model = load_model(ModelSource(trained()))
    folder = tmp_path / "out.safetensors"
    folder.mkdir()
    with pytest.raises(BundleError, match=r"is a folder\. Pass the name of a file"):
        split(model.tensors, model.config, read_checkpoint(base), folder)
    assert files_below(folder) == {}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["a.pth", "-o", "x.safetensors"], "CHECKPOINT and --base BASE"),
        (["a.pth", "--base", "b.pth", "-o", "x.pth"], "ends in .safetensors"),
        (["--base", "b.pth", "--adapter", "c.pth", "-o", "x.safetensors"], "without --adapter"),
    ],
)
def test_wrong_use_of_split_is_explained(arguments: list[str], complaint: str) -> None:
    outcome = run("split", *arguments)
    assert outcome.status == 2
    assert complaint in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("heads", [("mlm_head", 2), ("mim_head", 1), ("itm_head", 3)])
def test_heads_of_the_bases_pretraining_are_left_out_and_counted(
    heads: tuple[str, int], checkpoint: Path, tmp_path: Path
) -> None:
    name, count = heads
    base = dict(random_tensors(CONFIGS["plain"]))
    base |= {f"{name}.{n}.weight": torch.ones(2, 3) for n in range(count)}
    trained = load_model(ModelSource(checkpoint))
    added = {n: t for n, t in trained.tensors.items() if "mlp_" in n or ".enhancemlp." in n}
    source = ModelSource(
        base=save(tmp_path / "base.pth", base), adapter=save(tmp_path / "adapter.pth", added)
    )
    model = load_model(source)
    assert (
        f"base.pth: skipped {count} tensors of heads that retrieval does not use"
        in model.warnings[0]
    )
    assert f"{name} ({count})" in model.warnings[0]


@pytest.mark.parametrize(
    ("change", "at_fault", "complaint"),
    [
        (lambda base, _: base.pop("beit3.encoder.layer_norm.A.bias"), "base", "1 missing"),
        (lambda _, added: added.popitem(), "adapter", "1 missing"),
        (lambda base, _: base.update(queue=torch.ones(3)), "base", "1 unexpected: queue"),
        (lambda _, added: added.update(teacher=torch.ones(3)), "adapter", "unexpected: teacher"),
        (
            lambda base, _: [base.pop(f"{head}.weight") for head in HEAD_OF_TOWER.values()],
            "base",
            "is a BEiT-3 model for no particular task",
        ),
    ],
    ids=["base lacks", "adapter lacks", "base has more", "adapter has more", "no heads"],
)
def test_file_at_fault_is_named(
    change: Callable[..., Any],
    at_fault: str,
    complaint: str,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    base = dict(random_tensors(CONFIGS["plain"]))
    trained = load_model(ModelSource(checkpoint))
    added = {n: t for n, t in trained.tensors.items() if "mlp_" in n or ".enhancemlp." in n}
    change(base, added)
    files = save(tmp_path / "base.pth", base), save(tmp_path / "adapter.pth", added)
    with pytest.raises(CheckpointError) as error:
        load_model(ModelSource(base=files[0], adapter=files[1]))
    assert str(error.value).startswith(f"{tmp_path / at_fault}.pth: ")
    assert complaint in str(error.value)


def test_ignored_tensors_may_be_in_either_file(checkpoint: Path, tmp_path: Path) -> None:
    base = {**random_tensors(CONFIGS["plain"]), "queue": torch.ones(3)}
    trained = load_model(ModelSource(checkpoint))
    added = {n: t for n, t in trained.tensors.items() if "mlp_" in n or ".enhancemlp." in n}
    added["teacher.weight"] = torch.ones(3)
    files = save(tmp_path / "base.pth", base), save(tmp_path / "adapter.pth", added)
    read = ReadOptions(ignore=("queue", "teacher.*"))
    assert load_model(ModelSource(base=files[0], adapter=files[1], read=read)).config == MWA
