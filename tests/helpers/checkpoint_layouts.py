"""Save one model in every checkpoint layout in use."""

from __future__ import annotations

import collections
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from configs import MWA
from safetensors.torch import save_file
from torch import Tensor

from mwa_export.model.synthetic import training_args

Tensors = dict[str, Tensor]
ARGS = training_args(MWA)


def others(tensors: Tensors) -> Tensors:
    return {name: tensor + 1 for name, tensor in tensors.items()}


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def model_file(folder: Path, tensors: Tensors) -> Path:
    path = folder / "checkpoint-29.pth"
    torch.save({"model": tensors, "model_ema": others(tensors), "epoch": 29, "args": ARGS}, path)
    return path


def module_file(folder: Path, tensors: Tensors) -> Path:
    path = folder / "model.pt"
    torch.save({"module": tensors, "args": ARGS}, path)
    return path


def state_dict_key(folder: Path, tensors: Tensors) -> Path:
    path = folder / "model.ckpt"
    torch.save({"state_dict": tensors, "args": ARGS}, path)
    return path


def data_parallel(folder: Path, tensors: Tensors) -> Path:
    path = folder / "parallel.pth"
    torch.save({"model": prefixed(tensors, "module."), "args": ARGS}, path)
    return path


def compiled_data_parallel(folder: Path, tensors: Tensors) -> Path:
    path = folder / "compiled.pth"
    torch.save({"model": prefixed(tensors, "module._orig_mod."), "args": ARGS}, path)
    return path


def legacy(folder: Path, tensors: Tensors) -> Path:
    path = folder / "legacy.pth"
    torch.save({"model": tensors, "args": ARGS}, path, _use_new_zipfile_serialization=False)
    return path


def parameters(folder: Path, tensors: Tensors) -> Path:
    path = folder / "parameters.pth"
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    torch.save({"model": parameters, "args": ARGS}, path)
    return path


def deepspeed(folder: Path, tensors: Tensors) -> Path:
    deepspeed_tag(folder, tensors)
    (folder / "latest").write_text("checkpoint-29\n")
    return folder


def deepspeed_tag(folder: Path, tensors: Tensors) -> Path:
    tag = folder / "checkpoint-29"
    tag.mkdir()
    torch.save(
        {"module": tensors, "optimizer": None, "args": ARGS}, tag / "mp_rank_00_model_states.pt"
    )
    return tag


def safetensors(folder: Path, tensors: Tensors) -> Path:
    path = folder / "model.safetensors"
    save_file(tensors, path, {"args": json.dumps(vars(ARGS))})
    return path


def nested(entry: Callable[[Tensors], Any]) -> Callable[[Path, Tensors], Path]:
    def write(folder: Path, tensors: Tensors) -> Path:
        path = folder / "nested.pth"
        torch.save({"args": ARGS, **entry(tensors)}, path)
        return path

    return write


def wrapped(name: str) -> str:
    """A name as activation checkpointing inside FSDP inside torch.compile leaves it."""
    first, *others = name.split(".")
    if len(others) < 2:
        return f"_orig_mod.model.{name}"
    second, *rest = others
    parts = ["_orig_mod", "model", first, "_fsdp_wrapped_module", second]
    return ".".join([*parts, "_checkpoint_wrapped_module", "module", *rest])


def hugging_face(folder: Path, tensors: Tensors) -> Path:
    (folder / "config.json").write_text(json.dumps(vars(ARGS)))
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def shards(folder: Path, tensors: Tensors) -> Path:
    names = sorted(tensors)
    shards = {f"model-0000{n}-of-00003.safetensors": names[n::3] for n in range(3)}
    for file, inside in shards.items():
        save_file({name: tensors[name] for name in inside}, folder / file)
    index = {"weight_map": {name: file for file, inside in shards.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(vars(ARGS)))
    return folder


def renamed_safetensors(folder: Path, tensors: Tensors) -> Path:
    return safetensors(folder, tensors).rename(folder / "weights.bin")


def renamed_pickle(folder: Path, tensors: Tensors) -> Path:
    return model_file(folder, tensors).rename(folder / "weights.safetensors")


def parameters_in_a_subclass(folder: Path, tensors: Tensors) -> Path:
    path = folder / "subclass.pth"
    state = collections.defaultdict(None, {n: torch.nn.Parameter(t) for n, t in tensors.items()})
    torch.save({"model_state_dict": state, "args": types.SimpleNamespace(**vars(ARGS))}, path)
    return path


LAYOUTS: dict[str, Callable[[Path, Tensors], Path]] = {
    "model": model_file,
    "module": module_file,
    "state_dict": state_dict_key,
    "module. prefix": data_parallel,
    "compiled": compiled_data_parallel,
    "legacy": legacy,
    "parameters": parameters,
    "DeepSpeed": deepspeed,
    "DeepSpeed tag": deepspeed_tag,
    "safetensors": safetensors,
    "safetensors under another suffix": renamed_safetensors,
    "pickle under another suffix": renamed_pickle,
    "model_state_dict of parameters": parameters_in_a_subclass,
    "model in an entry": nested(lambda t: {"state_dict": {"model": t, "epoch": 3}}),
    "hyper_parameters": nested(
        lambda t: {
            "args": None,
            "hyper_parameters": vars(ARGS),
            "state_dict": prefixed(t, "model."),
        },
    ),
    "wrapped": nested(lambda t: {"model": {wrapped(n): v for n, v in t.items()}}),
    "Hugging Face": hugging_face,
    "Hugging Face shards": shards,
}
