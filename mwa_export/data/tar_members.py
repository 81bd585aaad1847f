"""Members of a tar by their headers, none of which is lost to damage."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from mwa_export.errors import DataError

_MAGIC = slice(257, 262)  # of a header


def members_of(file: BinaryIO, name: str) -> Iterator[tarfile.TarInfo]:
    """Every member, or an error: tarfile takes a damaged header for the end."""
    file.seek(0)
    try:
        with tarfile.open(
            fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace"
        ) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # frees 1 kB each; not in typeshed
                if member.size < 0:
                    raise tarfile.ReadError("a member of negative size")
                yield member
            end = tar.offset
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise _damaged(name, str(error)) from error
    _check_end(file, end, name)


def _check_end(file: BinaryIO, end: int, name: str) -> None:
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise _damaged(name, f"it was cut short at byte {end + len(block)}")
    ended = not block.strip(b"\0")
    while block:
        rest = block.lstrip(b"\0")
        if ended and rest[_MAGIC] == b"ustar":
            raise DataError(f"{name}: another tar follows its end. Join tars by `tar -A`.")
        if rest:
            raise _damaged(name, f"no end, and no header either, at byte {end}")
        block = file.read(2**20)


def _damaged(name: str, found: str) -> DataError:
    return DataError(f"{name}: is not a whole tar ({found}). Copy or write it again.")
