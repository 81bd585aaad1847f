"""Read a checkpoint file of any known layout: tensors, options and a description.

Knows files and pickles. Does not know what the tensors mean; see ``layout`` for that.
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwa_export.errors import CheckpointError
from mwa_export.optional import require

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_STATE_KEYS = ("model", "module", "state_dict")
_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
_DEEPSPEED_FILE = "mp_rank_00_model_states.pt"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of one file, memory-mapped where the format allows, and what came with them."""

    path: Path  # the file that holds the tensors, also when a folder was given
    tensors: Mapping[str, Tensor]
    args: Mapping[str, Any]  # the training options, empty when the file has none
    layout: str  # for people: "model", "module (DeepSpeed)", "raw state dict", ...
    metadata: Mapping[str, str] = field(default_factory=dict)  # safetensors only


def read_checkpoint(path: Path, *, ema: bool = False, trust_pickle: bool = False) -> Checkpoint:
    """Read a `.pth`/`.pt`/`.safetensors` file or a DeepSpeed folder. Runs no code from the file.

    Args:
        path: file or folder.
        ema: take the moving average (`model_ema`) instead of the last weights.
        trust_pickle: allow any pickled type. Pickles can run code: only for files you made.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, holds code, or lacks what was asked.
    """
    try:
        path = _file_of(Path(path))
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    if not start:
        raise CheckpointError(f"{path}: is empty. Expected a checkpoint: copy it again.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, ema=ema)
    data = _torch_load(path, start, trust_pickle=trust_pickle)
    if not isinstance(data, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(data).__name__}. Expected a dict with the model's tensors; "
            "save model.state_dict(), not the model itself."
        )
    key, state = _state_of(path, data, ema=ema)
    args = data.get("args") if key is not None else None
    return Checkpoint(
        path=path,
        tensors=_tensors_of(path, state),
        args=_args_of(path, args),
        layout=_layout_name(path, key),
    )


def _file_of(path: Path) -> Path:
    """The file to read: the path itself, or the one that a DeepSpeed folder points to."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder. Expected a checkpoint.")
    folder = path
    latest = path / "latest"
    if latest.is_file():
        folder = path / latest.read_text(encoding="utf-8", errors="replace").strip()
    file = folder / _DEEPSPEED_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{path}: is a folder, and {file} is not a file. Expected a checkpoint file, or a "
            f"DeepSpeed folder with a `latest` file that names a folder with {_DEEPSPEED_FILE}."
        )
    ranks = sorted(other.name for other in folder.glob("mp_rank_*_model_states.pt"))
    if len(ranks) > 1:
        raise CheckpointError(
            f"{folder}: the model is split over {len(ranks)} tensor-parallel ranks ({ranks[1]} "
            "...). Expected one. Merge them with DeepSpeed's own tools first."
        )
    return file


def _torch_load(path: Path, start: bytes, *, trust_pickle: bool) -> Any:
    torch = require("torch", extra="export", why="read a checkpoint")
    is_zip = start[:4] == b"PK\x03\x04"
    if not is_zip and start[:1] != b"\x80":  # neither torch's zip format nor its older pickles
        raise CheckpointError(
            f"{path}: is not a PyTorch checkpoint (it starts with {start!r}). Expected a file "
            "written by torch.save or safetensors, or a DeepSpeed folder."
        )
    if is_zip:
        _check_archive(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", mmap=is_zip, weights_only=not trust_pickle)
    except Exception as error:  # what a damaged pickle makes the unpickler raise has no limits
        refused = _refused_type(error)
        if refused is not None:
            raise CheckpointError(
                f"{path}: holds a pickled object of type {refused}, and reading it can run code. "
                "Expected tensors, plain Python values and argparse.Namespace. Nothing was run. "
                "If you made this file yourself, add `trust_pickle`."
            ) from error
        if trust_pickle and isinstance(error, (ImportError, AttributeError)):
            raise CheckpointError(
                f"{path}: holds a pickled object whose type cannot be imported here ({error}). "
                "Install the package it comes from, or save model.state_dict() alone."
            ) from error
        raise CheckpointError(
            f"{path}: cannot be read ({_reason(error)}). The file is damaged or cut short: "
            "copy it again."
        ) from error


def _check_archive(path: Path) -> None:
    """Raise unless the zip file is whole and was written by torch.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # A damaged header may ask for a newer zip (NotImplementedError) or hold an impossible offset.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: {path.stat().st_size:,} bytes of a PyTorch file without a readable end "
            f"({error}). The file is damaged or cut short: copy it again."
        ) from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path}: is a TorchScript program. Expected a checkpoint with the model's tensors."
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(
            f"{path}: is a zip file, but not one of torch.save (it holds "
            f"{', '.join(names[:3]) or 'nothing'}). Expected a checkpoint."
        )


