"""Every checkpoint layout gives the same tensors and options."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_layouts import (
    ARGS,
    LAYOUTS,
    Tensors,
    model_file,
    module_file,
    others,
    prefixed,
    safetensors,
)
from configs import MWA
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mwa_export.errors import AdapterError, CheckpointError, OptionsError
from mwa_export.model.checkpoint import ReadOptions, read_checkpoint
from mwa_export.model.synthetic import random_tensors


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return random_tensors(MWA)


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
    torch.save(prefixed(tensors, prefix), tmp_path / "raw.pth")
    checkpoint = read_checkpoint(tmp_path / "raw.pth")
    assert _same(checkpoint.tensors, tensors)
    assert checkpoint.args == {}
    assert checkpoint.layout == "raw state dict"


def test_moving_average_is_read_when_asked_for(tensors: Tensors, tmp_path: Path) -> None:
    path = model_file(tmp_path, tensors)
    checkpoint = read_checkpoint(path, ReadOptions(ema=True))
    assert _same(checkpoint.tensors, others(tensors))
    assert checkpoint.args == vars(ARGS)
    assert checkpoint.layout == "model_ema"


@pytest.mark.parametrize("entry", ["state_dict_ema", "ema_state_dict", "ema"])
def test_moving_average_is_found_under_its_usual_names(
    entry: str, tensors: Tensors, tmp_path: Path
) -> None:
    saved = {"state_dict": tensors, entry: {"module": others(tensors), "updates": 7}}
    torch.save(saved, tmp_path / "timm.pth")
    found = read_checkpoint(tmp_path / "timm.pth", ReadOptions(ema=True))
    assert _same(found.tensors, others(tensors))
    assert _same(read_checkpoint(tmp_path / "timm.pth").tensors, tensors)


def test_file_with_a_moving_average_alone_says_so(tensors: Tensors, tmp_path: Path) -> None:
    torch.save({"model_ema": tensors}, tmp_path / "ema.pth")
    with pytest.raises(CheckpointError, match="only a moving average of the weights"):
        read_checkpoint(tmp_path / "ema.pth")


def test_key_and_prefix_choose_among_several_models(tensors: Tensors, tmp_path: Path) -> None:
    both = prefixed(tensors, "student.") | prefixed(others(tensors), "teacher.")
    torch.save({"networks": both, "model": {"x": torch.ones(1)}}, tmp_path / "both.pth")
    chosen = ReadOptions(model_key="weights|networks", model_prefix="teacher.")
    found = read_checkpoint(tmp_path / "both.pth", chosen)
    assert _same(found.tensors, others(tensors))
    assert found.notes == (
        f"both.pth: skipped {len(tensors)} tensors whose names do not start with 'teacher.'.",
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (ReadOptions(model_key="net"), "`model_key=net`: expected .* it has model, model_ema"),
        (ReadOptions(model_prefix="x."), "`model_prefix=x.`: expected a prefix of names"),
        (ReadOptions(ignore=("beit4.*",)), "`ignore=beit4..`: expected a pattern that matches"),
    ],
)
def test_option_that_fits_nothing_in_the_file_is_refused(
    options: ReadOptions, complaint: str, tensors: Tensors, tmp_path: Path
) -> None:
    with pytest.raises(OptionsError, match=complaint):
        read_checkpoint(model_file(tmp_path, tensors), options)


def test_two_models_under_one_name_are_refused(tensors: Tensors, tmp_path: Path) -> None:
    torch.save({"model": tensors | prefixed(tensors, "module.")}, tmp_path / "twice.pth")
    with pytest.raises(CheckpointError, match="are both named beit3"):
        read_checkpoint(tmp_path / "twice.pth")


def test_missing_moving_average_says_what_there_is(tensors: Tensors, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no moving average .* only module, args\."):
        read_checkpoint(module_file(tmp_path, tensors), ReadOptions(ema=True))
    with pytest.raises(CheckpointError, match=r"one set of weights\. Leave `ema` out"):
        read_checkpoint(safetensors(tmp_path, tensors), ReadOptions(ema=True))


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


def test_training_options_that_cannot_be_read_are_a_note(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.ones(2)}, "args": ["--lr", "1"]}, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert found.args == {}
    assert "its `args` cannot be read, because they are a list" in found.notes[0]


@pytest.mark.parametrize("stored", ["[1]", "{", "Namespace(lr=1)", "[" * 100_000])
def test_training_options_in_metadata_that_cannot_be_read_are_a_note(
    stored: str, tmp_path: Path
) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors", {"args": stored})
    found = read_checkpoint(tmp_path / "a.safetensors")
    assert found.args == {}
    assert "`args` in its metadata cannot be read" in found.notes[0]


@pytest.mark.parametrize("stored", ["", "null", "{}"])
def test_empty_training_options_in_metadata_are_none(stored: str, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors", {"args": stored})
    assert read_checkpoint(tmp_path / "a.safetensors").notes == ()


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
    path = model_file(tmp_path, tensors)
    found = read_checkpoint(path).tensors
    assert {_mapped_file(tensor) for tensor in found.values()} == {str(path)}


def test_optimizer_state_is_not_even_looked_at(tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "with_optimizer.pth"
    torch.save({"optimizer": {"exp_avg": torch.full((1000,), 7.0)}, "model": tensors}, path)
    content = path.read_bytes()
    damaged = content.replace(torch.full((1000,), 7.0).numpy().tobytes(), b"\1" * 4000)
    assert damaged != content
    path.write_bytes(damaged)  # its checksum is wrong now
    assert _same(read_checkpoint(path).tensors, tensors)


def test_a_device_is_told_from_a_name_that_is_not_there() -> None:
    with pytest.raises(CheckpointError, match="is a device or a pipe"):
        read_checkpoint(Path("/dev/null"))


@pytest.mark.parametrize("name", ["gone.pth", "gone.safetensors"])
def test_path_without_a_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        read_checkpoint(tmp_path / name)


def test_unreadable_file_is_refused(
    tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_args: Any, **_kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    path = model_file(tmp_path, tensors)
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
@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(data=st.data())
def test_damage_anywhere_never_escapes_as_another_error(
    data: st.DataObject, small_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = data.draw(st.sampled_from(sorted(small_files)))
    content, weights = bytearray(small_files[name]), None
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        weights = read_checkpoint(path).tensors
    except (CheckpointError, AdapterError) as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017  # most examples do not raise
    if weights and name == "model.pt":  # a zip has checksums, so no changed weight is taken
        intact = torch.load(io.BytesIO(small_files[name]), weights_only=False)["module"]
        assert all(torch.equal(weights[n], intact[n]) for n in weights if n in intact)
