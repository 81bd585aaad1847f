"""Read a checkpoint of any supported layout: its tensors, options and a description.

Knows file formats and where the weights are in them. What the tensors mean is known to
``state_dict``.
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
_MOST_SHARED = 4  # max bytes of tensors per byte of the file; weights may be tied
_DEPTH = 3  # max nesting of entries: {"model_ema": {"module": {...}, "updates": 7}}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to find the weights in a checkpoint file."""

    ema: bool = False  # use the moving average instead of the last weights
    model_key: str | None = None  # entry with the weights; may list several, like `model|module`
    model_prefix: str = ""  # use only tensors whose names start with this prefix, and strip it
    ignore: tuple[str, ...] = ()  # skip tensors that match a pattern, such as "criterion.*"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a checkpoint, memory-mapped where the format allows, and its options."""

    path: Path  # the file with the tensors, or the index of its shards
    tensors: Mapping[str, Tensor]
    args: Mapping[str, Any]  # training options; a Placeholder for values that are not plain data
    layout: str  # for messages: "model", "module (DeepSpeed)", "raw state dict", ...
    metadata: Mapping[str, str] = field(default_factory=dict)  # safetensors only
    files: tuple[Path, ...] = ()  # all files that were read
    notes: tuple[str, ...] = ()  # tell the user what was skipped


def read_checkpoint(path: Path, options: ReadOptions | None = None) -> Checkpoint:
    """Read a file written by torch.save or safetensors, or a DeepSpeed or Hugging Face folder.

    No code in the file is run, even if it contains more than weights.

    Args:
        path: file or folder.
        options: where the weights are, if not in a usual place.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint, or without the requested weights.
        AdapterError: the file contains LoRA weights.
        OptionsError: an option matches nothing in the file.
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
            f"{files.path.name}: skipped {left_out} tensors whose names do not start with "
            f"{options.model_prefix!r}."
        )
    kept = without_ignored(named, options.ignore)
    if len(kept) < len(named):
        count = len(named) - len(kept)
        notes.append(f"{files.path.name}: ignored {count} tensors, as requested.")
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
    """Raise CheckpointError if a tensor is empty or the tensors claim more than the file holds."""
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > _MOST_SHARED * size:
        raise CheckpointError(
            f"{path}: its tensors claim {claimed:,} bytes, but the file has {size:,}. Expected "
            "every tensor to be stored once: save it again without shared views."
        )
    empty = next((n for n, t in tensors.items() if t.numel() == 0 and n not in UNUSED), None)
    if empty is not None:
        raise CheckpointError(
            f"{path}: {empty} is empty, as in a DeepSpeed ZeRO-3 checkpoint, whose weights are in "
            "other files. Run DeepSpeed's zero_to_fp32.py and pass its output."
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """One file. Tensors are read on demand, so that unreadable ones can be ignored."""

    path: Path
    tensors: Mapping[str, Callable[[], Tensor]]  # keyed by the names in the file
    args: Mapping[str, Any]
    layout: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _joined(files: CheckpointFiles, parts: list[_Part]) -> _Part:
    """Join the shards. Each tensor must be in the shard that the index names."""
    tensors: dict[str, Callable[[], Tensor]] = {}
    for part in parts:
        listed = {name for name, file in files.shard_of.items() if file == part.path}
        if lacking := sorted(listed - set(part.tensors)):
            raise CheckpointError(
                f"{part.path}: lacks {lacking[0]}, which {files.path.name} lists for it. Copy all "
                "files of the checkpoint again."
            )
        if more := sorted(set(part.tensors) - listed):
            raise CheckpointError(
                f"{part.path}: contains {len(more)} tensors that {files.path.name} does not list "
                f"for it, such as {more[0]}. The index belongs to another checkpoint: copy all "
                "files again."
            )
        tensors.update(part.tensors)
    args = {name: value for part in parts for name, value in part.args.items()}
    return _Part(files.path, tensors, args, parts[0].layout)


def _read_file(path: Path, options: ReadOptions) -> _Part:
    """Read one file: its tensors, under the names in the file, and its options."""
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise CheckpointError(f"{path}: is empty. Expected a checkpoint. Copy the file again.")
    if start[8:] == b"{" or (path.suffix == ".safetensors" and start[:1] not in b"P\x80"):
        return _read_safetensors(path, options)
    archive = open_archive(path)
    saved = archive.saved
    if isinstance(saved, Placeholder) and saved.items:
        saved = saved.items  # an instance of a dict subclass
    if not isinstance(saved, dict):
        raise CheckpointError(
            f"{path}: contains {_kind(saved)}. Expected a dict with the model's tensors: "
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
        f"{archive.path}: {name} is {_kind(value)}. Expected an ordinary (dense) tensor. If the "
        "model does not need it, pass its name as `ignore`."
    )


def _fills_a_weight(name: Any, value: Any) -> bool:
    """Whether an entry is a tensor, or an object where a tensor should be."""
    parameter = isinstance(name, str) and name.endswith((".weight", ".bias", ".scale"))
    odd = isinstance(value, Placeholder) and (parameter or "tensor" in value.name)
    return isinstance(value, TensorRef) or odd


def _state_of(
    path: Path, saved: dict[Any, Any], options: ReadOptions
) -> tuple[str | None, dict[Any, Any]]:
    """Find the tensors. Returns (key, entry), or (None, saved) for a raw state dict."""
    if options.model_key is not None:
        for key in options.model_key.split("|"):
            if (state := _tensors_in(saved.get(key))) is not None:
                return key, state
        expected = f"an entry with tensors in {path}; it has {_some(saved)}"
        raise OptionsError("model_key", options.model_key, expected)
    for key in EMA_KEYS if options.ema else STATE_KEYS:
        if (state := _tensors_in(saved.get(key))) is not None:
            return key, state
    if options.ema:
        raise CheckpointError(
            f"{path}: has no moving average (model_ema or similar), only {_some(saved)}. "
            "Leave `ema` out, or name its entry with `model_key`."
        )
    if any(isinstance(value, TensorRef) for value in saved.values()):
        return None, saved
    if any(_tensors_in(saved.get(key)) is not None for key in EMA_KEYS):
        raise CheckpointError(f"{path}: has only a moving average of the weights. Pass `ema`.")
    for key in STATE_KEYS:
        if isinstance(saved.get(key), Placeholder):
            raise CheckpointError(
                f"{path}: `{key}` is {_kind(saved[key])}. Expected a dict with the model's "
                "tensors: save model.state_dict(), not the model itself."
            )
    raise CheckpointError(
        f"{path}: has no tensors, only {_some(saved) or 'an empty dict'}. Expected a state dict, "
        f"or a dict with one under {', '.join(STATE_KEYS)}. Name another entry with `model_key`."
    )


def _tensors_in(entry: Any, depth: int = _DEPTH) -> dict[Any, Any] | None:
    """Find the dict with tensors: the entry itself, or a dict nested under a usual key."""
    entry = entry.items if isinstance(entry, Placeholder) else entry
    if not isinstance(entry, dict) or depth == 0:
        return None
    for key in (*STATE_KEYS, "shadow"):  # some moving averages use `shadow`
        if (inner := _tensors_in(entry.get(key), depth - 1)) is not None:
            return inner
    return entry if any(_fills_a_weight(name, value) for name, value in entry.items()) else None


def _args_of(
    path: Path, saved: Mapping[Any, Any], entry: str | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read the training options, and a note if they exist but cannot be read.

    They are stored next to the entry with the weights, or inside it.
    """
    inside = saved.get(entry) if entry is not None else None
    places = [saved, *([inside] if isinstance(inside, dict) else [])]
    for place in list(places):  # Lightning nests them inside its own options
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
    return {}, (f"{path.name}: its `args` cannot be read, because they are {_kind(value)}.",)


