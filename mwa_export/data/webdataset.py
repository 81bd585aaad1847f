"""WebDataset tars: members of the same key are one picture and its captions."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mwa_export.data.fields import Groups, caption_fields, json_object, text_field, unreadable
from mwa_export.data.test_set import RetrievalData
from mwa_export.errors import DataError
from mwa_export.inputs.pictures import Picture

PICTURES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"}
_CAPTIONS = {"txt", "json"}
KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # WebDataset's rule
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

Sample = dict[str, tuple[str, int, int]]
"""Members of one key: extension -> (name, offset, size)."""


def read_webdataset(path: Path) -> RetrievalData:
    """Read a tar, or all tars of a folder as one set.

    Captions are the lines of `KEY.txt`, or `caption` or `captions` of `KEY.json`.

    Raises:
        DataError: a tar is compressed, cut short or malformed; a key has no picture, several
            or no captions, or occurs in two tars.
    """
    path = Path(path)
    tars = [path]
    if path.is_dir():
        tars = sorted(f for f in path.glob("[!.]*") if f.suffix.lower() == ".tar")
    groups = Groups(path)
    for tar in tars:
        try:
            with tar.open("rb") as file:
                refuse_compressed(file, tar)
                for key, sample in _samples(file, tar).items():
                    _add(groups, file, tar, key, sample)
        except OSError as error:
            raise unreadable(tar, error) from error
    return groups.data(str(path))


def _add(groups: Groups, file: BinaryIO, tar: Path, key: str, sample: Sample) -> None:
    where = f"{tar}:{key}"
    found = ", ".join(f".{extension}" for extension in sample)
    pictures = [extension for extension in sample if extension in PICTURES]
    if len(pictures) != 1:
        raise DataError(
            f"{where}: has {len(pictures) or 'no'} pictures (found {found}). Expected one of "
            f"{', '.join(sorted(PICTURES))}."
        )
    captions = _captions(file, sample, where)
    if not captions:
        raise DataError(
            f"{where}: has no captions (found {found}). Expected {key}.txt with one per line, or "
            f"{key}.json with `caption` or `captions`."
        )
    name, offset, size = sample[pictures[0]]
    row = groups.add(key, Picture(tar, name, offset, size), where, what="key")
    groups.add_captions(row, captions)


def _captions(file: BinaryIO, sample: Sample, where: str) -> list[str]:
    lines, fields = None, None
    if "txt" in sample:
        try:
            text = _read(file, sample["txt"]).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{where}.txt: is not UTF-8 ({error}). Save it as UTF-8.") from error
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        lines = [text_field(line, "a caption", f"{where}.txt") for line in lines]
    if "json" in sample:
        record = json_object(_read(file, sample["json"]), f"{where}.json")
        if record.get("caption") is not None or record.get("captions") is not None:
            fields = caption_fields(record, "caption", f"{where}.json")
    # img2dataset writes the caption into both. Other sets may mean different things by them.
    if lines is not None and fields is not None and lines != [text.strip() for text in fields]:
        raise DataError(
            f"{where}: its .txt has {len(lines)} captions, its .json {len(fields)}, and they "
            "differ. Expected the same. Remove one of the two."
        )
    return fields or lines or []


def _read(file: BinaryIO, member: tuple[str, int, int]) -> bytes:
    _, offset, size = member
    file.seek(offset)
    return file.read(size)


def _samples(file: BinaryIO, path: Path) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for member in members_of(file, path):
        match = KEY.fullmatch(member.name)
        if member.isdir() or match is None:  # hidden files, and files without an extension
            continue
        key, extension = match[1], match[2].lower()
        where = f"{path}:{member.name}"
        if not member.isreg() or member.issparse():
            raise DataError(f"{where}: is a link or a special file. Expected a plain file.")
        sample = samples.setdefault(key, {})
        if extension in sample:
            raise DataError(f"{where}: occurs a second time. Expected each name once.")
        known = extension in PICTURES or extension in _CAPTIONS
        sample[extension] = (member.name if known else "", member.offset_data, member.size)
    return samples


def members_of(file: BinaryIO, path: Path | str) -> Iterator[tarfile.TarInfo]:
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
        raise _damaged(path, str(error)) from error
    _check_end(file, end, path)


def _check_end(file: BinaryIO, end: int, path: Path | str) -> None:
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise _damaged(path, f"it was cut short at byte {end + len(block)}")
    while block:
        if block.strip(b"\0"):
            raise _damaged(path, f"no end, and no header either, at byte {end}")
        block = file.read(2**20)


def refuse_compressed(file: BinaryIO, path: Path | str) -> None:
    """Refuse a tar that is compressed.

    Raises:
        DataError: it is.
    """
    start = file.read(8)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                f"{path}: is compressed with {name}. Expected a plain tar, as pictures are read "
                "from anywhere in it. Decompress it."
            )


def _damaged(path: Path | str, found: str) -> DataError:
    return DataError(f"{path}: is not a whole tar ({found}). Copy or write it again.")
