"""Whatever layout users have, the tensors and the options that come out are the same."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import MWA
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mwa_export.errors import CheckpointError
from mwa_export.model.checkpoint import read_checkpoint
from mwa_export.model.synthetic import random_tensors, training_args

Tensors = dict[str, Tensor]
ARGS = training_args(MWA)


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return random_tensors(MWA)


def _others(tensors: Tensors) -> Tensors:
    return {name: tensor + 1 for name, tensor in tensors.items()}


def _prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _model(folder: Path, tensors: Tensors) -> Path:
    path = folder / "checkpoint-29.pth"
    torch.save({"model": tensors, "model_ema": _others(tensors), "epoch": 29, "args": ARGS}, path)
    return path


def _module(folder: Path, tensors: Tensors) -> Path:
    path = folder / "model.pt"
    torch.save({"module": tensors, "args": ARGS}, path)
    return path


def _state_dict_key(folder: Path, tensors: Tensors) -> Path:
    path = folder / "model.ckpt"
    torch.save({"state_dict": tensors, "args": ARGS}, path)
    return path


def _data_parallel(folder: Path, tensors: Tensors) -> Path:
    path = folder / "parallel.pth"
    torch.save({"model": _prefixed(tensors, "module."), "args": ARGS}, path)
    return path


def _compiled_data_parallel(folder: Path, tensors: Tensors) -> Path:
    path = folder / "compiled.pth"
    torch.save({"model": _prefixed(tensors, "module._orig_mod."), "args": ARGS}, path)
    return path


def _legacy(folder: Path, tensors: Tensors) -> Path:
    path = folder / "legacy.pth"
    torch.save({"model": tensors, "args": ARGS}, path, _use_new_zipfile_serialization=False)
    return path


def _parameters(folder: Path, tensors: Tensors) -> Path:
    path = folder / "parameters.pth"
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    torch.save({"model": parameters, "args": ARGS}, path)
    return path


def _deepspeed(folder: Path, tensors: Tensors) -> Path:
    _deepspeed_tag(folder, tensors)
    (folder / "latest").write_text("checkpoint-29\n")
    return folder


def _deepspeed_tag(folder: Path, tensors: Tensors) -> Path:
    tag = folder / "checkpoint-29"
    tag.mkdir()
    torch.save(
        {"module": tensors, "optimizer": None, "args": ARGS}, tag / "mp_rank_00_model_states.pt"
    )
    return tag


def _safetensors(folder: Path, tensors: Tensors) -> Path:
    path = folder / "model.safetensors"
    save_file(tensors, path, {"args": json.dumps(vars(ARGS))})
    return path


LAYOUTS: dict[str, Callable[[Path, Tensors], Path]] = {
    "model": _model,
    "module": _module,
    "state_dict": _state_dict_key,
    "module. prefix": _data_parallel,
    "compiled": _compiled_data_parallel,
    "legacy": _legacy,
    "parameters": _parameters,
    "DeepSpeed": _deepspeed,
    "DeepSpeed tag": _deepspeed_tag,
    "safetensors": _safetensors,
}


def _same(found: Mapping[str, Tensor], expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_tensors_and_args(
    layout: str, tensors: Tensors, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(LAYOUTS[layout](tmp_path, tensors))
    assert _same(checkpoint.tensors, tensors)
    assert checkpoint.args == vars(ARGS)
    assert checkpoint.path.is_file()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["model", "legacy", "DeepSpeed", "safetensors"])
def test_halves_stay_halves(
    layout: str, dtype: torch.dtype, tensors: Tensors, tmp_path: Path
) -> None:
    halves = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    assert _same(read_checkpoint(LAYOUTS[layout](tmp_path, halves)).tensors, halves)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_raw_state_dict_needs_no_args(prefix: str, tensors: Tensors, tmp_path: Path) -> None:
    torch.save(_prefixed(tensors, prefix), tmp_path / "raw.pth")
    checkpoint = read_checkpoint(tmp_path / "raw.pth")
    assert _same(checkpoint.tensors, tensors)
    assert checkpoint.args == {}
    assert checkpoint.layout == "raw state dict"


def test_moving_average_is_read_when_asked_for(tensors: Tensors, tmp_path: Path) -> None:
    path = _model(tmp_path, tensors)
    checkpoint = read_checkpoint(path, ema=True)
    assert _same(checkpoint.tensors, _others(tensors))
    assert checkpoint.args == vars(ARGS)
    assert checkpoint.layout == "model_ema"


def test_missing_moving_average_says_what_there_is(tensors: Tensors, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no `model_ema`, only module, args\. Leave `ema`"):
        read_checkpoint(_module(tmp_path, tensors), ema=True)
    with pytest.raises(CheckpointError, match="a safetensors file has no `model_ema`"):
        read_checkpoint(_safetensors(tmp_path, tensors), ema=True)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("model", "model"),
        ("module", "module"),
        ("DeepSpeed", "module (DeepSpeed)"),
        ("DeepSpeed tag", "module (DeepSpeed)"),
        ("safetensors", "safetensors"),
    ],
)
def test_layout_is_named_for_people(
    layout: str, name: str, tensors: Tensors, tmp_path: Path
) -> None:
    assert read_checkpoint(LAYOUTS[layout](tmp_path, tensors)).layout == name


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (argparse.Namespace(ffn_num=64, ffn_mode="both"), {"ffn_num": 64, "ffn_mode": "both"}),
        ({"ffn_num": 64}, {"ffn_num": 64}),
        (None, {}),
    ],
)
def test_training_options_may_be_a_namespace_or_a_dict(
    stored: Any, expected: dict[str, Any], tmp_path: Path
) -> None:
    torch.save({"model": {"weight": torch.ones(2)}, "args": stored}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").args == expected


def test_training_options_of_another_kind_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.ones(2)}, "args": ["--lr", "1"]}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="its `args` are a list"):
        read_checkpoint(tmp_path / "a.pth")
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors", {"args": "[1]"})
    with pytest.raises(CheckpointError, match="its `args` are a list"):
        read_checkpoint(tmp_path / "a.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors", {"args": "{"})
    with pytest.raises(CheckpointError, match="`args` in its metadata is not JSON"):
        read_checkpoint(tmp_path / "a.safetensors")


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")


def _mapped_file(tensor: Tensor) -> str | None:
    """The file that the memory of a tensor is mapped from, if any."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= tensor.data_ptr() < end:
            return name if name.startswith("/") else None
    return None


