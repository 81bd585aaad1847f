"""Read remote files: completely, by byte ranges, as an open file, or as an image."""

from __future__ import annotations

import io
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import IO, Any, BinaryIO

from mwa_export.data.addresses import HTTP, protocol_of, public
from mwa_export.data.remote.access import Access, Part, ask, check_stop, current, patiently, using
from mwa_export.errors import ImageError, RemoteError
from mwa_export.optional import require

_HEAD = 1 << 16  # bytes that are read when a file is opened
_BUFFER = 4 << 20  # bytes that are read at a time
_COPIES = 2  # files from servers without range requests that are kept on disk
_STEP = 0.2  # seconds

_copies: OrderedDict[str, IO[bytes]] = OrderedDict()
_copying = threading.Lock()


def read(url: str) -> bytes:
    """Read a complete file.

    Raises:
        RemoteError: it cannot be read completely.
    """
    if protocol_of(url) not in HTTP:
        return ask(url, lambda system, path: bytes(system.cat_file(path)))
    http, timeout = _http(), current().timeout
    return bytes(patiently(url, lambda: http.whole(url, timeout)))


def fetch(url: str, start: int, end: int) -> Part:
    """Read the bytes from ``start`` up to ``end`` (exclusive), or up to the end of the file.

    Raises:
        RemoteError: they cannot be read completely.
    """
    if protocol_of(url) not in HTTP:
        return Part(
            ask(url, lambda system, path: bytes(system.cat_file(path, start=start, end=end)))
        )
    http, timeout = _http(), current().timeout
    if url not in _copies:
        part: Part | None = patiently(url, lambda: http.part(url, start, end, timeout))
        if part is not None:
            return part
    return _of_copy(url, start, end)


def _http() -> Any:
    require("urllib3")
    from mwa_export.data.remote import http

    return http


def _of_copy(url: str, start: int, end: int) -> Part:
    """Read a part of a file from a temporary copy, for servers without range requests."""
    http, timeout = _http(), current().timeout
    while not _copying.acquire(timeout=_STEP):
        check_stop()
    try:
        if url not in _copies:
            file = tempfile.TemporaryFile()  # noqa: SIM115  # closed below when it is evicted
            patiently(url, lambda: http.copy(url, file, timeout), bounded=False)
            _copies[url] = file
            if len(_copies) > _COPIES:
                _copies.popitem(last=False)[1].close()
        _copies.move_to_end(url)
        total = _copies[url].seek(0, io.SEEK_END)
        _copies[url].seek(start)
        return Part(_copies[url].read(end - start), total)
    except OSError as error:
        found = f"cannot be copied to {tempfile.gettempdir()} ({error.strerror})"
        raise RemoteError(f"{public(url)}: {found}.") from error
    finally:
        _copying.release()


def open_remote(url: str) -> BinaryIO:
    """Open a file for reading, with seeking.

    Raises:
        RemoteError: it cannot be read.
    """
    return io.BufferedReader(_RemoteFile(url), _BUFFER)


class _RemoteFile(io.RawIOBase):
    """A file that is read by byte ranges."""

    def __init__(self, url: str) -> None:
        self._url, self._position, self._access = url, 0, current()
        if protocol_of(url) in HTTP:
            self._head = fetch(url, 0, _HEAD)
        else:
            self._head = Part(b"", ask(url, lambda system, path: int(system.size(path) or 0)))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._head.total)[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        start, end = self._position, min(self._position + len(buffer), self._head.total)
        if start >= end:
            return 0
        data = self._head.data[start:end] or self._fetched(start, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _fetched(self, start: int, end: int) -> bytes:
        with using(self._access):
            part = fetch(self._url, start, end)
        if not part.data or part.tag != self._head.tag:
            raise RemoteError(f"{public(self._url)}: changed while it was read. Run again.")
        return part.data


@dataclass(frozen=True, slots=True)
class RemotePicture:
    """A remote image, not yet read: a file, or a member of a tar."""

    url: str
    member: str | None = None
    offset: int = 0
    size: int | None = None
    access: Access = field(default_factory=current, compare=False)

    def __str__(self) -> str:
        return public(self.url) + ("" if self.member is None else f":{self.member}")

    @property
    def name(self) -> str:
        """Last part of its name, for messages."""
        return (self.member or public(self.url)).rpartition("/")[2]

    def read(self) -> bytes:
        """Read the encoded image.

        Raises:
            ImageError: it cannot be read completely.
        """
        try:
            with using(self.access):
                if self.size is None:
                    return read(self.url)
                data = fetch(self.url, self.offset, self.offset + self.size).data
        except RemoteError as error:
            raise ImageError(str(error), error.code) from error
        if len(data) != self.size:
            found = f"has {len(data)} of {self.size} bytes"
            raise ImageError(f"{self}: {found}, because the tar is truncated.", "truncated")
        return data
