"""Read a checkpoint of any known layout: tensors, options and a description.

Knows files and what is around the weights in them. Does not know what the tensors mean; see
``state_dict`` for that.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwa_export.errors import CheckpointError, OptionsError
from mwa_export.model.archives import Archive, open_archive
from mwa_export.model.folders import CheckpointFiles, find_files
from mwa_export.model.names import UNUSED, own_names, without_ignored
from mwa_export.model.pickled import Placeholder, TensorRef
from mwa_export.optional import require

if TYPE_CHECKING:
    from torch import Tensor

STATE_KEYS = ("model", "module", "state_dict", "model_state_dict")
EMA_KEYS = (
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema", "ema_model"),
    *("model_ema_state_dict", "ema_model_state_dict", "ema_weights", "swa_model"),
)
_ARGS_KEYS = ("args", "hyper_parameters", "config", "cfg", "opt", "hparams", "options")
_MOST_SHARED = 4  # bytes of tensors for each byte of the file; weights may be tied
_DEPTH = 3  # of entries in entries: {"model_ema": {"module": {...}, "updates": 7}}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to find the weights in a file."""

    ema: bool = False  # the moving average, not the last weights
    model_key: str | None = None  # the entry with the weights; upstream's `model|module` will do
    model_prefix: str = ""  # take the tensors whose names start so
    ignore: tuple[str, ...] = ()  # leave out the tensors whose names match, "criterion.*"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a checkpoint, memory-mapped where the format allows, and its options."""

    path: Path  # the file that holds the tensors, or the index of its shards
    tensors: Mapping[str, Tensor]
    args: Mapping[str, Any]  # training options; a Placeholder where one is no plain value
    layout: str  # for people: "model", "module (DeepSpeed)", "raw state dict", ...
    metadata: Mapping[str, str] = field(default_factory=dict)  # safetensors only
    files: tuple[Path, ...] = ()  # all that were read
    notes: tuple[str, ...] = ()  # what was left out, for the user


def read_checkpoint(path: Path, options: ReadOptions | None = None) -> Checkpoint:
    """Read a file of torch.save or safetensors, or a DeepSpeed or Hugging Face folder.

    Nothing in the file is run, whatever it holds beside the weights.

    Args:
        path: file or folder.
        options: where the weights are, if not in the usual place.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint, or lacks what was asked for.
        AdapterError: the weights of LoRA.
        OptionsError: the options fit nothing in it.
    """
    options = options or ReadOptions()
    try:
        files = find_files(Path(path))
        parts = [_read_file(file, options) for file in files.weights]
        size = sum(file.stat().st_size for file in files.weights)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    part = _joined(files, parts) if files.shard_of else parts[0]
    named = own_names(part.tensors, files.path, prefix=options.model_prefix)
    left_out = len(part.tensors) - len(named)
    notes = list(part.notes)
    if left_out:
        notes.append(
            f"{files.path.name}: {left_out} tensors do not start with {options.model_prefix!r} and "
            "are left out."
        )
    kept = without_ignored(named, options.ignore)
    if len(kept) < len(named):
        notes.append(f"{files.path.name}: {len(named) - len(kept)} tensors are ignored, as asked.")
    tensors = {}
    for name, read in kept.items():
        try:
            tensors[name] = read()
        except CheckpointError:
            if name not in UNUSED:
                raise
    _check_sizes(tensors, files.path, size)
    return Checkpoint(
        path=files.path,
        tensors=tensors,
        args={**files.config, **part.args},
        layout=f"{part.layout} ({files.layout})" if files.layout else part.layout,
        metadata=part.metadata,
        files=(files.path, *files.weights) if files.shard_of else files.weights,
        notes=tuple(notes),
    )