def _refused_type(error: Exception) -> str | None:
    """The type that `weights_only` refused, from torch's message; None if it was something else."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    # "Unsupported global: GLOBAL a.B was not ..." or "unsupported GLOBAL a.b whose module ..."
    found = re.search(r"GLOBAL (\S+)", str(error))
    return None if found is None else found[1]


def _reason(error: Exception) -> str:
    """The error in one line, without torch's advice."""
    message = str(error).split("WeightsUnpickler error:")[-1].strip()
    return (message or type(error).__name__).splitlines()[0]


def _args_of(path: Path, args: Any) -> dict[str, Any]:
    """The training options as a dict, from what training scripts store under `args`."""
    if isinstance(args, argparse.Namespace):
        return dict(vars(args))
    if args is None or isinstance(args, Mapping):
        return dict(args or {})
    raise CheckpointError(
        f"{path}: its `args` are a {type(args).__name__}. Expected an argparse.Namespace or a dict."
    )


def _state_of(path: Path, data: Mapping[Any, Any], *, ema: bool) -> tuple[str | None, Any]:
    """Find the tensors: (key of their entry, the entry), or (None, data) for a raw state dict."""
    if ema:
        if "model_ema" not in data:
            raise CheckpointError(
                f"{path}: has no `model_ema`, only {_some(data)}. Leave `ema` out."
            )
        return "model_ema", data["model_ema"]
    for key in _STATE_KEYS:
        if isinstance(data.get(key), Mapping):
            return key, data[key]
    return None, data


def _tensors_of(path: Path, state: Any) -> dict[str, Tensor]:
    torch = require("torch", extra="export", why="read a checkpoint")
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: the model entry holds no tensors.")
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not torch.is_tensor(value):
            raise CheckpointError(
                f"{path}: {name!r} is a {type(value).__name__}, not a tensor. Expected a state "
                f"dict, or a dict with one under {', '.join(_STATE_KEYS)}."
            )
        if value.numel() == 0:
            raise CheckpointError(
                f"{path}: {name} is empty, as in a DeepSpeed ZeRO-3 checkpoint whose weights lie "
                "in other files. Run DeepSpeed's zero_to_fp32.py and give its result."
            )
        tensors[_without_prefix(name)] = value
    return tensors


def _read_safetensors(path: Path, *, ema: bool) -> Checkpoint:
    if ema:
        raise CheckpointError(f"{path}: a safetensors file has no `model_ema`. Leave `ema` out.")
    safetensors = require("safetensors", extra="export", why="read a .safetensors file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is not a whole safetensors file ({_reason(error)}). Copy it again."
        ) from error
    try:
        args = json.loads(metadata.get("args", "{}"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: `args` in its metadata is not JSON ({error}).") from error
    tensors = _tensors_of(path, state)
    return Checkpoint(path, tensors, _args_of(path, args), "safetensors", metadata)


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        while name.startswith(prefix):
            name = name[len(prefix) :]
    return name


def _layout_name(path: Path, key: str | None) -> str:
    if path.name == _DEEPSPEED_FILE:
        return f"{key or 'raw'} (DeepSpeed)"
    return key or "raw state dict"


def _some(names: Mapping[Any, Any]) -> str:
    shown = ", ".join(str(name) for name in list(names)[:5])
    return f"{shown}, ..." if len(names) > 5 else shown
