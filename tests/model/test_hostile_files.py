"""Small files that claim huge contents give one error, in little time and memory."""

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

import pytest
import torch
from commands import refused, run, save
from configs import CONFIGS, MWA
from safetensors.torch import save_file

from mwa_export.errors import AdapterError, CheckpointError
from mwa_export.model.checkpoint import read_checkpoint
from mwa_export.model.load import ModelSource, load_model
from mwa_export.model.synthetic import random_tensors, training_args

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
    outcome = run("onnx", checkpoint, "-o", tmp_path / "b", "--image-size", size)
    assert outcome.status == 2
    assert "expected 1 to 4096" in outcome.stderr or "is above" in outcome.stderr


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
    with pytest.raises(CheckpointError, match="Expected names of files next to the index"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("names", ["5", "null", "true", '[["a"]]', "[" * 100_000, "{"])
def test_adapter_metadata_of_another_kind_is_one_error(names: str, tmp_path: Path) -> None:
    base = save(tmp_path / "base.pth", random_tensors(CONFIGS["plain"]))
    added = {n: t for n, t in random_tensors(MWA).items() if "mlp_" in n}
    metadata = {"format": "mwa-export adapter 1", "base": "0", "base_tensors": names}
    save_file(added, tmp_path / "a.safetensors", metadata)
    with pytest.raises(AdapterError, match="metadata does not list the base tensors"):
        load_model(ModelSource(base=base, adapter=tmp_path / "a.safetensors"))