def _by_name(options: Any) -> dict[str, Any] | None:
    """Return a dict's entries, or the attributes of an object that was not unpickled."""
    found = options.attributes() if isinstance(options, Placeholder) else options
    if not isinstance(found, dict):
        return None
    if isinstance(content := found.get("_content"), dict):  # OmegaConf wraps values in nodes
        nodes = {name: _by_name(node) or {} for name, node in content.items()}
        found = {name: node.get("_val") for name, node in nodes.items()}
    elif isinstance(content := found.get("_fields"), dict):  # ml_collections
        found = content
    return {name: value for name, value in found.items() if isinstance(name, str)}


def _read_safetensors(path: Path, options: ReadOptions) -> _Part:
    if options.ema or options.model_key is not None:
        name = "ema" if options.ema else "model_key"
        raise CheckpointError(
            f"{path}: a safetensors file contains one set of weights. Leave `{name}` out."
        )
    safetensors = require("safetensors")
    require("torch")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: is not a complete safetensors file ({reason}). Copy it again."
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
    """Describe a value for messages."""
    if isinstance(value, Placeholder):
        return value.name if " " in value.name else f"an object made by {value.name}"
    return "a tensor" if isinstance(value, TensorRef) else f"a {type(value).__name__}"


def _some(names: Mapping[Any, Any]) -> str:
    shown = ", ".join(str(name)[:40] for name in list(names)[:5] if isinstance(name, str))
    return f"{shown}, ..." if len(names) > 5 else shown
