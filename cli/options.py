"""Command-line options that several commands share, and what they build."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from mwa_export.cli.flags import PATH, Real, Whole

if TYPE_CHECKING:
    from mwa_export.data.test_set import RetrievalData
    from mwa_export.encoder.open import CheckpointOptions
    from mwa_export.model.checkpoint import ReadOptions
    from mwa_export.model.load import ModelSource
    from mwa_export.model.options import ModelOptions
    from mwa_export.runtimes.options import RuntimeOptions

F = TypeVar("F", bound=Callable[..., Any])


def device_option(command: F) -> F:
    """Add --device, the GPU to use."""
    kind = Whole(min=0)
    return click.option(
        "--device",
        type=kind,
        default=0,
        show_default=True,
        help="GPU number, for TensorRT and CUDA.",
    )(command)


_RUNTIMES = click.Choice(["auto", "onnxruntime", "openvino", "cuda", "tensorrt"])
_PRECISIONS = click.Choice(["auto", "float32", "bfloat16", "float16", "int8", "float8"])


def runtime_options(runtime: str = "auto", precision: str = "auto") -> Callable[[F], F]:
    """Options for what a bundle runs on, as the parameter ``runtime``, a `RuntimeOptions`.

    Args:
        runtime: default of --runtime.
        precision: default of --precision.
    """
    names = ("runtime", "precision", "threads", "allow_slow", "device")
    options: list[Callable[[Any], Any]] = [
        click.option(
            "--runtime",
            type=_RUNTIMES,
            default=runtime,
            show_default=True,
            help="Runtime for the bundle.",
        ),
        click.option(
            "--precision",
            type=_PRECISIONS,
            default=precision,
            show_default=True,
            help="Precision of the bundle's graphs. auto: the fastest on this machine.",
        ),
        click.option("--threads", type=Whole(min=1), help="CPU threads. Default: all cores."),
        click.option(
            "--allow-slow",
            is_flag=True,
            help="Allow precisions that are slower than float32 on this CPU, such as INT8.",
        ),
        device_option,
    ]

    def decorate(command: F) -> F:
        @wraps(command)
        def with_runtime(**values: Any) -> Any:
            from mwa_export.runtimes.options import RuntimeOptions

            chosen: RuntimeOptions = RuntimeOptions(**{name: values.pop(name) for name in names})
            return command(runtime=chosen, **values)

        result: Any = with_runtime
        for option in reversed(options):
            result = option(result)
        return cast("F", result)

    return decorate


@dataclass(frozen=True, slots=True)
class DataSet:
    """Test set named on the command line, not read yet."""

    path: str | None
    how: Mapping[str, Any]  # fields of DataOptions

    def read(self) -> RetrievalData | None:
        """Read the test set; None if none is named."""
        if self.path is None:
            return None
        from mwa_export.data.test_sets import DataOptions, read_data

        return read_data(self.path, DataOptions(**self.how))


_COLUMNS = (
    click.option("--image-column", metavar="NAME", help="Column of a table with the images."),
    click.option("--caption-column", metavar="NAME", help="Column of a table with the captions."),
    click.option("--image-id-column", metavar="NAME", help="Column of a table with image ids."),
    click.option(
        "--max-excluded",
        type=Whole(min=0),
        default=0,
        show_default=True,
        help="How many images may be missing or unreadable. They are listed, and left out with "
        "their captions.",
    ),
)
_HOW = ("image_column", "caption_column", "image_id_column", "max_excluded")


def data_options(
    what: str, *, required: bool = False, held_back: str | None = None
) -> Callable[[F], F]:
    """Options for --data and how it is read, as the parameter ``data``, a `DataSet`.

    Args:
        what: help of --data.
        required: whether the command needs --data.
        held_back: help of --held-back, which is read with the same columns and becomes the
            parameter ``held_back``; None: there is no such option.
    """
    sets = {"data": ("--data", "--", what)}
    if held_back is not None:
        sets["held_back"] = ("--held-back", "--held-back-", held_back)
    options: list[Callable[[Any], Any]] = []
    for name, (flag, prefix, words) in sets.items():
        images = f"Folder with the images of {flag}. Default: next to it."
        split = f"Split of {flag}. Default: test, for a Karpathy JSON."
        options += [
            click.option(flag, name, metavar="DATA", required=required, help=words),
            click.option(f"{prefix}images", f"{name}_images", metavar="FOLDER", help=images),
            click.option(f"{prefix}split", f"{name}_split", metavar="NAME", help=split),
        ]

    def decorate(command: F) -> F:
        @wraps(command)
        def with_data(**values: Any) -> Any:
            how = {name: values.pop(name) for name in _HOW}
            stray = "" if any(values[name] for name in sets) or not any(how.values()) else "--data"
            for name, (flag, *_) in sets.items():
                own = {key: values.pop(f"{name}_{key}") for key in ("images", "split")}
                values[name] = DataSet(values[name], how | own)
                stray = flag if values[name].path is None and any(own.values()) else stray
            if stray:
                from mwa_export.errors import UsageError

                raise UsageError(f"options for {stray} were given without it. Pass {stray} too.")
            return command(**values)

        result: Any = with_data
        for option in reversed((*options, *_COLUMNS)):
            result = option(result)
        return cast("F", result)

    return decorate


_READING = (
    click.option("--ema", is_flag=True, help="Use the moving average of the weights (model_ema)."),
    click.option("--model-key", metavar="KEY", help="Entry of the file that holds the weights."),
    click.option(
        "--model-prefix",
        metavar="PREFIX",
        default="",
        show_default=False,
        help="Use only tensors whose names start with this prefix, and strip it.",
    ),
    click.option(
        "--ignore",
        multiple=True,
        metavar="PATTERN",
        help='Leave out tensors that only training needs, such as "criterion.*". Repeatable.',
    ),
    click.option(
        "--adapter-scale", type=Real(), help="ffn_adapter_scalar, if the file does not store it."
    ),
    click.option(
        "--adapter-layernorm",
        type=click.Choice(["none", "in", "out"]),
        help="ffn_adapter_layernorm_option, if the file does not store it.",
    ),
    click.option(
        "--ffn-option",
        type=click.Choice(["parallel", "sequential"]),
        help="ffn_option, if the file does not store it.",
    ),
)
READING = (
    *("ema", "model_key", "model_prefix", "ignore"),
    *("adapter_scale", "adapter_layernorm", "ffn_option"),
)
"""Parameters of `reading_options`."""
heads_option = click.option(
    "--heads",
    type=Whole(min=1),
    help="Attention heads. Default: as stored, or as in a BEiT-3 of this width.",
)
_SHAPE = (
    click.option(
        "--image-size",
        type=Whole(min=1),
        help="Image size in pixels; position embeddings are interpolated. Default: input_size of "
        "training.",
    ),
    click.option(
        "--max-length",
        type=Whole(min=1),
        help="Maximum tokens per text. Default: num_max_bpe_tokens of training, or 64.",
    ),
    heads_option,
    click.option(
        "--towers",
        type=click.Choice(["both", "vision", "text"]),
        default=None,
        help="Towers to export. Default: all that the checkpoint has.",
    ),
)


def reading_options(command: F) -> F:
    """Add the options that say how to read a checkpoint, such as --ema and --ignore."""
    for decorator in reversed(_READING):
        command = decorator(command)
    return command


def model_options(command: F, metavar: str | None = None) -> F:
    """Add CHECKPOINT, --base, --adapter and the options of `reading_options`.

    ``metavar``: shown in the usage line instead of CHECKPOINT.
    """
    for decorator in reversed(
        (
            click.argument("checkpoint", type=PATH, required=False, metavar=metavar),
            click.option("--base", type=PATH, help="Checkpoint that the adapter was trained from."),
            click.option("--adapter", type=PATH, help="Adapter file, as written by `split`."),
            *_READING,
        )
    ):
        command = decorator(command)
    return command


def shape_options(command: F) -> F:
    """Add --image-size, --max-length, --heads and --towers: the shape of the exported model."""
    for decorator in reversed(_SHAPE):
        command = decorator(command)
    return command


def claim_folder(out: Path, *, marker: str, force: bool) -> None:
    """Check the name of a new folder, and hold it until the command ends.

    Raises:
        BundleError: as `check_new_folder`.
        OutputBusyError: another run works for the same name.
    """
    from mwa_export.files import check_new_folder, locked

    check_new_folder(out, marker=marker, force=force)
    if out.parent.is_dir():  # else it is made together with the folder
        lock = locked(out.with_name(f".{out.name}.lock"), of=out, passing=True)
        click.get_current_context().with_resource(lock)


def output_folder(out: Path | None, of: Path, kind: str, *, marker: str, force: bool) -> Path:
    """Claim the folder of -o, or else a free one in the current folder, named after its input.

    The default is INPUT-KIND, then INPUT-KIND-2 and so on; with --force the first is replaced. In
    a bundle or an output of `embed` it goes beside that.
    """
    if out is not None:
        claim_folder(out, marker=marker, force=force)
        return out
    from mwa_export.errors import OutputBusyError

    here = Path()
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "manifest.json").is_file():
            here = folder.parent
    base = f"{of.resolve().name.removesuffix('.npy')}{'-' if kind else ''}{kind}"
    for number in itertools.count(1):
        out = here / (base if number == 1 else f"{base}-{number}")
        if force or not os.path.lexists(out):
            try:
                claim_folder(out, marker=marker, force=force)
            except OutputBusyError:
                if force:
                    raise
            else:
                return out
    raise AssertionError("unreachable")


open_option = click.option(
    "--open", "open_page", is_flag=True, help="Open the report in the browser when it is done."
)


def source_from(values: dict[str, Any]) -> ModelSource:
    """Take the file options out of a command's parameters."""
    from mwa_export.model.load import ModelSource

    files = {name: values.pop(name) for name in ("checkpoint", "base", "adapter")}
    return ModelSource(**files, read=_read_options_from(values))


def _read_options_from(values: dict[str, Any]) -> ReadOptions:
    from mwa_export.model.checkpoint import ReadOptions

    names = ("ema", "model_key", "model_prefix", "ignore")
    return ReadOptions(**{name: values.pop(name) for name in names})


def checkpoint_options_from(values: dict[str, Any]) -> CheckpointOptions:
    """Take the options for reading a reference out of a command's parameters."""
    from mwa_export.encoder.open import CheckpointOptions

    read, adapter = _read_options_from(values), values.pop("adapter")
    return CheckpointOptions(adapter, read, model_options_from(values))


def model_options_from(values: dict[str, Any]) -> ModelOptions:
    """Take the model options out of a command's parameters."""
    from mwa_export.model.options import ModelOptions
    from mwa_export.spec import TOWERS

    given = {f.name: values.pop(f.name) for f in fields(ModelOptions) if f.name in values}
    if (towers := given.get("towers")) is not None:
        given["towers"] = TOWERS if towers == "both" else (towers,)
    return ModelOptions(**given)
