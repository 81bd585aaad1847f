"""Requests to remote stores. Temporary failures are retried; all waiting ends with the run."""

from __future__ import annotations

import errno
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from mwa_export.data.addresses import HTTP, protocol_of, public
from mwa_export.errors import MissingPackageError, RemoteError, check_option
from mwa_export.optional import check_installed, require

T = TypeVar("T")
_STEP = 0.2  # seconds between a waiting thread's checks whether the run stops
_PATIENCE = 20  # a request may take this many time-outs in total, even if bytes keep coming
_PAUSE = 0.5  # seconds before the second attempt; doubled before each further one
_MAX_PAUSE = 60.0
_STORES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}
_STORES |= {"abfss": "adlfs"}  # protocol -> the package that fsspec uses for it
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", **_STORES}
_LASTING = (errno.EINVAL, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True, slots=True)
class Access:
    """Time-out and retries for remote files."""

    timeout: float = 30.0  # seconds without a byte
    retries: int = 4

    def __post_init__(self) -> None:
        fits = math.isfinite(self.timeout) and self.timeout > 0
        check_option("timeout", self.timeout, fits, "a positive number of seconds")
        check_option("retries", self.retries, 0 <= self.retries <= 100, "0 to 100")


class Part(NamedTuple):
    """A byte range of a file."""

    data: bytes
    total: int = 0  # bytes of the whole file, if known
    tag: str | None = None  # version of the file; a different tag means that it changed


class _Here(threading.local):
    """Settings of one thread."""

    access = Access()
    check: Callable[[], None] | None = None


_here = _Here()


def current() -> Access:
    """Return this thread's settings for remote files."""
    return _here.access


@contextmanager
def using(access: Access) -> Iterator[None]:
    """Set this thread's settings for remote files inside the block."""
    before, _here.access = _here.access, access
    try:
        yield
    finally:
        _here.access = before


def stop_with(check: Callable[[], None]) -> None:
    """Call ``check`` while this thread waits for remote files; it raises to stop the wait."""
    _here.check = check


def check_stop() -> None:
    """Call this thread's stop check, which raises if its work must end."""
    if _here.check is not None:
        _here.check()


def patiently(url: str, work: Callable[[], T], *, bounded: bool = True) -> T:
    """Call ``work``, retry temporary failures, and return its result.

    ``bounded``: limit each attempt to 20 time-outs in total, even if bytes keep coming.

    Raises:
        RemoteError: the last failure, with the URL.
    """
    attempt, access = 1, current()
    while True:
        try:
            return _aside(work, _PATIENCE * access.timeout if bounded else math.inf)
        except RemoteError as error:
            if not error.passes or attempt > access.retries:
                tried = f" ({attempt} attempts)" if attempt > 1 else ""
                message = f"{public(url)}: cannot be read: {error}{tried}."
                raise RemoteError(message, error.code) from error
            pause = _PAUSE * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
            _sleep(min(_MAX_PAUSE, max(error.wait, pause)))
            attempt += 1


def _aside(work: Callable[[], T], limit: float) -> T:
    """Do work in a separate thread, which is abandoned if it hangs while the run stops."""
    future, end = Future[T](), time.monotonic() + limit

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="remote", daemon=True).start()
    while not wait([future], _STEP).done:
        check_stop()
        if time.monotonic() > end:
            raise RemoteError(f"the request took longer than {limit:g} seconds", "timeout")
    return future.result()


def _sleep(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check_stop()
        time.sleep(min(left, _STEP))


def ask(url: str, question: Callable[[Any, str], T]) -> T:
    """Call ``question`` with the fsspec file system of a URL and the path in it.

    Raises:
        RemoteError: the protocol is unknown, or the request failed.
        MissingPackageError: the protocol needs a package that is not installed.
    """
    access = current()

    def work() -> T:
        try:
            return question(*_file_system(url, access))
        except (RemoteError, MissingPackageError):
            raise
        except Exception as error:  # each protocol's client raises its own types
            raise _failure(error) from error

    return patiently(url, work)


def _file_system(url: str, access: Access) -> tuple[Any, str]:
    """Open the fsspec file system of a URL. Returns it and the path in it.

    Chained URLs (`zip://a::s3://b`) are not supported: the protocol is the text before the first
    `://`.
    """
    protocol = protocol_of(url)
    if protocol in _PACKAGES:
        require(_PACKAGES[protocol])
    fsspec = require("fsspec")
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        raise RemoteError(f"unknown protocol {protocol!r}", "not-allowed") from error
    except ImportError as error:
        raise MissingPackageError(f"{public(url)}: cannot be read: {error}.") from error
    given = kind._get_kwargs_from_urls(url) | _patience(protocol, access, fsspec.config.conf)
    system = kind(**given)
    if hasattr(system, "retries"):  # turn off the retries of S3 and Google: `patiently` retries
        system.retries = 1
    return system, str(kind._strip_protocol(url))


def check_packages(url: str) -> None:
    """Raise MissingPackageError if a package that reads this URL is not installed."""
    protocol = protocol_of(url)
    check_installed("urllib3" if protocol in HTTP else _STORES.get(protocol, "fsspec"))


def _patience(protocol: str, access: Access, configured: dict[str, Any]) -> dict[str, Any]:
    """Return options that give a file system our time-out and turn off its own retries."""
    if protocol in HTTP:
        aiohttp = require("aiohttp")
        limit = aiohttp.ClientTimeout(sock_connect=access.timeout, sock_read=access.timeout)
        return {"client_kwargs": {"timeout": limit}}
    if protocol in ("s3", "s3a"):
        limits = {"connect_timeout": access.timeout, "read_timeout": access.timeout}
        others = configured.get(protocol, {}).get("config_kwargs", {})
        given = {"config_kwargs": {**others, **limits, "retries": {"max_attempts": 0}}}
        return given | {"max_concurrency": 1}  # with more, it requests the size of each file first
    return {}


def _failure(error: Exception) -> RemoteError:
    """Convert an error of a file system to a RemoteError."""
    name, status = type(error).__name__, getattr(error, "status", None)
    reason = public(str(error).partition("\n")[0]) or name
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return RemoteError("no such file or folder", "missing")
    if isinstance(error, PermissionError) or "Credentials" in name or status in (401, 403):
        return RemoteError(f"access denied ({reason})", "forbidden")
    if "Timeout" in name:
        return RemoteError("the server did not answer in time", "timeout", passes=True)
    if name in ("ClientPayloadError", "IncompleteRead", "IncompleteReadError"):
        return RemoteError("the server sent less than it announced", "truncated", passes=True)
    lost = isinstance(error, OSError) and error.errno not in _LASTING
    if lost or any(part in name for part in ("Connect", "Endpoint", "HTTPClient")):
        return RemoteError(f"the connection failed ({reason})", "unreachable", passes=True)
    return RemoteError(reason)
