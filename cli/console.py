"""Terminal output: steps with their times, tables, warnings, next steps. Only this uses rich."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from mwa_export.cli.flags import with_flags
from mwa_export.cli.waiting import waiting
from mwa_export.data.addresses import public
from mwa_export.errors import MwaExportError
from mwa_export.optional import installed
from mwa_export.progress import Progress, Silent

F = TypeVar("F", bound=Callable[..., Any])

PATIENCE = 0.3  # seconds without output
_NARROWEST = 40  # columns of a table; fewer show blanks
_quiet = _verbose = False
running: str | None = None
"""Name of the running command, whose flags messages use."""


def is_verbose() -> bool:
    """Whether -v was given."""
    return _verbose


def verbosity(command: F) -> F:
    """Add -v and -q to a command."""

    def set_verbose(_context: Any, _option: Any, value: bool) -> None:
        global _verbose
        _verbose = value
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
        (("-v", "--verbose"), set_verbose, "Show details and debug messages."),
        (("-q", "--quiet"), set_quiet, "Show results and errors only."),
    ):
        command = click.option(
            *names, is_flag=True, expose_value=False, callback=callback, help=words
        )(command)
    return command


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def say(text: str) -> None:
    """Print a line on stderr unless -q is given. Stdout is for results."""
    if not _quiet:
        click.echo(words(text), err=True)


def next_step(*arguments: object) -> None:
    """Print the command that usually follows on stderr, quoted for a shell.

    Names in capitals are for the user to fill in.
    """
    if not _quiet:
        command = shlex.join(["mwa-export", *map(_argument, arguments)])
        click.echo(f"Next: {printable(public(command))}", err=True)


def _argument(value: object) -> str:
    """An argument of a command; a path that looks like an option gets a leading ./."""
    text = str(value)
    return f"./{text}" if isinstance(value, Path) and text.startswith("-") else text


def next_embed(bundle: Path, images: object = "FOLDER", out: object = "vectors") -> None:
    """Print how to embed with a bundle, by what it takes and what is installed."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    how = () if installed("pyarrow") else ("--format", "npy")
    if any(graph["tower"] == "vision" for graph in manifest["graphs"]):
        next_step("embed", bundle, "--images", images, *how, "-o", out)
    elif manifest["tokenizer"] is not None:
        next_step("embed", bundle, "--texts", "FILE", *how, "-o", out)


def next_parity(
    bundle: Path, reference: object, runtime: str, precision: str, *more: object
) -> None:
    """Print how to measure the recall of a bundle's graphs or engines."""
    how = ("--runtime", runtime, "--precision", precision, *more)
    next_step("parity", bundle, "--reference", reference, *how, "--data", "DATA")


def show_page(page: Path, *, open_it: bool, label: str = "") -> None:
    """Print where a report is on stdout, and open it in the browser if that was asked for."""
    click.echo(f"{label}{page}")
    if open_it:
        open_in_browser(page)


def open_in_browser(page: Path) -> None:
    """Open a page in the browser, or say that there is none."""
    import webbrowser

    displays = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    # Without a display, Python would start a browser that runs in the terminal.
    there = sys.platform in ("win32", "darwin") or any(map(os.environ.get, displays))
    try:
        opened = there and webbrowser.open(page.resolve().as_uri())
    except (OSError, webbrowser.Error):
        opened = False
    if not opened:
        say(f"no browser could be opened; the report is {page}")


def warn(*texts: str) -> None:
    """Print warnings on stderr, also with -q."""
    for text in texts:
        click.echo(f"warning: {_in_one_line(words(text))}", err=True)


def fail(error: MwaExportError) -> None:
    """Print an error on stderr."""
    click.echo(f"error: {_in_one_line(words(str(error)))}", err=True)


def last_words(text: str) -> None:
    """Print how a run ended on stderr, ignoring a second interrupt."""
    with suppress(KeyboardInterrupt):
        click.echo(text, err=True)


def _in_one_line(text: str) -> str:
    return text.replace("\n", "\\n")


def words(text: str) -> str:
    """Translate a message of the library for the command line: options become flags.

    Passwords and signatures in URLs are removed once more, because terminals are often logged.
    """
    return printable(public(with_flags(text, running) if "`" in text else text))


def printable(text: str) -> str:
    """Escape characters that move the cursor or change the direction of text."""
    return _UNPRINTABLE.sub(
        lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text
    )


_UNPRINTABLE = re.compile(  # control characters but the line feed, and those of direction
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class Steps:
    """Steps on a terminal: the running one with its progress, the finished ones with their time."""

    def __init__(self, console: Any, status: Any) -> None:
        self._console, self._status = console, status
        self._text, self._start = "", 0.0
        self._total: int | None = None
        self._done = 0

    def __call__(self, text: str, total: int | None = None) -> None:
        self._end_step()
        self._text, self._total, self._done = _in_one_line(printable(text)), total, 0
        self._start = time.perf_counter()
        waiting.show(self._text, after=PATIENCE)
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
        """Print what is running as done."""
        self._end_step()

    def _end_step(self) -> None:
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
def steps(display: Callable[[Any, Any], Steps] = Steps) -> Iterator[Progress]:
    """Yield a display of steps: the running one with its progress, finished ones with times."""
    if _quiet:
        yield Silent()
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with _status(console) as line:
        shown = display(console, line)
        yield shown
        shown.finish()


@contextmanager
def status() -> Iterator[Any]:
    """Yield a line on the terminal that can be updated; None with -q or without a terminal."""
    if _quiet or not moving():
        yield None
        return
    from rich.console import Console

    with _status(Console(stderr=True, highlight=False, markup=False)) as line:
        yield line


@contextmanager
def _status(console: Any) -> Iterator[Any]:
    """Yield a spinner with text; without a terminal one that shows nothing."""
    if not moving():
        yield _NoStatus()
        return
    waiting.end()
    with console.status("") as line:
        yield line


class _NoStatus:
    def update(self, _text: str) -> None:
        return


def moving() -> bool:
    """Whether stderr can show lines that change. FORCE_COLOR makes no terminal of a file."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def clock(seconds: float) -> str:
    """Format a duration."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def escape(text: str) -> str:
    """Escape brackets for rich."""
    return text.replace("[", "\\[")


def columns() -> int:
    """Width of paragraphs: that of the terminal, 80 at most."""
    return max(_NARROWEST, min(80, shutil.get_terminal_size().columns))


def paragraph(text: str) -> None:
    """Print sentences on stdout in lines that do not break inside a word, such as `mwa-export`."""
    width = columns()
    click.echo(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False))


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
