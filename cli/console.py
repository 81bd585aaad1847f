"""Terminal output: steps with their times, tables, warnings. The only place that uses rich."""

from __future__ import annotations

import logging
import re
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import click

from mwa_export.cli.flags import with_flags
from mwa_export.data.addresses import public
from mwa_export.errors import MwaExportError
from mwa_export.progress import Progress, Silent

F = TypeVar("F", bound=Callable[..., Any])

_NARROWEST = 40  # columns of a table; fewer show blanks
_quiet = False
running: str | None = None
"""Name of the command that runs, whose flags messages use."""


def verbosity(command: F) -> F:
    """Add -v and -q to a command."""

    def set_verbose(_context: Any, _option: Any, value: bool) -> None:
        handler = logging.StreamHandler()
        handler.setFormatter(_Printable("%(levelname)s %(name)s: %(message)s"))
        # Debug messages of others hold signed URLs.
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        if value:
            logging.getLogger("mwa_export").setLevel(logging.DEBUG)

    def set_quiet(_context: Any, _option: Any, value: bool) -> None:
        global _quiet
        _quiet = value

    for names, callback, words in (
        (("-v", "--verbose"), set_verbose, "Show debug messages."),
        (("-q", "--quiet"), set_quiet, "Print results and errors only."),
    ):
        command = click.option(
            *names, is_flag=True, expose_value=False, callback=callback, help=words
        )(command)
    return command


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def say(text: str) -> None:
    """A line for people, on stderr, so that stdout carries results only."""
    if not _quiet:
        click.echo(words(text), err=True)


def warn(*texts: str) -> None:
    """Print warnings on stderr, also with -q."""
    for text in texts:
        click.echo(f"warning: {_in_one_line(words(text))}", err=True)


def fail(error: MwaExportError) -> None:
    """Print an error on stderr."""
    click.echo(f"error: {_in_one_line(words(str(error)))}", err=True)


def last_words(text: str) -> None:
    """Print how a run was ended on stderr, if that is still there."""
    with suppress(KeyboardInterrupt):
        click.echo(text, err=True)


def _in_one_line(text: str) -> str:
    return text.replace("\n", "\\n")


def words(text: str) -> str:
    """A message of the library in the words of the command line: options become flags.

    Passwords and signatures of URLs are left out once more: terminals are often logged.
    """
    return printable(public(with_flags(text, running) if "`" in text else text))


def printable(text: str) -> str:
    """Text that may quote names out of files, with what moves a cursor or turns lines escaped."""
    return _UNPRINTABLE.sub(
        lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text
    )


_UNPRINTABLE = re.compile(  # control characters but the line feed, and those of direction
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class _Steps:
    """Steps on a terminal: the running one with its progress, the finished ones with their time."""

    def __init__(self, console: Any, status: Any) -> None:
        self._console, self._status = console, status
        self._text, self._start = "", 0.0
        self._total: int | None = None
        self._done = 0

    def __call__(self, text: str, total: int | None = None) -> None:
        self.finish()
        self._text, self._total, self._done = _in_one_line(printable(text)), total, 0
        self._start = time.perf_counter()
        self._status.update(f"{escape(self._text)} ...")

    def advance(self, rows: int) -> None:
        self._done += rows
        if self._total:
            passed = time.perf_counter() - self._start
            left = passed / max(1, self._done) * max(0, self._total - self._done)
            # The first rows are slow, so an early estimate would only frighten.
            hint = f", {clock(left)} left" if passed > 3 else ""
            self._status.update(
                f"{escape(self._text)}: {self._done:,} of {self._total:,}{hint} ..."
            )

    def finish(self) -> None:
        """Print the running step as done."""
        if self._text:
            seconds = time.perf_counter() - self._start
            rate = ""
            if self._total and seconds > 1:
                rate = f", {self._total / seconds:,.0f} per second"
            self._console.print(
                f"  {escape(self._text)}  [dim]{seconds:.1f} s{rate}[/dim]", soft_wrap=True
            )
            self._text = ""


@contextmanager
def steps() -> Iterator[Progress]:
    """Yield a display of steps; it shows what runs, how far it is, and how long it took."""
    if _quiet:
        yield Silent()
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with console.status("") as status:
        display = _Steps(console, status)
        yield display
        display.finish()


@contextmanager
def status() -> Iterator[Any]:
    """Yield a line on the terminal that can be updated; None with -q or where no terminal is."""
    from rich.console import Console

    terminal = Console(stderr=True, highlight=False, markup=False)
    if _quiet or not terminal.is_terminal:
        yield None
        return
    with terminal.status("") as line:
        yield line


def clock(seconds: float) -> str:
    """A duration, for people."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def escape(text: str) -> str:
    """Text that may hold brackets, for rich."""
    return text.replace("[", "\\[")


def paragraph(text: str) -> None:
    """Print sentences on stdout, in lines of 80 characters."""
    click.echo(textwrap.fill(text, 80))


def table(
    rows: Sequence[Sequence[str]], header: Sequence[str] | None = None, *, title: str | None = None
) -> None:
    """Print a table, if it has rows; below a header all columns but the first are right-aligned."""
    if not rows:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    output = Table(
        title=None if title is None else _in_one_line(printable(title)),
        title_justify="left",
        title_style="bold",
        show_header=header is not None,
        box=box.SIMPLE_HEAD if header is not None else None,
        pad_edge=False,
    )
    for index, name in enumerate(header or [""] * len(rows[0])):
        numeric = header is not None and index > 0
        output.add_column(
            _in_one_line(printable(name)), justify="right" if numeric else "left", overflow="fold"
        )
    for row in rows:
        output.add_row(*(_in_one_line(printable(cell)) for cell in row))
    terminal = Console(highlight=False, markup=False, emoji=False)
    terminal.width = max(terminal.width, _NARROWEST)
    terminal.print(output)