@needs_proc
def test_weights_stay_in_the_file_until_they_are_used(tensors: Tensors, tmp_path: Path) -> None:
    path = _model(tmp_path, tensors)
    found = read_checkpoint(path).tensors
    assert {_mapped_file(tensor) for tensor in found.values()} == {str(path)}


@needs_proc
def test_optimizer_state_costs_no_memory(
    tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "with_optimizer.pth"
    torch.save({"model": tensors, "optimizer": {"exp_avg": torch.ones(1000)}}, path)
    loaded: list[Any] = []
    load = torch.load

    def remember(*args: Any, **kwargs: Any) -> Any:
        loaded.append(load(*args, **kwargs))
        return loaded[-1]

    monkeypatch.setattr(torch, "load", remember)
    read_checkpoint(path)
    assert _mapped_file(loaded[0]["optimizer"]["exp_avg"]) == str(path)


@pytest.mark.parametrize(
    ("latest", "complaint"),
    [(None, "mp_rank_00"), ("gone", "gone/mp_rank_00"), ("/nowhere", "/nowhere/mp_rank_00")],
)
def test_folder_without_a_model_says_which_file_is_expected(
    latest: str | None, complaint: str, tmp_path: Path
) -> None:
    if latest is not None:
        (tmp_path / "latest").write_text(latest)
    with pytest.raises(CheckpointError, match=f"{complaint}.*is not a file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["gone.pth", "gone.safetensors", "/dev/null"])
def test_path_without_a_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        read_checkpoint(tmp_path / name)


def test_unreadable_file_is_refused(
    tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_args: Any, **_kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    path = _model(tmp_path, tensors)
    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)"):
        read_checkpoint(path)


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a tiny checkpoint in each file format."""
    folder = tmp_path_factory.mktemp("small")
    tensors = {f"beit3.{index}.weight": torch.randn(3, 4) for index in range(5)}
    files = [LAYOUTS[name](folder, tensors) for name in ("module", "legacy", "safetensors")]
    return {path.name: path.read_bytes() for path in files}


# The fixture only holds the intact bytes, so sharing it between examples is fine.
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(data=st.data())
def test_damage_anywhere_never_escapes_as_another_error(
    data: st.DataObject, small_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = data.draw(st.sampled_from(sorted(small_files)))
    content = bytearray(small_files[name])
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        read_checkpoint(path)  # a changed weight cannot be noticed
    except CheckpointError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017  # most examples do not raise
