"""The `mwa-export` command: a group whose subcommands load when they run."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from difflib import get_close_matches
from typing import NoReturn

import click
from click.shell_completion import shell_complete

from mwa_export.cli import console
from mwa_export.cli.ending import open_closed_streams, run_as_process
from mwa_export.cli.flags import TEXT, Context
from mwa_export.cli.waiting import waiting
from mwa_export.version import __version__

_SECTIONS = {  # heading -> name -> what `mwa-export --help` says, without loading the command
    "Start here": {
        "demo": "Run the full pipeline on a small trained model that ships with the package.",
        "doctor": "Show what this machine can run and what to install.",
    },
    "Checkpoints": {
        "inspect": "Show what a checkpoint or a bundle contains.",
        "onnx": "Export a checkpoint to a verified ONNX bundle.",
        "split": "Save what training added to a base checkpoint as an adapter file.",
    },
    "Bundles": {
        "parity": "Check the recall of a bundle against its checkpoint.",
        "bench": "Compare the speed of a bundle with PyTorch and a plain ONNX export.",
        "quantize": "Add INT8 graphs that stay within a recall budget to a bundle.",
        "trt": "Add TensorRT engines to a bundle.",
        "refit": "Put another adapter into engines without building them again.",
    },
    "Vectors": {
        "embed": "Embed millions of images and texts, with every row accounted for.",
        "search": "Find the embedded rows most similar to a text or an image.",
    },
}
_COMMANDS = dict(sorted(item for part in _SECTIONS.values() for item in part.items()))


_STATUSES = (
    ("0", "done"),
    ("1", "a check failed"),
    ("2", "wrong use or bad input"),
    ("3", "undecided: too few images to tell"),
    ("70", "a bug in mwa-export"),
    ("128+N", "ended by signal N"),
    ("141", "the reader of the output has gone away"),
)
_COMPLETION = {  # shell -> the line that turns it on
    "bash": 'eval "$(_MWA_EXPORT_COMPLETE=bash_source mwa-export)"',
    "zsh": 'eval "$(_MWA_EXPORT_COMPLETE=zsh_source mwa-export)"',
    "fish": "_MWA_EXPORT_COMPLETE=fish_source mwa-export | source",
}


class _LazyGroup(click.Group):
    context_class = Context

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and args[0] not in _COMMANDS and args[0][:1] != "-":
            meant = get_close_matches(args[0].lower(), _COMMANDS, 1)
            hint = f" Did you mean {meant[0]!r}?" if meant else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        if not ctx.resilient_parsing and not {"-h", "--help"} & {*args}:
            waiting.show("starting", after=console.PATIENCE)
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
        width = max(map(len, _COMMANDS))
        for heading, commands in _SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit status"):
            formatter.write_dl(list(_STATUSES))
        with formatter.section("Shell completion"):
            for shell, line in _COMPLETION.items():
                formatter.write(f"  {shell:<5}{line}\n")


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="mwa-export")
def cli() -> None:
    """Take trained BEiT-3 and MultiWay-Adapter retrieval models into production.

    `mwa-export onnx` exports a checkpoint to a bundle. The other commands check it, make it faster
    and embed with it. See the full pipeline in a minute: `mwa-export demo`.
    """


def main() -> NoReturn:
    """Run the command line."""
    open_closed_streams()
    _take_names_as_utf8()
    # Pillow's warnings add nothing: an image is decoded, or it is an error with a reason.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    sys.exit(run_as_process(_run))


def _take_names_as_utf8() -> None:
    """Start again in UTF-8 mode if the locale has another encoding.

    Runtimes and Parquet take file names as UTF-8 in every locale, and ids of rows must not depend
    on the locale. Python 3.15 does this by default. The terminal keeps its encoding.
    """
    if os.name == "posix" and sys.getfilesystemencoding() != "utf-8":
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _run() -> int:
    """Run the command without `click.Group.main`, which hides closed pipes and EOFError."""
    if instruction := os.environ.get(_COMPLETE):
        return shell_complete(cli, {}, "mwa-export", _COMPLETE, instruction)
    with cli.make_context("mwa-export", sys.argv[1:], color=_colour()) as context:
        cli.invoke(context)
    return 0


def _colour() -> bool | None:
    """Whether click writes colours, by the variables that rich follows too; None: on terminals."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return True if os.environ.get("FORCE_COLOR") else None


_COMPLETE = "_MWA_EXPORT_COMPLETE"  # where a shell asks for completions
