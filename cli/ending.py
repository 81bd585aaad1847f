"""How the command ends: errors, signals and closed streams as exit statuses."""

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
from mwa_export.errors import MwaExportError, UsageError
from mwa_export.optional import missing_package
from mwa_export.version import __version__

BUG = 70  # EX_SOFTWARE of sysexits.h
NO_READER = 141  # as if SIGPIPE had ended the run
_GONE = (errno.EPIPE, errno.EIO)  # of a pipe, of a terminal that was closed
_PLAIN = {"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{HORIZONTAL ELLIPSIS}": "."}
_ERRORS = "mwa-export"  # name of the handler for characters that an encoding lacks


def run_as_process(run: Callable[[], int]) -> int:
    """The exit status of ``run``. Foreseeable errors end in one message, bugs in a traceback."""
    _catch_signals()
    prepare_streams()
    try:
        return _outcome(run)
    except StoppedError as stop:  # while a message was printed
        return stop.status


def _catch_signals() -> None:
    """Let a run that is terminated, or whose terminal is closed, clean up like an interrupted one.

    A signal that is ignored, as `nohup` does, stays so.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, _frame: object) -> None:
    raise StoppedError(128 + number)


def status_of(stop: BaseException) -> int:
    """The exit status of a run that somebody ended; without more, it was Ctrl-C."""
    return stop.status if isinstance(stop, StoppedError) else 128 + signal.SIGINT


def _outcome(run: Callable[[], int]) -> int:
    try:
        status = run()
        sys.stdout.flush()
        return status
    except click.exceptions.Exit as end:
        sys.stdout.flush()
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return UsageError.exit_status
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
    except Exception:  # whatever else it is, it is a bug of ours
        return _crashed()


_MEMORY = (
    "the memory that this process may use is used up. Lower what it holds at once (batch, workers, "
    "threads, samples), or use a larger machine."
)


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
    """Print the error that is handled, and whose it is."""
    traceback.print_exc()
    click.echo(
        f"bug: this is a fault of mwa-export {__version__}, not of its input. Please open an issue "
        "in its repository, with the command, the lines above and what `mwa-export doctor` says.",
        err=True,
    )
    return BUG


class StoppedError(KeyboardInterrupt):
    """Somebody ends the run: a signal, or a reader of its output who goes away."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class _Raw(io.FileIO):
    """A standard stream that ends the run once when nobody reads it, and then is silent."""

    _gone = False

    def write(self, data: object) -> int | None:  # type: ignore[override]  # typeshed names a buffer type
        view = memoryview(data)  # type: ignore[arg-type]  # the same
        try:
            return len(view) if self._gone else super().write(view)
        except OSError as error:
            self._gone = True  # Python flushes once more when it ends
            if error.errno in _GONE:
                raise StoppedError(NO_READER) from error
            error.filename = "standard output" if self.fileno() == 1 else "standard error"
            raise


def open_closed_streams() -> None:
    """Let closed outputs act like /dev/null, and keep the numbers of closed streams from files.

    Standard input stays None: reading nothing would be a silent loss.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            if name != "stdin":
                setattr(sys, name, os.fdopen(number, "w", closefd=False))


def prepare_streams() -> None:
    """Make both streams take any text, and tell closed ones apart from disks that fail."""
    codecs.register_error(_ERRORS, _replaced)
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
        stream.reconfigure(errors=_ERRORS)


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """Characters that the encoding lacks: a plain one of the same width, or an escape."""
    text, end = codecs.backslashreplace_errors(error)
    if isinstance(error, UnicodeEncodeError) and error.object[error.start] in _PLAIN:
        return _PLAIN[error.object[error.start]], error.start + 1
    return text, end
