"""Read the headers of a tar's members, without missing any in a damaged file."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from mwa_export.errors import DataError

_MAGIC = slice(257, 262)  # position of the magic number in a header


def members_of(file: BinaryIO, name: str) -> Iterator[tarfile.TarInfo]:
    """Yield every member. A damaged header, which tarfile takes for the end, is an error."""
    file.seek(0)
    try:
        with tarfile.open(
            fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace"
        ) as tar:
            # An offset of 0 is that of a tar without members: Python 3.10 fails to read on there.
            while tar.offset and (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # frees 1 kB each; not in typeshed
                if member.size < 0:
                    raise tarfile.ReadError("a member has a negative size")
                yield member
            end = tar.offset
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise _damaged(name, str(error)) from error
    _check_end(file, end, name)


def _check_end(file: BinaryIO, end: int, name: str) -> None:
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise _damaged(name, f"it is truncated at byte {end + len(block)}")
    ended = not block.strip(b"\0")
    while block:
        rest = block.lstrip(b"\0")
        if ended and rest[_MAGIC] == b"ustar":
            raise DataError(f"{name}: another tar follows its end. Join tars with `tar -A`.")
        if rest:
            raise _damaged(name, f"expected a header or the end at byte {end}")
        block = file.read(2**20)


def _damaged(name: str, found: str) -> DataError:
    return DataError(f"{name}: is not a complete tar ({found}). Copy or write it again.")
