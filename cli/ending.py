"""How a command ends: errors, signals and closed streams become exit statuses."""

from __future__ import annotations

import codecs
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable

import click

from mwa_export.cli import console
from mwa_export.cli.waiting import begin, waiting
from mwa_export.errors import MwaExportError, UsageError
from mwa_export.optional import missing_package
from mwa_export.version import __version__

BUG = 70  # EX_SOFTWARE of sysexits.h
NO_READER = 141  # as if SIGPIPE had ended the run
_GONE = (errno.EPIPE, errno.EIO)  # of a pipe, of a terminal that was closed
_PLAIN = {"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{HORIZONTAL ELLIPSIS}": "."}
_ERRORS = "mwa-export"  # name of the handler for characters that an encoding lacks


def run_as_process(run: Callable[[], int]) -> int:
    """Run and return the exit status. Expected errors print one line, bugs a traceback."""
    _catch_signals()
    if prepare_streams():
        begin(sys.argv[1:])
    try:
        return _outcome(run)
    except StoppedError as stop:  # while a message was printed
        return stop.status
    finally:
        waiting.end()


def _catch_signals() -> None:
    """Let SIGTERM and SIGHUP clean up like Ctrl-C. Signals that are ignored (`nohup`) stay so."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, _frame: object) -> None:
    raise StoppedError(128 + number)


def status_of(stop: BaseException) -> int:
    """Return the exit status of an interrupted run; without more, it was Ctrl-C."""
    return stop.status if isinstance(stop, StoppedError) else 128 + signal.SIGINT


def _outcome(run: Callable[[], int]) -> int:
    try:
        status = run()
        sys.stdout.flush()
        return status
    except click.exceptions.Exit as end:
        sys.stdout.flush()
        return end.exit_code
    except getattr(click.exceptions, "NoArgsIsHelpError", ()) as error:
        error.show()  # the help
        return UsageError.exit_status
    except click.ClickException as error:
        return _failed(_usage_error(error))
    except MwaExportError as error:
        return _failed(error)
    except (click.Abort, KeyboardInterrupt) as stop:
        return _stopped(status_of(stop))
    except MemoryError:
        return _failed(MwaExportError(_MEMORY))
    except OSError as error:  # a name, a permission or a disk, and the file that it is about
        return _crashed() if error.strerror is None else _failed(_disk_error(error))
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        return _crashed() if missing is None else _failed(missing)
    except Exception:  # a bug
        return _crashed()


_MEMORY = (
    "out of memory. Lower the batch size, workers, threads or samples, or use a machine with more "
    "memory."
)


def _usage_error(error: click.ClickException) -> UsageError:
    """An error of click in the form of all others: one line, with where to read more."""
    text = " ".join(error.format_message().split())
    if isinstance(error, click.NoSuchOption):
        text = f"No such option {error.option_name!r}."
        if error.possibilities:
            text += f" Did you mean {' or '.join(map(repr, error.possibilities))}?"
    if text.startswith(_OF_CLICK):
        text = text[0].lower() + text[1:]
    if "--help" not in text:
        context = getattr(error, "ctx", None)  # click's parser knows none
        path = f"mwa-export {console.running or ''}" if context is None else context.command_path
        text += ("" if text[-1:] in ".?" else ".") + f" See: {path.strip()} --help"
    return UsageError(text)


_OF_CLICK = ("No such ", "Missing ", "Invalid ", "Got unexpected", "Option ", "Pass ")


def _failed(error: MwaExportError) -> int:
    console.fail(error)
    return error.exit_status


def _stopped(status: int) -> int:
    if status != NO_READER:
        console.last_words("interrupted; nothing was left half-written")
    return status


def _disk_error(error: OSError) -> UsageError:
    file = "a file" if error.filename is None else os.fsdecode(error.filename)
    return UsageError(f"{file}: {error.strerror}. Check its name, permissions and disk.")


def _crashed() -> int:
    """Print the traceback and where to report the bug."""
    traceback.print_exc()
    click.echo(
        f"bug: this is a bug in mwa-export {__version__}. Please report it at "
        "https://github.com/mwa-export/mwa-export/issues with the command, the lines above and the "
        "output of `mwa-export doctor`.",
        err=True,
    )
    return BUG


class StoppedError(KeyboardInterrupt):
    """The run is ended by a signal, or because the reader of its output has gone away."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class _Raw(io.FileIO):
    """Standard stream that ends the run when its reader is gone, and is silent from then on."""

    _gone = False

    def write(self, data: object) -> int | None:  # type: ignore[override]  # typeshed names a buffer type
        waiting.end()
        view = memoryview(data)  # type: ignore[arg-type]  # as above
        try:
            return len(view) if self._gone else super().write(view)
        except OSError as error:
            self._gone = True  # Python flushes once more when it ends
            if error.errno in _GONE:
                raise StoppedError(NO_READER) from error
            error.filename = "standard output" if self.fileno() == 1 else "standard error"
            raise


def open_closed_streams() -> None:
    """Make closed outputs act like /dev/null, and keep files from getting their numbers.

    Standard input stays None, because reading it as empty would lose data silently.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            if name != "stdin":
                setattr(sys, name, os.fdopen(number, "w", closefd=False))


def prepare_streams() -> bool:
    """Make both streams accept any text, and tell closed ones apart from failing disks.

    Returns whether every write to either of them goes through `_Raw` from now on.
    """
    codecs.register_error(_ERRORS, _replaced)
    seen = 0
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper:
            continue
        if os.name == "posix":
            stream.flush()
            stream = io.TextIOWrapper(
                io.BufferedWriter(_Raw(stream.fileno(), "w", closefd=False)),
                encoding=stream.encoding,
                line_buffering=stream.line_buffering,
            )
            setattr(sys, name, stream)
            seen += 1
        stream.reconfigure(errors=_ERRORS)
    return seen == 2


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that the encoding lacks by a plain one of the same width or an escape."""
    text, end = codecs.backslashreplace_errors(error)
    if isinstance(error, UnicodeEncodeError) and error.object[error.start] in _PLAIN:
        return _PLAIN[error.object[error.start]], error.start + 1
    return text, end
