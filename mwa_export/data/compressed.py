"""Read compressed tables, lists and JSON documents transparently."""

from __future__ import annotations

import atexit
import bz2
import gzip
import io
import lzma
import shutil
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

from mwa_export.data.addresses import packing_of
from mwa_export.data.files import open_file, unreadable
from mwa_export.files import scratch_folder
from mwa_export.optional import require


def _zstd(file: BinaryIO) -> Any:
    arrow = require("pyarrow", "read .zst files")
    return arrow.CompressedInputStream(file, "zstd")


_OPEN: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}


def open_plain(name: str) -> io.BufferedReader:
    """Open a file or URL for reading, decompressed according to its extension.

    Raises:
        DataError: it cannot be opened. Reading raises OSError, also for damaged data.
    """
    file = open_file(name)
    decompressed = _OPEN.get(packing_of(name))
    raw: Any = file if decompressed is None else _Decompressed(file, decompressed(file))
    return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)


_copies: dict[str, Path] = {}
_copying = threading.Lock()
_folders = ExitStack()
atexit.register(_folders.close)


def plain_copy(name: str) -> Path:
    """Return a decompressed copy of a file or URL, made once per process and removed at its end.

    Raises:
        DataError: it cannot be opened or decompressed, or the temporary folder is full.
    """
    with _copying:
        if name not in _copies:
            copy = _folders.enter_context(scratch_folder()) / "copy"
            try:
                with open_plain(name) as file, copy.open("wb") as target:
                    shutil.copyfileobj(file, target, 1 << 20)
            except OSError as error:
                raise unreadable(name, error) from error
            _copies[name] = copy
        return _copies[name]


class _Decompressed(io.RawIOBase):
    """A decompressor that raises OSError for all errors."""

    def __init__(self, file: BinaryIO, source: Any) -> None:
        self._file, self._source = file, source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = cast("bytes", self._source.read(len(buffer)))
        except Exception as error:  # EOFError, zlib.error, LZMAError, Arrow's errors
            raise OSError(f"cannot be decompressed: {error}") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
