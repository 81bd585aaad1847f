"""What people see: steps with their times, tables, warnings. The only place that uses rich."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_quiet = False


def verbosity(command: F) -> F:
    """Add -v and -q to a command."""

    def set_verbose(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        logging.basicConfig(
            level=logging.DEBUG if value else logging.WARNING,
            format="%(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        if value:
            logging.getLogger("mwa_export").setLevel(logging.DEBUG)

    def set_quiet(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        global _quiet
        _quiet = value

    command = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=set_verbose,
        help="Show debug messages.",
    )(command)
    return click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=set_quiet,
        help="Print results and errors only.",
    )(command)


def say(text: str) -> None:
    """A line for people, on stderr, so that stdout carries results only."""
    if not _quiet:
        click.echo(text, err=True)


def warn(text: str) -> None:
    """A warning, on stderr, also with -q."""
    click.echo(f"warning: {text}", err=True)


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Yield a callback for the start of each step; shows it, and its time when it is over."""
    if _quiet:
        yield lambda _text: None
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    status = console.status("")
    running: list[tuple[str, float]] = []

    def finish() -> None:
        if running:
            text, start = running.pop()
            console.print(
                f"  {text}  [dim]{time.perf_counter() - start:.1f} s[/dim]", soft_wrap=True
            )

    def step(text: str) -> None:
        finish()
        running.append((text, time.perf_counter()))
        status.update(f"{text} ...")

    with status:
        yield step
        finish()


def table(
    rows: Sequence[Sequence[str]], header: Sequence[str] | None = None, *, title: str | None = None
) -> None:
    """Print a table on stdout; columns after the first are right-aligned if there is a header."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    output = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        show_header=header is not None,
        box=box.SIMPLE_HEAD if header is not None else None,
        pad_edge=False,
    )
    for index, name in enumerate(header or [""] * len(rows[0])):
        numeric = header is not None and index > 0
        output.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        output.add_row(*row)
    Console(highlight=False, markup=False).print(output)
