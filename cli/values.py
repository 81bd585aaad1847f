"""Values of options: types that refuse what no option can have, and the library's objects."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_MOST = 2**31 - 1  # of a whole number; what counts further is a slip of the hand


class Whole(click.IntRange):
    """A whole number."""

    name = "integer"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        number: int = super().convert(value, param, ctx)
        if abs(number) > _MOST:
            self.fail(f"{value} is beyond {_MOST}.", param, ctx)
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
    """Compute capabilities of GPUs, "86,89,120" or "8.6,8.9", each once and in order."""

    name = "list"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        found: set[tuple[int, int]] = set()
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*(?:sm_?)?([0-9]{1,2})\.?([0-9])\s*", part, re.IGNORECASE)
            if match is None:
                self.fail(f"{part!r} is not a compute capability. Write 86 or 8.6.", param, ctx)
            found.add((int(match[1]), int(match[2])))
        return tuple(sorted(found))


CAPABILITIES = _Capabilities()


class _Text(click.types.StringParamType):
    """Text that is not blank."""

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        if not str(value).strip():
            self.fail("it is empty. Expected a value, or leave the option out.", param, ctx)
        return str(super().convert(value, param, ctx))


class _File(click.Path):
    """A path; an empty one would be the current folder."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not str(value) or "\0" in str(value):
            self.fail("it is empty or has a NUL character. Expected a path.", param, ctx)
        return super().convert(value, param, ctx)


PATH: Any = _File(path_type=Path)
TEXT: Any = _Text()


def refuse(names: Collection[str], why: str) -> None:
    """Refuse options that were given and would not be read."""
    context = click.get_current_context()
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in names and source is ParameterSource.COMMANDLINE:
            name = option.human_readable_name.upper()
            if isinstance(option, click.Option):
                name = max(option.opts, key=len)
            raise click.UsageError(f"{name}: {why}")


def options_of(kind: type[T], values: dict[str, Any], **given: Any) -> T:
    """An options object of the ``values`` that its fields are named after, which are taken out.

    ``given``: fields that are called or written otherwise on the command line.
    """
    known: Any = kind
    names = [field.name for field in fields(known) if field.name in values]
    return kind(**{name: values.pop(name) for name in names}, **given)


def undecided_option(more: str = "") -> Callable[[F], F]:
    """--undecided; ``more``: what else follows."""
    said = "Exit status when the data cannot decide: 0 or 1 instead of 3."
    kind = click.Choice(["pass", "fail"])
    return click.option("--undecided", type=kind, help=f"{said} {more}".strip())


def recall_drop_option(what: str) -> Callable[[F], F]:
    """--max-recall-drop, in points; ``what`` is its help."""
    kind = Real(0, 100)
    return click.option("--max-recall-drop", type=kind, default=0.2, metavar="POINTS", help=what)
