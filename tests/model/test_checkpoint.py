"""Whatever layout users have, the tensors and the options that come out are the same."""

from __future__ import annotations

import argparse
import collections
import io
import json
import sys
import types
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

from mwa_export.errors import AdapterError, CheckpointError, OptionsError
from mwa_export.model.checkpoint import ReadOptions, read_checkpoint
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


def _nested(entry: Callable[[Tensors], Any]) -> Callable[[Path, Tensors], Path]:
    def write(folder: Path, tensors: Tensors) -> Path:
        path = folder / "nested.pth"
        torch.save({"args": ARGS, **entry(tensors)}, path)
        return path

    return write


def _wrapped(name: str) -> str:
    """A name as activation checkpointing inside FSDP inside torch.compile leaves it."""
    first, *others = name.split(".")
    if len(others) < 2:
        return f"_orig_mod.model.{name}"
    second, *rest = others
    parts = ["_orig_mod", "model", first, "_fsdp_wrapped_module", second]
    return ".".join([*parts, "_checkpoint_wrapped_module", "module", *rest])


def _hugging_face(folder: Path, tensors: Tensors) -> Path:
    (folder / "config.json").write_text(json.dumps(vars(ARGS)))
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def _shards(folder: Path, tensors: Tensors) -> Path:
    names = sorted(tensors)
    shards = {f"model-0000{n}-of-00003.safetensors": names[n::3] for n in range(3)}
    for file, inside in shards.items():
        save_file({name: tensors[name] for name in inside}, folder / file)
    index = {"weight_map": {name: file for file, inside in shards.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(vars(ARGS)))
    return folder


def _renamed_safetensors(folder: Path, tensors: Tensors) -> Path:
    return _safetensors(folder, tensors).rename(folder / "weights.bin")


def _renamed_pickle(folder: Path, tensors: Tensors) -> Path:
    return _model(folder, tensors).rename(folder / "weights.safetensors")


def _parameters_in_a_subclass(folder: Path, tensors: Tensors) -> Path:
    path = folder / "subclass.pth"
    state = collections.defaultdict(None, {n: torch.nn.Parameter(t) for n, t in tensors.items()})
    torch.save({"model_state_dict": state, "args": types.SimpleNamespace(**vars(ARGS))}, path)
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
    "safetensors under another suffix": _renamed_safetensors,
    "pickle under another suffix": _renamed_pickle,
    "model_state_dict of parameters": _parameters_in_a_subclass,
    "model in an entry": _nested(lambda t: {"state_dict": {"model": t, "epoch": 3}}),
    "hyper_parameters": _nested(
        lambda t: {
            "args": None,
            "hyper_parameters": vars(ARGS),
            "state_dict": _prefixed(t, "model."),
        },
    ),
    "wrapped": _nested(lambda t: {"model": {_wrapped(n): v for n, v in t.items()}}),
    "Hugging Face": _hugging_face,
    "Hugging Face shards": _shards,
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
    checkpoint = read_checkpoint(path, ReadOptions(ema=True))
    assert _same(checkpoint.tensors, _others(tensors))
    assert checkpoint.args == vars(ARGS)
    assert checkpoint.layout == "model_ema"


@pytest.mark.parametrize("entry", ["state_dict_ema", "ema_state_dict", "ema"])
def test_moving_average_is_found_under_its_usual_names(
    entry: str, tensors: Tensors, tmp_path: Path
) -> None:
    saved = {"state_dict": tensors, entry: {"module": _others(tensors), "updates": 7}}
    torch.save(saved, tmp_path / "timm.pth")
    found = read_checkpoint(tmp_path / "timm.pth", ReadOptions(ema=True))
    assert _same(found.tensors, _others(tensors))
    assert _same(read_checkpoint(tmp_path / "timm.pth").tensors, tensors)


def test_file_with_a_moving_average_alone_says_so(tensors: Tensors, tmp_path: Path) -> None:
    torch.save({"model_ema": tensors}, tmp_path / "ema.pth")
    with pytest.raises(CheckpointError, match="only a moving average of the weights"):
        read_checkpoint(tmp_path / "ema.pth")


def test_key_and_prefix_choose_among_several_models(tensors: Tensors, tmp_path: Path) -> None:
    both = _prefixed(tensors, "student.") | _prefixed(_others(tensors), "teacher.")
    torch.save({"networks": both, "model": {"x": torch.ones(1)}}, tmp_path / "both.pth")
    chosen = ReadOptions(model_key="weights|networks", model_prefix="teacher.")
    found = read_checkpoint(tmp_path / "both.pth", chosen)
    assert _same(found.tensors, _others(tensors))
    assert found.notes == (
        f"both.pth: {len(tensors)} tensors do not start with 'teacher.' and are left out.",
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
        read_checkpoint(_model(tmp_path, tensors), options)


def test_two_models_under_one_name_are_refused(tensors: Tensors, tmp_path: Path) -> None:
    torch.save({"model": tensors | _prefixed(tensors, "module.")}, tmp_path / "twice.pth")
    with pytest.raises(CheckpointError, match="without what wraps the model"):
        read_checkpoint(tmp_path / "twice.pth")


def _damaged_shards(folder: Path, change: Callable[[Path, dict[str, Any]], None]) -> Path:
    tensors = {f"beit3.{n}.weight": torch.ones(2) for n in range(6)}
    index = _shards(folder, tensors) / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    change(folder, data)
    index.write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda folder, _: (folder / "model-00001-of-00003.safetensors").unlink(),
            "names model-00001-of-00003.safetensors, which is missing. Copy all 3 shards",
        ),
        (
            lambda _, data: data["weight_map"].update(x="../../x.safetensors"),
            "names the file '../../x.safetensors'. Expected names of files beside the index",
        ),
        (
            lambda _, data: data["weight_map"].update(x="model-00001-of-00003.safetensors"),
            "lacks x, which model.safetensors.index.json says it holds",
        ),
        (lambda _, data: data.clear(), "has no `weight_map`"),
    ],
)
def test_shards_that_are_not_whole_are_refused(
    change: Callable[[Path, dict[str, Any]], None], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read_checkpoint(_damaged_shards(tmp_path, change))


def _distributed(folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"x")
    (folder / "__0_0.distcp").write_bytes(b"x")


def _zero_3(folder: Path) -> None:
    (folder / "global_step7").mkdir()
    (folder / "latest").write_text("global_step7")
    (folder / "global_step7" / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"x")


def _peft(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def _two_tags(folder: Path) -> None:
    for tag in ("step1", "step2"):
        (folder / tag).mkdir()
        (folder / tag / "mp_rank_00_model_states.pt").write_bytes(b"x")


def _output_folder(folder: Path) -> None:
    (folder / "checkpoint-29.pth").write_bytes(b"x")


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (_distributed, "torch.distributed.checkpoint.format_utils dcp_to_torch"),
        (_zero_3, "python zero_to_fp32.py"),
        (_peft, "LoRA"),
        (_two_tags, r"holds 2 DeepSpeed checkpoints and no file `latest`.*step1, .*step2"),
        (_output_folder, "Name a file in it: checkpoint-29.pth"),
    ],
)
def test_folder_that_cannot_be_read_says_what_it_is_and_what_to_do(
    write: Callable[[Path], None], complaint: str, tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises((CheckpointError, AdapterError), match=complaint):
        read_checkpoint(tmp_path)


def test_single_deepspeed_tag_needs_no_latest(tensors: Tensors, tmp_path: Path) -> None:
    _deepspeed_tag(tmp_path, tensors)
    assert _same(read_checkpoint(tmp_path).tensors, tensors)


def test_missing_moving_average_says_what_there_is(tensors: Tensors, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no moving average .* only module, args\."):
        read_checkpoint(_module(tmp_path, tensors), ReadOptions(ema=True))
    with pytest.raises(CheckpointError, match="a safetensors file holds one set of weights"):
        read_checkpoint(_safetensors(tmp_path, tensors), ReadOptions(ema=True))


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
    assert "its `args` are a list" in found.notes[0]


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
    path = _model(tmp_path, tensors)
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


@pytest.mark.parametrize(
    ("latest", "complaint"),
    [
        (None, "is a folder without a checkpoint"),
        ("gone", "gone/mp_rank_00_model_states.pt is not a file"),
        ("/nowhere", "/nowhere/mp_rank_00_model_states.pt is not a file"),
    ],
)
def test_folder_without_a_model_says_which_file_is_expected(
    latest: str | None, complaint: str, tmp_path: Path
) -> None:
    if latest is not None:
        (tmp_path / "latest").write_text(latest)
    with pytest.raises(CheckpointError, match=complaint):
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
