"""Find the files of a checkpoint: one file, or a DeepSpeed or Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mwa_export.errors import AdapterError, CheckpointError

_DEEPSPEED = "mp_rank_00_model_states.pt"
_HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")
_CHECKPOINTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The files that hold a model's tensors."""

    path: Path  # the file, or the index of the shards; for messages
    weights: tuple[Path, ...]
    layout: str  # "", "DeepSpeed", "Hugging Face", "Hugging Face, 2 shards"
    shard_of: Mapping[str, Path] = field(default_factory=dict)  # tensor -> file, if sharded
    config: Mapping[str, Any] = field(default_factory=dict)  # content of config.json


def find_files(path: Path) -> CheckpointFiles:
    """Find the files of a checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, or its tensors are spread over ranks; the message
            names the tool that gathers them.
        AdapterError: the folder is a PEFT adapter.
    """
    if path.name.endswith(".index.json") and path.is_file():
        return _sharded(path, _config(path.parent))
    if path.is_file():
        config = _config(path.parent) if path.name in _HUGGING_FACE else {}
        return CheckpointFiles(path, (path,), _DEEPSPEED_NAMES.get(path.name, ""), config=config)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path}: is a device or a pipe. Pass a file or a folder.")
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder. Pass a checkpoint.")
    # A gathered file takes precedence over the files that each rank wrote.
    found = _hugging_face(path)
    if found is None:
        _refuse_scattered(path)
        found = _deepspeed(path)
    if found is not None:
        return found
    inside = [f.name for f in sorted(path.iterdir()) if f.suffix in _CHECKPOINTS]
    hint = f" Pass a file in it: {', '.join(inside[:4])}." if inside else ""
    raise CheckpointError(
        f"{path}: is a folder without a checkpoint. Expected {', '.join(_HUGGING_FACE)} or an "
        f"index of shards (Hugging Face), or `latest` or */{_DEEPSPEED} (DeepSpeed).{hint}"
    )


_DEEPSPEED_NAMES = {_DEEPSPEED: "DeepSpeed"}


def _refuse_scattered(folder: Path) -> None:
    """Raise for folders whose tensors are spread over files, and name the tool that joins them."""
    if (folder / ".metadata").is_file() or any(folder.glob("*.distcp")):
        raise CheckpointError(
            f"{folder}: is a PyTorch distributed checkpoint (torch.distributed.checkpoint). "
            "Convert it to one file: python -m torch.distributed.checkpoint.format_utils "
            f"dcp_to_torch {folder} checkpoint.pth"
        )
    if (folder / "adapter_config.json").is_file():
        raise AdapterError(
            f"{folder}: is a PEFT adapter (LoRA or similar), not a MultiWay-Adapter. Merge it with "
            "PEFT's merge_and_unload() and pass the merged checkpoint."
        )
    if any(folder.glob("zero_pp_rank_*_mp_rank_00_model_states.pt")):
        raise _zero3(folder)
    if not any(folder.glob("mp_rank_*_model_states.pt")) and any(
        folder.glob("*/zero_pp_rank_*_mp_rank_00_model_states.pt")
    ):
        raise _zero3(folder)


def _zero3(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder}: is a DeepSpeed ZeRO-3 checkpoint, whose weights are spread over its ranks. "
        f"Run the script that DeepSpeed saved with it, and export OUTPUT: "
        f"python zero_to_fp32.py {folder} OUTPUT"
    )


def _deepspeed(folder: Path) -> CheckpointFiles | None:
    """Find the model states of a DeepSpeed folder or of one of its tags."""
    latest, tag = folder / "latest", folder
    if not any(folder.glob("mp_rank_*_model_states.pt")):
        tags = sorted(file.parent for file in folder.glob(f"*/{_DEEPSPEED}"))
        if latest.is_file():
            tag = folder / latest.read_text(encoding="utf-8", errors="replace").strip()
            if tag not in tags:
                raise CheckpointError(
                    f"{latest}: names {tag.name}, but {tag / _DEEPSPEED} is not a file. Expected a "
                    f"folder with {_DEEPSPEED}. Pass the folder to use: "
                    f"{', '.join(map(str, tags)) or 'none found'}."
                )
        elif not tags:
            return None
        elif len(tags) > 1:
            raise CheckpointError(
                f"{folder}: contains {len(tags)} DeepSpeed checkpoints, but no file `latest`. "
                f"Pass the one to use: {', '.join(map(str, tags[:4]))}."
            )
        else:
            (tag,) = tags
    ranks = sorted(other.name for other in tag.glob("mp_rank_*_model_states.pt"))
    if ranks != [_DEEPSPEED]:
        raise CheckpointError(
            f"{tag}: the model is split over {len(ranks)} tensor-parallel ranks ({ranks[-1]} "
            "...). Expected one. Merge them with DeepSpeed's tools first."
        )
    file = tag / _DEEPSPEED
    return CheckpointFiles(file, (file,), "DeepSpeed", config=_config(folder))


def _hugging_face(folder: Path) -> CheckpointFiles | None:
    config = _config(folder)
    for name in _HUGGING_FACE:
        index, file = folder / f"{name}.index.json", folder / name
        if index.is_file() and file.is_file():
            raise CheckpointError(
                f"{folder}: contains both {file.name} and {index.name}. Pass the one to use."
            )
        if index.is_file():
            return _sharded(index, config)
        if file.is_file():
            return CheckpointFiles(file, (file,), "Hugging Face", config=config)
    return None


def _config(folder: Path) -> dict[str, Any]:
    """Read the options from a folder's `config.json`, if it exists."""
    file = folder / "config.json"
    found = read_json(file) if file.is_file() else {}
    inside = found.get("args")
    return inside if isinstance(inside, dict) else found


def _sharded(index: Path, config: Mapping[str, Any]) -> CheckpointFiles:
    shard_of = _shards(index)
    shards = tuple(dict.fromkeys(shard_of.values()))
    return CheckpointFiles(index, shards, f"Hugging Face, {len(shards)} shards", shard_of, config)


def _shards(index: Path) -> dict[str, Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index}: has no `weight_map`. Pass the index of a checkpoint.")
    for name in names.values():
        if not isinstance(name, str) or name != Path(name).name or name in ("", ".", ".."):
            raise CheckpointError(
                f"{index}: names the file {name!r}. Expected names of files next to the index."
            )
        if not (index.parent / name).is_file():
            raise CheckpointError(
                f"{index}: names {name}, which is missing. Copy all {len(set(names.values()))} "
                "shards into the folder."
            )
    return {tensor: index.parent / name for tensor, name in names.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file cannot be read or is not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as JSON ({error}). Copy the file again."
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: contains a {type(data).__name__}. Expected a JSON object.")
    return data
