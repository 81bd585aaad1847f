"""Options of the command line: types of their values, their sections in help, flags in messages.

The library calls an option by its Python name in backticks: `max_excluded`, or `max_excluded=5`.
The command line prints the flag instead: the running command's own, or else that of the command
that has one. A name alone may be a field of a file, so it becomes the flag of another command only
in a message that names that command.
"""

from __future__ import annotations

import importlib
import math
import re
import shlex
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_MOST = 2**31 - 1  # largest whole number that an option takes


class Whole(click.IntRange):
    """A whole number."""

    name = "integer"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        number: int = super().convert(value, param, ctx)
        if abs(number) > _MOST:
            self.fail(f"{value} is above {_MOST}.", param, ctx)
        return number


class Real(click.FloatRange):
    """A finite number."""

    name = "number"

    def _describe_range(self) -> str:
        unbounded = self.min is None and self.max is None
        return "" if unbounded else super()._describe_range()

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class _Capabilities(click.types.StringParamType):
    """Compute capabilities of GPUs, such as "86,89,120" or "8.6,8.9", sorted and unique."""

    name = "list"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        found: set[tuple[int, int]] = set()
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*(?:sm_?)?([0-9]{1,2})\.?([0-9])\s*", part, re.IGNORECASE)
            if match is None:
                self.fail(f"{part!r} is not a compute capability. Write 86 or 8.6.", param, ctx)
            if int(match[1]) < 5:  # 12 is 1.2, older than any that TensorRT knows
                meant = f" Did you mean {part.strip()}0?" if len(match[1] + match[2]) == 2 else ""
                self.fail(f"no RTX card has {part.strip()}.{meant}", param, ctx)
            found.add((int(match[1]), int(match[2])))
        return tuple(sorted(found))


CAPABILITIES = _Capabilities()


class _Text(click.types.StringParamType):
    """Text that is not blank."""

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        if not str(value).strip():
            self.fail("it is empty. Pass a value, or leave the option out.", param, ctx)
        return str(super().convert(value, param, ctx))


