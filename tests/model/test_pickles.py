"""Pickles of every protocol and container are read without running code; only weights matter."""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import pickle
import struct
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused, run
from configs import MWA
from hypothesis import given, settings
from hypothesis import strategies as st

from mwa_export.errors import CheckpointError
from mwa_export.model.checkpoint import read_checkpoint
from mwa_export.model.pickled import Placeholder, TensorRef
from mwa_export.model.pickles import read_pickle
from mwa_export.model.synthetic import random_tensors, training_args

NAME = "beit3.encoder.layers.0.ffn.A.fc1.weight"


# --- nothing runs ---------------------------------------------------------------------------------


class _Reduce:
    """Unpickling it would make a file, by each of the ways in which a pickle can call."""

    def __init__(self, marker: Path, how: str) -> None:
        self.marker, self.how = marker, how

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        command = f"touch {self.marker}"
        calls: dict[str, tuple[Any, ...]] = {
            "reduce": (os.system, (command,)),
            "eval": (eval, (f"__import__('os').system({command!r})",)),
            "state setter": (dict, (), {"a": 1}, None, None, _Setter(command)),
            "items": (list, (), None, iter([_Reduce(self.marker, "reduce")])),
            "nested": (os.path.join, (_Reduce(self.marker, "reduce"), "x")),
            "namespace": (argparse.Namespace, (), {"x": _Reduce(self.marker, "eval")}),
            "parameter": (
                torch._utils._rebuild_parameter,
                (_Reduce(self.marker, "reduce"), True, {}),
            ),
            "tensor type": (
                torch._tensor._rebuild_from_type_v2,
                (os.system, torch.Tensor, (command,), {}),
            ),
        }
        return calls[self.how]


