"""Parameters of commands that the library knows by the same names: an option, and their objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def options_of(kind: type[T], values: dict[str, Any], **given: Any) -> T:
    """An options object of the ``values`` that its fields are named after, which are taken out.

    ``given``: fields that are called or written otherwise on the command line.
    """
    known: Any = kind
    names = [field.name for field in fields(known) if field.name in values]
    return kind(**{name: values.pop(name) for name in names}, **given)


def recall_drop_option(what: str) -> Callable[[F], F]:
    """--max-recall-drop, in points; ``what`` is its help."""
    kind = click.FloatRange(0, 100)
    return click.option("--max-recall-drop", type=kind, default=0.2, metavar="POINTS", help=what)
