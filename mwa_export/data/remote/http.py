"""Read files over http: completely, by byte ranges, or copied to disk. Needs urllib3."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPStatus
from ipaddress import ip_address
from typing import IO, Any
from urllib.parse import unquote

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    DecodeError,
    HTTPError,
    LocationParseError,
    LocationValueError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ResponseError,
)
from urllib3.exceptions import TimeoutError as HTTPTimeoutError
from urllib3.util import Retry, Timeout, make_headers, parse_url

from mwa_export.data.remote.access import Part
from mwa_export.errors import RemoteError

MAX_BYTES = 1 << 30  # max bytes of a file that is read into memory
_BLOCK = 1 << 20
_CONNECTIONS = 64  # max hosts with open connections, and max connections per host
_ONLY_REDIRECTS = Retry(10, connect=False, read=False, other=0, respect_retry_after_header=False)
_METADATA = (ip_address("100.100.100.200"), ip_address("fd00:ec2::254"))  # others are link-local
_CODES = {401: "forbidden", 403: "forbidden", 407: "forbidden", 404: "missing", 410: "missing"}
_PASSING = (408, 425, 429)  # temporary failures, like 5xx


def whole(url: str, timeout: float) -> bytes:
    """Read a complete file of at most `MAX_BYTES`.

    Raises:
        RemoteError: it cannot be read completely.
    """
    with _answer(url, timeout) as response:
        return b"".join(_blocks(response, MAX_BYTES))


def part(url: str, start: int, end: int, timeout: float) -> Part | None:
    """Read the bytes from ``start`` up to ``end`` (exclusive).

    Returns None if the server does not support range requests.

    Raises:
        RemoteError: they cannot be read completely.
    """
    with _answer(url, timeout, {"Range": f"bytes={start}-{end - 1}"}) as response:
        there = response.headers.get("Content-Range", "")
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", there)
        if found and response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return Part(b"", int(found[2]), tag)
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            return None
        if found is None or found[1] != str(start) or "Content-Encoding" in response.headers:
            raise RemoteError(f"the server sent the range {there!r}, expected one from {start}")
        return Part(b"".join(_blocks(response, end - start)), int(found[2]), tag)


def copy(url: str, file: IO[bytes], timeout: float) -> None:
    """Replace the content of ``file`` with that of a URL.

    Raises:
        RemoteError: it cannot be read completely.
    """
    file.seek(0)
    file.truncate()
    with _answer(url, timeout) as response:
        for block in _blocks(response):
            file.write(block)


def _blocks(response: urllib3.BaseHTTPResponse, limit: int | None = None) -> Iterator[bytes]:
    size, blocks = 0, response.stream(_BLOCK, decode_content=True)
    while block := _next(blocks):
        size += len(block)
        if limit is not None and size > limit:
            raise RemoteError(f"the server sends more than {limit:,} bytes", "too-large")
        yield block


def _next(blocks: Iterator[bytes]) -> bytes:
    with _one_error():
        return next(blocks, b"")


@contextmanager
def _answer(
    url: str, timeout: float, headers: dict[str, str] | None = None
) -> Iterator[urllib3.BaseHTTPResponse]:
    """Send a request and yield the response. Raise RemoteError for an error status."""
    with _one_error():
        parsed = parse_url(url)
        if parsed.host is None:
            raise LocationParseError(url)
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        if parsed.auth:
            sent |= make_headers(basic_auth=unquote(parsed.auth))
        response = _pool(_proxy(parsed.scheme or "", parsed.host)).request(
            "GET",
            url,
            headers=sent,
            timeout=Timeout(connect=timeout, read=timeout),
            retries=_ONLY_REDIRECTS,
            preload_content=False,
        )
    try:
        if response.status >= 300 and not (headers and response.status == 416):
            raise _refusal(response)
        yield response
    finally:
        response.close()  # needed if the body was not read completely


def _refusal(response: urllib3.BaseHTTPResponse) -> RemoteError:
    """Make the error for an HTTP status."""
    status, wait = response.status, response.headers.get("Retry-After")
    passes = status in _PASSING or status >= 500
    words = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "unknown"
    code = _CODES.get(status, "unreachable" if passes else "unreadable")
    try:
        seconds = Retry().parse_retry_after(wait) if passes and wait else 0.0
    except (HTTPError, ValueError, OverflowError):  # neither seconds nor a date
        seconds = 0.0
    return RemoteError(f"the server answered {status} {words}", code, passes=passes, wait=seconds)


@contextmanager
def _one_error() -> Iterator[None]:
    """Convert every error of urllib3 to RemoteError. Only calls of urllib3 go inside.

    Its own messages could reveal secrets in the query of a URL.
    """
    try:
        yield
    except RemoteError:
        raise
    except (LocationParseError, UnicodeError) as error:
        raise RemoteError("it is not a valid URL", "malformed") from error
    except LocationValueError as error:  # no host or an unknown scheme, in a redirect
        raise RemoteError("it redirects to a protocol other than http", "not-allowed") from error
    except MaxRetryError as error:
        raise _failure(error.reason or error) from error
    except DecodeError as error:
        raise RemoteError("its body cannot be decompressed") from error
    except (HTTPError, OSError) as error:
        raise _failure(error) from error
    except Exception as error:  # for example ValueError for a redirect to `http://[`
        reason = f"the server's response is malformed ({type(error).__name__})"
        raise RemoteError(reason, "malformed") from error


def _failure(error: Exception) -> RemoteError:
    cause = error.__cause__ or next((a for a in error.args if isinstance(a, Exception)), error)
    if isinstance(error, ResponseError):
        return RemoteError("too many redirects", "unreachable")
    cut = (a for a in error.args if isinstance(a, http.client.IncompleteRead))
    if isinstance(error, ProtocolError) and any(cut):
        return RemoteError("the server sent less than it announced", "truncated", passes=True)
    if isinstance(error, NameResolutionError):
        gone = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
        return RemoteError("no such host", "unreachable", passes=not gone)
    if isinstance(error, HTTPTimeoutError) and not isinstance(error, NewConnectionError):
        return RemoteError("the server did not answer in time", "timeout", passes=True)
    if isinstance(cause, ssl.SSLCertVerificationError):
        reason = f"its certificate is not valid ({cause.verify_message})"
        return RemoteError(reason, "unreachable")
    reason = getattr(cause, "strerror", None) or type(cause).__name__
    return RemoteError(f"the connection failed ({reason})", "unreachable", passes=True)


def _proxy(scheme: str, host: str) -> str | None:
    """Return the proxy that the environment sets for a host."""
    proxies = urllib.request.getproxies()
    return None if urllib.request.proxy_bypass(host) else proxies.get(scheme, proxies.get("all"))


@lru_cache(maxsize=4)
def _pool(proxy: str | None) -> urllib3.PoolManager:
    options: dict[str, Any] = {"num_pools": _CONNECTIONS, "maxsize": _CONNECTIONS}
    pool = (
        urllib3.PoolManager(**options)
        if proxy is None
        else urllib3.ProxyManager(
            proxy, proxy_headers=make_headers(proxy_basic_auth=parse_url(proxy).auth), **options
        )
    )
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return pool


class _Guard:
    """Refuses connections to cloud metadata addresses, which hand out credentials.

    The check is on the address, so that no host name or redirect can get around it.
    """

    def _new_conn(self) -> socket.socket:
        connected: socket.socket = super()._new_conn()  # type: ignore[misc]  # urllib3 defines it in the other base class
        address = ip_address(str(connected.getpeername()[0]).partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if address.is_link_local or address in _METADATA:
            connected.close()
            raise RemoteError("its address is link-local or a metadata server", "not-allowed")
        return connected


class _Connection(_Guard, HTTPConnection):
    pass


class _SecureConnection(_Guard, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection
