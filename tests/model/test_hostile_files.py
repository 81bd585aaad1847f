"""Small files that claim much: one error, in little time and memory."""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused, run, save
from configs import CONFIGS, MWA
from safetensors.torch import save_file

from mwa_export.errors import AdapterError, BundleError, CheckpointError, VerificationError
from mwa_export.export.export import bundle_from_model
from mwa_export.files import new_folder
from mwa_export.model.checkpoint import ReadOptions, read_checkpoint
from mwa_export.model.load import ModelSource, load_model
from mwa_export.model.synthetic import random_tensors, training_args
from mwa_export.spec import tower_of

MEMORY = 6 << 30  # address space; torch alone takes half of it


def _text(word: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word


def _laughs() -> bytes:
    """A list of ten of a list of ten of ..., nine deep."""
    made = b"]" + _text(b"lol") + b"aq\x00"
    for level in range(9):
        made += b"](" + (b"h" + bytes([level])) * 10 + b"eq" + bytes([level + 1])
    return made


def _many(count: int) -> bytes:
    return b"](" + b"N" * count + b"e"


BOMBS = {
    "name of nested lists": b"\x80\x04" + _laughs() + _text(b"x") + b"\x93.",
    "long names": b"\x80\x04"
    + _text(b"a" * 100_000)
    + b"q\x00"
    + b"h\x00h\x00\x93" * 50_000
    + b".",
    "result of a result": b"\x80\x04ca\nb\n" + b")R\x94" * 60_000 + b".",
    "dict copies": b"\x80\x02ccollections\nOrderedDict\nq\x01}("
    + b"".join(b"M" + struct.pack("<H", n) + b"N" for n in range(20_000))
    + b"uq\x000("
    + b"h\x01h\x00\x85R" * 20_000
    + b"l.",
    "pairs": b"\x80\x02ccollections\nOrderedDict\nq\x01]("
    + b"(NNl" * 20_000
    + b"eq\x000("
    + b"h\x01h\x00\x85R" * 20_000
    + b"l.",
    "sizes": b"\x80\x02ctorch\nSize\nq\x01"
    + _many(50_000)
    + b"q\x000("
    + b"h\x01h\x00\x85R" * 50_000
    + b"l.",
    "long shapes": b"\x80\x02ctorch._utils\n_rebuild_tensor\nq\x01"
    + _many(50_000)
    + b"q\x000(NK\x00h\x00h\x00tq\x02("
    + b"h\x01h\x02R" * 50_000
    + b"l.",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOMBS)
def test_pickle_that_asks_for_much_is_refused_soon(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", BOMBS[kind])
    code = "from mwa_export.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {path}: ")


_NESTED: Any = "x"
for _ in range(9):
    _NESTED = [_NESTED] * 10
_DEEP: Any = []
for _ in range(250):
    _DEEP = [_DEEP]
ODD: dict[str, Any] = {"nested": _NESTED, "deep": _DEEP, "digits": 10**5000, "long": "9" * 10_000}
NAMES = (
    "input_size",
    "num_max_bpe_tokens",
    "encoder_attention_heads",
    "ffn_mode",
    "ffn_option",
    "ffn_adapter_scalar",
    "ffn_adapter_layernorm_option",
    "activation_fn",
    "layernorm_eps",
    "subln",
)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", NAMES)
def test_stored_option_of_any_kind_is_one_short_error(name: str, kind: str, tmp_path: Path) -> None:
    args = training_args(MWA)
    setattr(args, name, ODD[kind])
    torch.save({"model": random_tensors(MWA), "args": args}, tmp_path / "a.pth")
    message = refused("inspect", tmp_path / "a.pth")
    assert message.startswith(f"{tmp_path / 'a.pth'}: ")
    assert name in message
    assert len(message) < 500


@pytest.mark.parametrize("size", [8000, 2**31 - 8, 2**40])
def test_image_size_is_bounded(size: int, checkpoint: Path, tmp_path: Path) -> None:
    message = refused("onnx", checkpoint, "-o", tmp_path / "b", "--image-size", size)
    assert "Expected at most 4096" in message


def test_unaligned_stream_costs_the_size_of_the_file(tmp_path: Path) -> None:
    flat = torch.arange(400_000, dtype=torch.float32)
    views = {f"a{n}.weight": flat[n * 100 : n * 100 + 100] for n in range(1000)}
    for extra in range(8):  # one of which leaves the data unaligned
        path = tmp_path / "stream.pth"
        saved = {"model": views, "note": "x" * extra}
        torch.save(saved, path, _use_new_zipfile_serialization=False)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = read_checkpoint(path).tensors
        assert all(torch.equal(found[name], view) for name, view in views.items())
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_entries_that_lie_over_one_another_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {f"a{n}.weight": torch.ones(1000) for n in range(50)}}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entries = {
            e.filename: e.header_offset for e in archive.infolist() if "/data/" in e.filename
        }
    first, *others = entries.values()
    for offset in others:  # every entry of the directory points to the first
        content = bytearray(
            bytes(content).replace(struct.pack("<I", offset), struct.pack("<I", first))
        )
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def _chained_tar(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("x" * 200))
    header = path.read_bytes()[:1024]
    path.write_bytes(header * 3000)


def _no_elements(path: Path) -> None:
    class Empty:
        def __reduce__(self) -> Any:
            storage = torch.ones(1)
            return torch._utils._rebuild_tensor_v2, (
                storage.untyped_storage(),
                0,
                (0, 2**62, 2**62),
                (1, 1, 1),
                False,
                {},
            )

    torch.save({"model": {"a.weight": Empty(), "b.weight": torch.ones(1)}}, path)


@pytest.mark.parametrize("write", [_chained_tar, _no_elements])
def test_odd_archive_is_one_error(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "odd.pth")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "odd.pth")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc")
def test_file_without_a_size_is_one_error() -> None:
    assert "/proc/cpuinfo" in refused("inspect", "/proc/cpuinfo")


@pytest.mark.parametrize("value", [["x"], {}, 3, None, "../x", ""])
def test_index_that_names_no_files_is_one_error(value: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": value}}))
    with pytest.raises(CheckpointError, match="Expected names of files beside the index"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("names", ["5", "null", "true", '[["a"]]', "[" * 100_000, "{"])
def test_adapter_metadata_of_another_kind_is_one_error(names: str, tmp_path: Path) -> None:
    base = save(tmp_path / "base.pth", random_tensors(CONFIGS["plain"]))
    added = {n: t for n, t in random_tensors(MWA).items() if "mlp_" in n}
    metadata = {"format": "mwa-export adapter 1", "base": "0", "base_tensors": names}
    save_file(added, tmp_path / "a.safetensors", metadata)
    with pytest.raises(AdapterError, match="its metadata names no base tensors"):
        load_model(ModelSource(base=base, adapter=tmp_path / "a.safetensors"))


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
    with pytest.raises(CheckpointError, match="does not say it holds, such as b"):
        read_checkpoint(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds both"):
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
    assert f"its args say {name}={value}, and its tensors" in refused("inspect", tmp_path / "a.pth")


def test_folder_that_appears_while_another_is_written_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write() -> None:
        with new_folder(out, marker="m") as folder:
            (folder / "m").touch()
            out.mkdir()
            (out / "precious").write_text("x")

    with pytest.raises(BundleError, match="exists already"):
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
    """As a training framework has its own."""


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
    assert "does not name a folder" in refused("onnx", checkpoint, "-o", f"{tmp_path}/none/..")


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
    """As OmegaConf lays its configurations out."""

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