class _File(click.Path):
    """Path that is not empty, which would mean the current folder."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not str(value) or "\0" in str(value):
            self.fail("it is empty or has a NUL character. Expected a path.", param, ctx)
        return super().convert(value, param, ctx)


PATH: Any = _File(path_type=Path)
TEXT: Any = _Text()


def refuse(names: Collection[str], why: str) -> None:
    """Refuse options that were given but would have no effect."""
    context = click.get_current_context()
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in names and source is ParameterSource.COMMANDLINE:
            name = option.human_readable_name.upper()
            if isinstance(option, click.Option):
                name = max(option.opts, key=len)
            raise click.UsageError(f"{name} {why}")


def given(names: Collection[str]) -> list[str]:
    """Arguments that give those of the options again that the running command was given."""
    context = click.get_current_context()
    found = []
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name not in names or source is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[option.name]
        flag = [] if isinstance(option, click.Argument) else [max(option.opts, key=len)]
        for each in value if isinstance(value, tuple) else (value,):
            found += flag if each is True else [*flag, str(each)]
    return found


def options_of(kind: type[T], values: dict[str, Any], **given: Any) -> T:
    """Build an options object from the ``values`` named like its fields, and remove them.

    ``given``: fields whose name or form differs on the command line.
    """
    known: Any = kind
    names = [field.name for field in fields(known) if field.name in values]
    return kind(**{name: values.pop(name) for name in names}, **given)


def undecided_option(more: str = "") -> Callable[[F], F]:
    """Add --undecided. ``more``: another sentence of its help."""
    said = "What undecided counts as: exit status 0 or 1 instead of 3."
    kind = click.Choice(["pass", "fail"])
    return click.option("--undecided", type=kind, help=f"{said} {more}".strip())


def recall_drop_option(what: str) -> Callable[[F], F]:
    """Add --max-recall-drop, in points. ``what``: its help."""
    kind = Real(0, 100)
    return click.option("--max-recall-drop", type=kind, default=0.2, metavar="POINTS", help=what)


_SECTIONS = {  # heading in help -> parameters; all others come first, under "Options"
    "Data": "images texts data data_images data_split held_back held_back_images held_back_split "
    "image_column caption_column image_id_column text_column id_column columns image_root split "
    "max_excluded samples limit timeout retries",
    "Checkpoint": "base adapter ema model_key model_prefix ignore adapter_scale adapter_layernorm "
    "ffn_option heads image_size max_length towers",
    "Runtime": "runtime runtimes precision threads allow_slow device",
    "Machines": "workers shard executor engine ray_address ray_actors ray_cpus ray_gpus",
    "Output": "out force open_page as_json html pictures format dtype shard_size faiss log_json",
    "General": "verbose quiet help _click_default_help",
}
_SECTION_OF = {name: heading for heading, names in _SECTIONS.items() for name in names.split()}
_KEPT = {"-": "\N{NON-BREAKING HYPHEN}", " ": "\N{NO-BREAK SPACE}"}


class _Formatter(click.HelpFormatter):
    """Help whose lines do not break inside a name or a command: `mwa-export demo`."""

    def write(self, string: str) -> None:
        for plain, kept in _KEPT.items():
            string = string.replace(kept, plain)
        super().write(string)

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(_whole(prog), _whole(args), prefix)

    def write_text(self, text: str) -> None:
        super().write_text(_whole(text))

    def write_dl(self, rows: Any, col_max: int = 30, col_spacing: int = 2) -> None:
        narrow = min(col_max, self.first_column)
        super().write_dl([(_whole(term), _whole(words)) for term, words in rows], narrow)

    @property
    def first_column(self) -> int:
        """The most columns that terms get; the rest is for the sentences."""
        return min(30, max(10, self.width // 3))


def _whole(text: str) -> str:
    """Replace hyphens, and spaces within backticks, by characters that no line ends at."""
    commands = re.sub(r"`[^`\n]+`", lambda found: found[0].replace(" ", _KEPT[" "]), text)
    return commands.replace("-", _KEPT["-"])


class Context(click.Context):
    """Context of a command whose help uses the whole width of narrow terminals."""

    formatter_class = _Formatter


class Command(click.Command):
    """A command whose help has sections, and examples that fit the terminal."""

    context_class = Context

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Options", *_SECTIONS)}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections[_SECTION_OF.get(param.name or "", "Options")].append(record)
        longest = max(len(term) for records in sections.values() for term, _ in records)
        width = min(longest, getattr(formatter, "first_column", longest))
        for heading, records in sections.items():
            if records:
                (term, words), *others = records
                with formatter.section(heading):
                    formatter.write_dl([(term.ljust(width), words), *others])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = (self.epilog or "").replace("\b\n", "").splitlines()
        formatter.write_paragraph()
        for line in lines:
            formatter.write(f"{folded(line, formatter.width)}\n")


def folded(command: str, width: int) -> str:
    """A shell command in lines of at most ``width`` where it can be, joined by backslashes."""
    indent = command[: len(command) - len(command.lstrip())]
    lines, line = [], indent
    for number, word in enumerate(_shell_words(command)):
        if number and len(line) + len(word) + 3 > width:
            lines.append(f"{line} \\")
            line = f"{indent}    {word}"
        else:
            line += f" {word}" if number else word
    return "\n".join((*lines, line))


def _shell_words(command: str) -> list[str]:
    """Words as they are written, with an option and its value as one."""
    words: list[str] = []
    for word in shlex.split(command, posix=False):
        follows = bool(words) and words[-1].startswith("-") and " " not in words[-1]
        if follows and not word.startswith("-"):
            words[-1] += f" {word}"
        else:
            words.append(word)
    return words


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
ENGINE_HELP = {  # precision of engines, or best -> help of its flag
    "float16": "Build float16 engines; layers whose values overflow float16 stay in float32.",
    "bfloat16": "Build bfloat16 engines, for models whose values overflow float16. Requires "
    "TensorRT 10 and Ampere, or later.",
    "int8": "Build INT8 engines, with float16 where the bundle's calibration has no INT8. Requires "
    "a calibration: run `quantize` first.",
    "float8": "Build float8 (E4M3) engines. Requires a calibration, TensorRT 10 and Ada, or later.",
    "best": "Build every precision, measure speed and, with --data, recall; keep the fastest.",
}


def precision_flags(command: F) -> F:
    """Add a flag for each precision, as separate parameters so that two can be refused."""
    for name, text in reversed(ENGINE_HELP.items()):
        flag = ENGINES.get(name, f"--{name}")
        command = click.option(flag, name, is_flag=True, help=text)(command)
    return command


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
