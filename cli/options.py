"""Command-line options that several commands share, and what they build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mwa_export.encoder.open import CheckpointOptions
    from mwa_export.model.load import ModelSource
    from mwa_export.model.state_dict import AdapterOptions

F = TypeVar("F", bound=Callable[..., Any])

PATH: Any = click.Path(path_type=Path)


RUNTIMES = click.Choice(["auto", "onnxruntime", "openvino", "cuda", "tensorrt"])


def device_option(command: F) -> F:
    """--device: which GPU."""
    kind = click.IntRange(min=0)
    return click.option(
        "--device", type=kind, default=0, show_default=True, help="GPU, for TensorRT and CUDA."
    )(command)


_READING = (
    click.option("--ema", is_flag=True, help="Take the moving average (model_ema)."),
    click.option(
        "--adapter-scale", type=float, help="ffn_adapter_scalar, where the file does not say."
    ),
    click.option(
        "--adapter-layernorm",
        type=click.Choice(["none", "in", "out"]),
        help="ffn_adapter_layernorm_option, where the file does not say.",
    ),
    click.option(
        "--ffn-option",
        type=click.Choice(["parallel", "sequential"]),
        help="ffn_option, where the file does not say.",
    ),
    click.option(
        "--trust-pickle",
        is_flag=True,
        help="Allow any pickled type. This can run code: only for files you made.",
    ),
)


def reading_options(command: F) -> F:
    """--ema, --trust-pickle and the adapter options: how to read a checkpoint."""
    for decorator in reversed(_READING):
        command = decorator(command)
    return command


def model_options(command: F) -> F:
    """CHECKPOINT, --base, --adapter and the options of `reading_options`."""
    for decorator in reversed(
        (
            click.argument("checkpoint", type=PATH, required=False),
            click.option("--base", type=PATH, help="Base checkpoint, together with --adapter."),
            click.option("--adapter", type=PATH, help="Adapter file, as written by `split`."),
            *_READING,
        )
    ):
        command = decorator(command)
    return command


def source_from(values: dict[str, Any]) -> ModelSource:
    """Take the file options out of a command's parameters."""
    from mwa_export.model.load import ModelSource

    names = ("checkpoint", "base", "adapter", "ema", "trust_pickle")
    return ModelSource(**{name: values.pop(name) for name in names})


def checkpoint_options_from(values: dict[str, Any]) -> CheckpointOptions:
    """Take the options for reading a reference out of a command's parameters."""
    from mwa_export.encoder.open import CheckpointOptions

    options = adapter_options_from(values)
    names = ("adapter", "ema", "trust_pickle")
    return CheckpointOptions(**{name: values.pop(name) for name in names}, options=options)


def adapter_options_from(values: dict[str, Any]) -> AdapterOptions:
    """Take the adapter options out of a command's parameters."""
    from mwa_export.model.state_dict import AdapterOptions

    return AdapterOptions(
        adapter_scale=values.pop("adapter_scale"),
        adapter_layernorm=values.pop("adapter_layernorm"),
        ffn_option=values.pop("ffn_option"),
    )