class _Setter:
    def __init__(self, command: str) -> None:
        self.command = command

    def __call__(self, *_: Any) -> None: ...

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class _EvilNamespace(argparse.Namespace):
    """A Namespace whose class would run something when its state is set."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        os.system(state["command"])


_WAYS = (
    "reduce",
    "eval",
    "state setter",
    "items",
    "nested",
    "namespace",
    "parameter",
    "tensor type",
)
_PLACES: dict[str, Callable[[dict[Any, Any], Any], None]] = {
    "top": lambda saved, evil: saved.update(extra=evil),
    "optimizer": lambda saved, evil: saved.update(optimizer={"state": {0: [evil]}}),
    "args": lambda saved, evil: setattr(saved["args"], "note", evil),
    "model": lambda saved, evil: saved["model"].update(_extra_state=evil),
    "key": lambda saved, evil: saved.update({(1, 2): evil}),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("how", _WAYS)
@pytest.mark.parametrize("place", _PLACES)
def test_code_beside_the_weights_does_not_run_and_does_not_block_them(
    place: str, how: str, zipped: bool, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    for protocol in range(2, 6):
        saved: dict[Any, Any] = {"model": {NAME: torch.ones(2, 2)}}
        saved["args"] = argparse.Namespace(ffn_num=64)
        _PLACES[place](saved, _Reduce(marker, how))
        path = tmp_path / f"evil-{protocol}.pth"
        torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        found = read_checkpoint(path)
        assert not marker.exists()
        assert torch.equal(found.tensors[NAME], torch.ones(2, 2))
        assert found.args["ffn_num"] == 64


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("how", _WAYS)
def test_plain_pickle_of_any_protocol_does_not_run(how: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for evil in (_Reduce(marker, how), [_Reduce(marker, how)], {"args": _Reduce(marker, how)}):
        path = tmp_path / "evil.pkl"
        path.write_bytes(pickle.dumps(evil, protocol))
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
        read_pickle(io.BytesIO(path.read_bytes()))
        assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_persistent_ids_and_subclasses_do_not_run(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return str(marker) if isinstance(value, bytes) else None

    file = io.BytesIO()
    Pickler(file, protocol).dump({"a": b"x", "args": _EvilNamespace(command=f"touch {marker}")})
    found = read_pickle(io.BytesIO(file.getvalue()))
    assert isinstance(found["a"], Placeholder)
    assert found["args"].attributes() == {"command": f"touch {marker}"}
    assert not marker.exists()


def test_weight_that_is_an_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "object.pth"
    evil = _Reduce(tmp_path / "marker", "reduce")
    torch.save({"model": {NAME: evil}, "x": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="Expected an ordinary"):
        read_checkpoint(path)
    torch.save({"model": {"b": torch.ones(1), NAME: np.ones(3)}}, path)
    with pytest.raises(CheckpointError, match=f"{NAME} is an object made by numpy"):
        read_checkpoint(path)


# --- what training saves beside the weights -------------------------------------------------------


class _Schedule:
    """Learning-rate schedule of a class that is defined nowhere else."""

    def __init__(self) -> None:
        self.last_epoch, self.lr = 3, np.float64(1e-4)


BESIDE: dict[str, Any] = {
    "scalar": np.float64(3e-4),
    "dtype": np.dtype("int16"),
    "array": np.arange(6).reshape(2, 3),
    "text array": np.array(["a", "b"]),
    "torch rng": torch.get_rng_state(),
    "numpy rng": np.random.default_rng(1).bit_generator.state,
    "old rng": np.random.RandomState(0).get_state(),
    "path": PurePosixPath("/data/run"),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "namespace": types.SimpleNamespace(a=1),
    "schedule": _Schedule(),
    "set": {1, 2},
    "frozenset": frozenset({3}),
    "deque": collections.deque([1, 2], 5),
    "complex": 1j,
    "bytes": bytearray(b"abc"),
    "type": _Schedule,
    "function": json.dumps,
    "tuple key": {(1, (2, 3)): 4},
}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_everything_that_training_saves_beside_the_weights_is_passed_by(
    zipped: bool, protocol: int, tmp_path: Path
) -> None:
    tensors = random_tensors(MWA)
    args = training_args(MWA)
    args.output_dir, args.lr = PurePosixPath("/x"), np.float32(1)
    path = tmp_path / "checkpoint-3.pth"
    torch.save(
        {"optimizer": BESIDE, "model": tensors, "args": args, **BESIDE},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    found = read_checkpoint(path)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
    assert run("inspect", path).status == 0


@pytest.mark.parametrize("name", ["ffn_adapter_scalar", "num_max_bpe_tokens", "input_size"])
def test_needed_option_that_is_an_object_is_refused_by_name(name: str, tmp_path: Path) -> None:
    args = training_args(MWA)
    setattr(args, name, np.float64(2.5))
    tensors = {n: t for n, t in random_tensors(MWA).items() if not n.endswith(".scale")}
    torch.save({"model": tensors, "args": args}, tmp_path / "a.pth")
    message = refused("inspect", tmp_path / "a.pth")
    assert f"its stored option {name} is an object of type numpy" in message


@pytest.mark.parametrize("value", ["a", 2.5, -3, True, [1]])
def test_number_that_is_none_is_refused_by_name(value: Any, tmp_path: Path) -> None:
    args = training_args(MWA)
    args.num_max_bpe_tokens = value
    torch.save({"model": random_tensors(MWA), "args": args}, tmp_path / "a.pth")
    message = refused("inspect", tmp_path / "a.pth")
    assert "its stored option num_max_bpe_tokens is" in message


# --- tensors --------------------------------------------------------------------------------------

_shapes = st.lists(st.integers(1, 5), min_size=0, max_size=4)


@settings(max_examples=60, deadline=None)
@given(shape=_shapes, zipped=st.booleans(), data=st.data())
def test_any_view_of_a_storage_has_the_values_that_torch_gives_it(
    shape: list[int], zipped: bool, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8]
    whole = torch.arange(700).reshape(-1).to(data.draw(st.sampled_from(dtypes)))
    start = data.draw(st.integers(0, 20))
    tensor = whole[start : start + int(np.prod(shape))].reshape(shape)
    if tensor.dim() > 1:
        tensor = tensor.transpose(0, 1)
    path = tmp_path_factory.getbasetemp() / "view.pth"
    torch.save({"model": {"a": tensor, "b": whole}}, path, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path).tensors
    assert found["a"].dtype == tensor.dtype
    assert torch.equal(found["a"], tensor)
    assert torch.equal(found["b"], whole)


def _float8(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.ones(shape).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("weight", "complaint"),
    [
        (torch.ones(1).expand(300, 300), "repeats 1 stored values to fill 90,000"),
        (torch.ones(4, 4).to_sparse(), "sparse_tensor. Expected an ordinary"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "qtensor. Expected"),
        (torch.ones(3, device="meta"), "meta_tensor"),
        (_float8((2, 2)), "is float8_e4m3fn. Expected float32"),
        (torch.ones(3, dtype=torch.complex64), "is complex64. Expected float32"),
        (torch.ones(3, dtype=torch.complex64).conj().imag, "negated|complex"),
    ],
    ids=["expanded", "sparse", "quantized", "meta", "float8", "complex", "negated"],
)
def test_tensor_that_no_weight_can_be_is_refused_by_kind(
    weight: torch.Tensor, complaint: str, tmp_path: Path
) -> None:
    torch.save({"model": {"a.bias": torch.ones(1), NAME: weight}}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=complaint):
        read_checkpoint(tmp_path / "odd.pth")


def _claim(storage: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A zip of torch.save whose pickle claims a tensor that its one small storage cannot hold."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            kind = torch.FloatStorage
            return ("storage", kind, "0", "cpu", storage) if isinstance(value, Storage) else None

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, TensorRef):
                rebuild = torch._utils._rebuild_tensor_v2
                return rebuild, (Storage(), offset, shape, stride, False, collections.OrderedDict())
            return NotImplemented

    pickled, file = io.BytesIO(), io.BytesIO()
    Pickler(pickled, 2).dump({"model": {NAME: TensorRef(None, "", 0, (), ())}})  # type: ignore[arg-type]  # stands for the tensor
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickled.getvalue())
        archive.writestr("x/data/0", b"\0" * 16)
    return file.getvalue()


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (5,), (1,)),
        (3, (2,), (1,)),
        (0, (2, 2), (3, 3)),
        (0, (10**18,), (0,)),
        (0, (2**40, 2**40), (0, 0)),
        (2**62, (1,), (1,)),
        (0, (1,) * 40, (1,) * 40),
    ],
)
def test_claims_that_the_file_cannot_hold_cost_nothing(
    offset: int, shape: tuple[int, ...], stride: tuple[int, ...], tmp_path: Path
) -> None:
    path = tmp_path / "claim.pth"
    path.write_bytes(_claim(2**40, offset, shape, stride))
    with pytest.raises(
        CheckpointError, match=r"beyond the data|view that repeats|impossible shape"
    ):
        read_checkpoint(path)


def test_flipped_bit_in_a_weight_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "flipped.pth"
    torch.save({"model": {NAME: torch.full((64,), 0.5)}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((64,), 0.5).numpy().tobytes()) + 17] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"the data of {NAME} does not match its checksum"):
        read_checkpoint(path)


def test_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": {NAME: torch.ones(3)}}, tmp_path / "fast.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(tmp_path / "fast.pth").tensors[NAME], torch.ones(3))


@pytest.mark.parametrize("deep", [b"(" * 50_000, b"]" * 50_000 + b"a" * 50_000])
def test_deep_or_broken_pickle_is_one_error(deep: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "deep.pth", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + deep + b".")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "deep.pth")


def test_nested_tuple_as_a_key_does_not_exhaust_the_stack(tmp_path: Path) -> None:
    pickled = b"\x80\x02}(K\x01" + b"\x85" * 100_000 + b"K\x01u."
    with zipfile.ZipFile(tmp_path / "key.pth", "w") as archive:
        archive.writestr("x/data.pkl", pickled)
    with pytest.raises(CheckpointError, match="has no tensors"):
        read_checkpoint(tmp_path / "key.pth")


# --- tar, as torch 0.1 wrote it -------------------------------------------------------------------


def _tar(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A checkpoint in the layout of torch 0.1: storages, tensors and the pickle as members."""
    storages, refs = pickle.dumps(len(tensors), 2), pickle.dumps(len(tensors), 2)

    class Tensor:
        def __init__(self, number: int) -> None:
            self.number = number

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return str(value.number) if isinstance(value, Tensor) else None

    for number, tensor in enumerate(tensors.values()):
        storages += pickle.dumps((number, "cpu", torch.FloatStorage), 2)
        storages += struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes()
        refs += pickle.dumps((1000 + number, number, torch.FloatTensor), 2)
        refs += struct.pack("<q", tensor.dim())
        refs += struct.pack(f"<{2 * tensor.dim() + 1}q", *tensor.shape, *tensor.stride(), 0)
    pickled = io.BytesIO()
    named = {name: Tensor(1000 + number) for number, name in enumerate(tensors)}
    Pickler(pickled, 2).dump(collections.OrderedDict(named))
    members = {
        "sys_info": pickle.dumps({"little_endian": True}, 2),
        "pickle": pickled.getvalue(),
        "tensors": refs,
        "storages": storages + pickle.dumps([], 2),
    }
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_tar_of_the_first_versions_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(5)}
    _tar(tmp_path / "old.pth", tensors)
    found = read_checkpoint(tmp_path / "old.pth").tensors
    torchs = torch.load(tmp_path / "old.pth", weights_only=False)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(torchs[name], tensor)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_tar_is_one_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    _tar(path, {"a.weight": torch.ones(3, 4), "a.bias": torch.ones(5)})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(512, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017  # most examples do not raise


def test_tensors_that_share_a_storage_many_times_over_are_refused(tmp_path: Path) -> None:
    shared = torch.zeros(50_000)
    names = [f"beit3.encoder.layers.{n}.ffn.A.fc1.weight" for n in range(200)]
    torch.save({"model": dict.fromkeys(names, shared)}, tmp_path / "shared.pth")
    with pytest.raises(CheckpointError, match="its tensors claim 40,000,000 bytes"):
        read_checkpoint(tmp_path / "shared.pth")


def test_name_of_any_length_gives_a_message_of_a_few_lines(tmp_path: Path) -> None:
    tensors = {
        **random_tensors(MWA),
        "x" * 100_000: torch.ones(1),
        "criterion.\u202ee": torch.ones(1),
    }
    torch.save({"model": tensors, "args": training_args(MWA)}, tmp_path / "long.pth")
    message = refused("inspect", tmp_path / "long.pth")
    assert len(message) < 2000
    assert "criterion.\\u202ee" in message
    assert run("inspect", tmp_path / "long.pth", "--ignore", "x*", "--ignore", "crit*").status == 0


def test_options_that_lightning_nests_are_found(tmp_path: Path) -> None:
    args = argparse.Namespace(num_max_bpe_tokens=32)
    saved = {"state_dict": {NAME: torch.ones(1)}, "hyper_parameters": {"args": args, "lr": 1.0}}
    torch.save(saved, tmp_path / "lightning.ckpt")
    assert read_checkpoint(tmp_path / "lightning.ckpt").args["num_max_bpe_tokens"] == 32
