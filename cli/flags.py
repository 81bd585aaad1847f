"""Options of the library, written as command-line flags.

The library calls an option by its Python name in backticks: `max_excluded`, or `max_excluded=5`.
The command line prints the flag instead: the running command's own, or else that of the command
that has one. A name alone may be a field of a file, so it becomes the flag of another command only
in a message that names that command.
"""

from __future__ import annotations

import importlib
import re

import click

_OWNERS = {  # a command -> options that it has under their own names
    "bench": "peers rounds",
    "embed": "columns dtype format id_column image_root limit max_errors ray_actors "
    "ray_address ray_cpus ray_gpus retries retry_failed shard shard_size text_column texts timeout "
    "update vanished verify workers",
    "onnx": "adapter adapter_layernorm adapter_scale base ema ffn_option force heads ignore "
    "image_size input max_length model_key model_prefix no_merge tokenizer towers",
    "parity": "allow_slow any_space caption_column confidence data device image_column "
    "image_id_column images layers max_excluded max_recall_drop min_cosine normalize owners "
    "precision reference runtime seed split threads undecided",
    "quantize": "calibration float16 held_back keep method percentile points rounding samples "
    "time_budget",
    "search": "bundle image",
    "trt": "batch best builder_level for_tensorrt hardware_compatible lengths no_speed_gate "
    "rebuild refit rtx timing_cache version_compatible workspace",
}
FLAGS: dict[str, tuple[str, str]] = {  # option -> a command that has it, its flag
    name: (owner, f"--{name.replace('_', '-')}")
    for owner, names in _OWNERS.items()
    for name in names.split()
} | {
    "capabilities": ("trt", "--sm"),
    "dialects": ("quantize", "--dialect"),
    "executor": ("embed", "--engine"),
    "float8_attention": ("trt", "--fp8-attention"),
    "graphs": ("parity", "--graph"),
    "where": ("search", "--in"),
}
ENGINES = {"float16": "--fp16", "bfloat16": "--bf16", "int8": "--int8", "float8": "--fp8"}
"""Precision of an engine -> its flag of `trt`; messages say `engine_precision=float16`."""
_OPTION = re.compile(r"`([a-z_][a-z0-9_]*)(?:=([^`]*))?`")


def with_flags(text: str, command: str | None) -> str:
    """Replace every option in backticks by the flag that ``command`` has for it."""
    named = set(re.findall(r"mwa-export ([a-z]+)", text))

    def flag(match: re.Match[str]) -> str:
        field, value = match.groups()
        if field == "engine_precision":
            return _from("trt", ENGINES.get(value, value))
        if field not in FLAGS:
            return match.group()
        owner, name = FLAGS[field]
        if command is None or name not in flags_of(command):
            if value is None and owner not in named:
                return match.group()
            name = _from(owner, name)
        return name if value is None else f"{name} {value}"

    def _from(owner: str, name: str) -> str:
        return name if command in (None, owner) or owner in named else f"mwa-export {owner} {name}"

    return _OPTION.sub(flag, text)


def flags_of(name: str) -> set[str]:
    """All flags of a command."""
    command: click.Command = importlib.import_module(f"mwa_export.cli.{name}_cmd").command
    return {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
