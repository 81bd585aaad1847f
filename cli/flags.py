"""Options of the library, written as command-line flags.

The library calls an option by its Python name in backticks: `max_excluded`, or `max_excluded=5`.
The command line prints the flag instead: the running command's own, or else that of the command
that has one.
"""

from __future__ import annotations

import importlib
import re

import click

FLAGS: dict[str, tuple[str, str]] = {  # option -> a command that has it, its flag
    "adapter": ("onnx", "--adapter"),
    "adapter_layernorm": ("onnx", "--adapter-layernorm"),
    "adapter_scale": ("onnx", "--adapter-scale"),
    "allow_slow": ("parity", "--allow-slow"),
    "any_space": ("parity", "--any-space"),
    "base": ("onnx", "--base"),
    "batch": ("trt", "--batch"),
    "best": ("trt", "--best"),
    "builder_level": ("trt", "--builder-level"),
    "bundle": ("search", "--bundle"),
    "calibration": ("quantize", "--calibration"),
    "caption_column": ("parity", "--caption-column"),
    "columns": ("embed", "--columns"),
    "confidence": ("parity", "--confidence"),
    "data": ("parity", "--data"),
    "device": ("parity", "--device"),
    "dialects": ("quantize", "--dialect"),
    "dtype": ("embed", "--dtype"),
    "ema": ("onnx", "--ema"),
    "executor": ("embed", "--engine"),
    "ffn_option": ("onnx", "--ffn-option"),
    "force": ("onnx", "--force"),
    "format": ("embed", "--format"),
    "graphs": ("parity", "--graph"),
    "hardware_compatible": ("trt", "--hardware-compatible"),
    "heads": ("onnx", "--heads"),
    "held_back": ("quantize", "--held-back"),
    "id_column": ("embed", "--id-column"),
    "ignore": ("onnx", "--ignore"),
    "image": ("search", "--image"),
    "image_column": ("parity", "--image-column"),
    "image_id_column": ("parity", "--image-id-column"),
    "image_root": ("embed", "--image-root"),
    "image_size": ("onnx", "--image-size"),
    "images": ("parity", "--images"),
    "input": ("onnx", "--input"),
    "keep": ("quantize", "--keep"),
    "layers": ("parity", "--layers"),
    "lengths": ("trt", "--lengths"),
    "limit": ("embed", "--limit"),
    "max_errors": ("embed", "--max-errors"),
    "max_excluded": ("parity", "--max-excluded"),
    "max_length": ("onnx", "--max-length"),
    "max_recall_drop": ("parity", "--max-recall-drop"),
    "method": ("quantize", "--method"),
    "min_cosine": ("parity", "--min-cosine"),
    "model_key": ("onnx", "--model-key"),
    "model_prefix": ("onnx", "--model-prefix"),
    "no_merge": ("onnx", "--no-merge"),
    "no_speed_gate": ("trt", "--no-speed-gate"),
    "peers": ("bench", "--peers"),
    "percentile": ("quantize", "--percentile"),
    "points": ("quantize", "--points"),
    "precision": ("parity", "--precision"),
    "ray_actors": ("embed", "--ray-actors"),
    "ray_address": ("embed", "--ray-address"),
    "ray_cpus": ("embed", "--ray-cpus"),
    "ray_gpus": ("embed", "--ray-gpus"),
    "rebuild": ("trt", "--rebuild"),
    "reference": ("parity", "--reference"),
    "refit": ("trt", "--refit"),
    "rounding": ("quantize", "--rounding"),
    "rounds": ("bench", "--rounds"),
    "runtime": ("parity", "--runtime"),
    "samples": ("quantize", "--samples"),
    "seed": ("parity", "--seed"),
    "shard": ("embed", "--shard"),
    "shard_size": ("embed", "--shard-size"),
    "split": ("parity", "--split"),
    "text_column": ("embed", "--text-column"),
    "texts": ("embed", "--texts"),
    "threads": ("parity", "--threads"),
    "timing_cache": ("trt", "--timing-cache"),
    "tokenizer": ("onnx", "--tokenizer"),
    "towers": ("onnx", "--towers"),
    "verify": ("embed", "--verify"),
    "version_compatible": ("trt", "--version-compatible"),
    "where": ("search", "--in"),
    "workers": ("embed", "--workers"),
    "workspace": ("trt", "--workspace"),
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
            name = _from(owner, name)
        return name if value is None else f"{name} {value}"

    def _from(owner: str, name: str) -> str:
        return name if command in (None, owner) or owner in named else f"mwa-export {owner} {name}"

    return _OPTION.sub(flag, text)


def flags_of(name: str) -> set[str]:
    """All flags of a command."""
    command: click.Command = importlib.import_module(f"mwa_export.cli.{name}_cmd").command
    return {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