def _check_sizes(tensors: Mapping[str, Tensor], path: Path, size: int) -> None:
    """Raise CheckpointError for tensors that are empty, or that claim more than the file holds."""
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > _MOST_SHARED * size:
        raise CheckpointError(
            f"{path}: its tensors claim {claimed:,} bytes, and the file has {size:,}. Expected "
            "every tensor to be stored once."
        )
    empty = next((n for n, t in tensors.items() if t.numel() == 0 and n not in UNUSED), None)
    if empty is not None:
        raise CheckpointError(
            f"{path}: {empty} is empty, as in a DeepSpeed ZeRO-3 checkpoint whose weights lie in "
            "other files. Run DeepSpeed's zero_to_fp32.py and give its result."
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """One file. Tensors are read when they are wanted: an ignored one may be of any kind."""

    path: Path
    tensors: Mapping[str, Callable[[], Tensor]]  # by the names in the file
    args: Mapping[str, Any]
    layout: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _joined(files: CheckpointFiles, parts: list[_Part]) -> _Part:
    """The shards as one: each tensor out of the shard that the index names."""
    tensors: dict[str, Callable[[], Tensor]] = {}
    for part in parts:
        listed = {name for name, file in files.shard_of.items() if file == part.path}
        if lacking := sorted(listed - set(part.tensors)):
            raise CheckpointError(
                f"{part.path}: lacks {lacking[0]}, which {files.path.name} says it holds. Copy all "
                "files of the checkpoint again."
            )
        if more := sorted(set(part.tensors) - listed):
            raise CheckpointError(
                f"{part.path}: holds {len(more)} tensors that {files.path.name} does not say it "
                f"holds, such as {more[0]}. The index is of another checkpoint: copy all files "
                "again."
            )
        tensors.update(part.tensors)
    args = {name: value for part in parts for name, value in part.args.items()}
    return _Part(files.path, tensors, args, parts[0].layout)


def _read_file(path: Path, options: ReadOptions) -> _Part:
    """One file's tensors by the names in it, with its options."""
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise CheckpointError(f"{path}: is empty. Expected a checkpoint: copy it again.")
    if start[8:] == b"{" or (path.suffix == ".safetensors" and start[:1] not in b"P\x80"):
        return _read_safetensors(path, options)
    archive = open_archive(path)
    saved = archive.saved
    if isinstance(saved, Placeholder) and saved.items:
        saved = saved.items  # of a class that is a dict
    if not isinstance(saved, dict):
        raise CheckpointError(
            f"{path}: holds {_kind(saved)}. Expected a dict with the model's tensors; "
            "save model.state_dict(), not the model itself."
        )
    key, state = _state_of(path, saved, options)
    args, notes = _args_of(path, saved, key)
    tensors = {
        name: partial(_tensor, archive, name, value)
        for name, value in state.items()
        if isinstance(name, str) and _fills_a_weight(name, value)
    }
    layout = "raw state dict" if key is None else key
    return _Part(path, tensors, args, layout, notes=notes)


def _tensor(archive: Archive, name: str, value: Any) -> Tensor:
    if isinstance(value, TensorRef):
        return archive.tensor(name, value)
    raise CheckpointError(
        f"{archive.path}: {name} is {_kind(value)}. Expected an ordinary (dense) tensor."
    )


def _fills_a_weight(name: Any, value: Any) -> bool:
    """Whether an entry is a tensor, or an object in the place of one."""
    parameter = isinstance(name, str) and name.endswith((".weight", ".bias", ".scale"))
    odd = isinstance(value, Placeholder) and (parameter or "tensor" in value.name)
    return isinstance(value, TensorRef) or odd


def _state_of(
    path: Path, saved: dict[Any, Any], options: ReadOptions
) -> tuple[str | None, dict[Any, Any]]:
    """Find the tensors: (key of their entry, the entry), or (None, saved) for a raw state dict."""
    if options.model_key is not None:
        for key in options.model_key.split("|"):
            if (state := _tensors_in(saved.get(key))) is not None:
                return key, state
        expected = f"the name of an entry of {path} with tensors; it has {_some(saved)}"
        raise OptionsError("model_key", options.model_key, expected)
    for key in EMA_KEYS if options.ema else STATE_KEYS:
        if (state := _tensors_in(saved.get(key))) is not None:
            return key, state
    if options.ema:
        raise CheckpointError(
            f"{path}: has no moving average (model_ema or alike), only {_some(saved)}. "
            "Leave `ema` out, or name its entry: `model_key`"
        )
    if any(isinstance(value, TensorRef) for value in saved.values()):
        return None, saved
    if any(_tensors_in(saved.get(key)) is not None for key in EMA_KEYS):
        raise CheckpointError(f"{path}: has only a moving average of the weights. Add `ema`.")
    for key in STATE_KEYS:
        if isinstance(saved.get(key), Placeholder):
            raise CheckpointError(
                f"{path}: `{key}` is {_kind(saved[key])}. Expected a dict with the model's "
                "tensors; save model.state_dict(), not the model itself."
            )
    raise CheckpointError(
        f"{path}: holds no tensors, only {_some(saved) or 'an empty dict'}. Expected a state dict, "
        f"or a dict with one under {', '.join(STATE_KEYS)}, or name its entry: `model_key`"
    )


def _tensors_in(entry: Any, depth: int = _DEPTH) -> dict[Any, Any] | None:
    """The dict that holds tensors: the entry, or what lies under a usual name in it."""
    entry = entry.items if isinstance(entry, Placeholder) else entry
    if not isinstance(entry, dict) or depth == 0:
        return None
    for key in (*STATE_KEYS, "shadow"):  # the last in some moving averages
        if (inner := _tensors_in(entry.get(key), depth - 1)) is not None:
            return inner
    return entry if any(_fills_a_weight(name, value) for name, value in entry.items()) else None


def _args_of(
    path: Path, saved: Mapping[Any, Any], entry: str | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The training options as a dict, and a note if they are there and cannot be read.

    They lie beside the entry with the weights, or in it.
    """
    inside = saved.get(entry) if entry is not None else None
    places = [saved, *([inside] if isinstance(inside, dict) else [])]
    for place in list(places):  # Lightning nests them in its own once more
        places += [found for key in _ARGS_KEYS if (found := _by_name(place.get(key)))]
    args: dict[str, Any] = {}
    for place, key in itertools.product(places, _ARGS_KEYS):
        args = {**(_by_name(place.get(key)) or {}), **args}
    value = saved.get("args")
    empty = value in (None, {}) or (
        isinstance(value, Placeholder) and value.name.endswith("Namespace")
    )
    if args or empty or isinstance(value, TensorRef):
        return args, ()
    return {}, (f"{path.name}: its `args` are {_kind(value)} and cannot be read.",)


def _by_name(options: Any) -> dict[str, Any] | None:
    """A dict's entries, or the attributes of an object that was not made."""
    found = options.attributes() if isinstance(options, Placeholder) else options
    if not isinstance(found, dict):
        return None
    if isinstance(content := found.get("_content"), dict):  # OmegaConf: nodes around the values
        nodes = {name: _by_name(node) or {} for name, node in content.items()}
        found = {name: node.get("_val") for name, node in nodes.items()}
    elif isinstance(content := found.get("_fields"), dict):  # ml_collections
        found = content
    return {name: value for name, value in found.items() if isinstance(name, str)}


def _read_safetensors(path: Path, options: ReadOptions) -> _Part:
    if options.ema or options.model_key is not None:
        name = "ema" if options.ema else "model_key"
        raise CheckpointError(
            f"{path}: a safetensors file holds one set of weights. Leave `{name}` out."
        )
    safetensors = require("safetensors", extra="export", why="read a .safetensors file")
    require("torch", extra="export", why="read a checkpoint")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: is not a whole safetensors file ({reason}). Copy it again."
        ) from error
    notes: list[str] = []
    try:
        args = json.loads(metadata.get("args") or "{}") or {}
        if not isinstance(args, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        args = {}
        notes.append(f"{path.name}: `args` in its metadata cannot be read ({error}).")
    tensors = {name: partial(_same, tensor) for name, tensor in found.items()}
    return _Part(path, tensors, args, "safetensors", metadata, tuple(notes))


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _kind(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Placeholder):
        return value.name if " " in value.name else f"an object made by {value.name}"
    return "a tensor" if isinstance(value, TensorRef) else f"a {type(value).__name__}"


def _some(names: Mapping[Any, Any]) -> str:
    shown = ", ".join(str(name)[:40] for name in list(names)[:5] if isinstance(name, str))
    return f"{shown}, ..." if len(names) > 5 else shown
