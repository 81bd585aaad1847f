"""The `mwa-export` command: subcommands that load when they run."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import NoReturn

import click
from click.shell_completion import shell_complete

from mwa_export.cli import console
from mwa_export.cli.ending import open_closed_streams, run_as_process
from mwa_export.cli.values import TEXT
from mwa_export.version import __version__

_COMMANDS = {  # name -> what `mwa-export --help` says; the modules stay unloaded until they run
    "bench": "Measure speed beside PyTorch and a plain ONNX export.",
    "demo": "Run the full pipeline on a small trained model that ships with the package.",
    "doctor": "Show what this machine can run and what to install.",
    "embed": "Embed millions of pictures and texts, with every row accounted for.",
    "inspect": "Show what a checkpoint or a bundle holds: model, adapters, options, parameters.",
    "onnx": "Export a checkpoint to a verified ONNX bundle.",
    "parity": "Check a bundle's recall against its checkpoint, with a report and gates.",
    "quantize": "Add INT8 graphs to a bundle: calibrate, search precisions, check recall.",
    "refit": "Put another adapter into the engines of a bundle, without building them again.",
    "search": "Find the embedded rows that are most like a text or a picture.",
    "split": "Write what training added to a base checkpoint to an adapter file.",
    "trt": "Add TensorRT engines to a bundle, for the GPU of this machine.",
}


class _LazyGroup(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        console.running = name
        return name, command, rest

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"mwa_export.cli.{cmd_name}_cmd").command
        for parameter in command.params:
            if parameter.type is click.STRING and parameter.default != "":
                parameter.type = TEXT
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Exit status: 0 done, 1 a check failed, 2 wrong use or bad input, 70 a bug, "
    "128 + N ended by signal N, 141 when the reader of the output has gone away.",
)
@click.version_option(__version__, prog_name="mwa-export")
def cli() -> None:
    """Take trained BEiT-3 and MultiWay-Adapter retrieval models into production.

    A checkpoint becomes a bundle (`mwa-export onnx`), and every other command reads or adds to a
    bundle. See the full pipeline in two minutes: `mwa-export demo`.
    """


def main() -> NoReturn:
    """Run the command line."""
    open_closed_streams()
    _take_names_as_utf8()
    # What Pillow warns of costs nothing: a picture is decoded, or it is an error with a reason.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    sys.exit(run_as_process(_run))


def _take_names_as_utf8() -> None:
    """Start again in UTF-8 mode if the locale has another encoding.

    Runtimes and Parquet take file names as UTF-8, whatever the locale is, and ids of rows must not
    depend on it. Python 3.15 does so by default. What the terminal gets stays in its encoding.
    """
    if os.name == "posix" and sys.getfilesystemencoding() != "utf-8":
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _run() -> int:
    """Run the command, without what `click.Group.main` makes of a closed pipe and of EOFError."""
    if instruction := os.environ.get(_COMPLETE):
        return shell_complete(cli, {}, "mwa-export", _COMPLETE, instruction)
    with cli.make_context("mwa-export", sys.argv[1:]) as context:
        cli.invoke(context)
    return 0


_COMPLETE = "_MWA_EXPORT_COMPLETE"  # where a shell asks for completions
