"""WebDataset tars: members of one key are one sample, a picture and its captions."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from mwa_export.data.fields import Columns, Fields, Place, Record, text_field
from mwa_export.data.files import open_file, readable, state_of
from mwa_export.data.tables import json_object
from mwa_export.errors import DataError, RemoteError
from mwa_export.inputs.content import Caption, Kind, Problem

PICTURES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"}
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # WebDataset's rule
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MAX_TEXT = 16 << 20  # bytes of a member that is read during the scan
_OPEN = 1 << 16  # samples of a tar that wait for more members, which bounds the memory


class _Member(NamedTuple):
    name: str
    offset: int
    size: int
    problem: Problem | None


_Sample = dict[str, _Member]
"""Members of one key by extension."""


@dataclass(frozen=True, slots=True)
class TarReader:
    """One or more tars. Members of a sample may lie anywhere in a tar.

    Captions are the lines of `KEY.txt`, or `caption` or `captions` of `KEY.json`. A member that a
    tar was cut in is a problem of its sample; a damaged end of a tar is a record of its own, as
    what followed is not known.
    """

    tars: tuple[str, ...]
    columns: Columns  # carried: fields of KEY.json
    kinds: tuple[Kind, ...]  # what the records need
    root: str = ""  # tars have whole paths

    def records(self) -> Iterator[Record]:
        """Every sample, in the order of their first members."""
        for name in self.tars:
            with open_file(name) as file:
                start = file.read(8)
                for magic, kind in _COMPRESSED.items():
                    if start.startswith(magic):
                        raise DataError(
                            f"{readable(name)}: is compressed with {kind}. Expected a plain tar, "
                            "as pictures are read from anywhere in it. Decompress it."
                        )
                place = [name, *(state_of(name) or (None, None))]
                yield from _Tar(file, readable(name), place, self).records()


class _Tar:
    """One open tar."""

    def __init__(self, file: BinaryIO, name: str, place: Place, reader: TarReader) -> None:
        self._file, self._name, self._place, self._reader = file, name, place, reader
        self._length = file.seek(0, 2)
        self._damage: Problem | None = None
        caption = reader.columns.caption
        captions = ("caption", "captions") if caption is None else (caption,)
        self._fields = Fields(None, captions, carried=reader.columns.carried)

    def records(self) -> Iterator[Record]:
        """Every sample, and the damage."""
        reported = False
        for record in self._samples():
            found = (record.image, *record.captions)
            reported |= any(isinstance(f, Problem) and f.code == "truncated" for f in found)
            yield record
        if self._damage is not None and not reported:
            yield Record(self._name, key=f"{self._name}: end", problem=self._damage)

    def _samples(self) -> Iterator[Record]:
        samples: dict[str, _Sample] = {}
        try:
            for member in _members(self._file, self._name):
                match = _KEY.fullmatch(member.name)
                if member.isdir() or match is None:  # hidden files, and files without an extension
                    continue
                key, extension = match[1], match[2].lower()
                sample = samples.setdefault(key, {})
                if extension in sample:
                    again = Problem("malformed", "occurs a second time. Expected each name once.")
                    where = f"{self._name}:{member.name}"
                    yield Record(where, key=member.name, problem=again)
                    continue
                sample[extension] = self._member(member)
                if len(samples) > _OPEN:
                    first = next(iter(samples))
                    yield self._record(first, samples.pop(first))
        except RemoteError:
            raise
        except DataError as error:
            reason = str(error).removeprefix(f"{self._name}: ")
            self._damage = Problem("truncated", reason)
        for key, sample in samples.items():
            yield self._record(key, sample)

    def _member(self, info: tarfile.TarInfo) -> _Member:
        problem = None
        if not info.isreg() or info.issparse():
            problem = Problem("unreadable", "is a link or a special file. Expected a plain file.")
        elif info.offset_data + info.size > self._length:
            kept = max(0, self._length - info.offset_data)
            found = f"has {kept} of {info.size} bytes, so the tar is not a whole tar."
            problem = Problem("truncated", f"{found} Copy or write it again.")
        return _Member(info.name, info.offset_data, info.size, problem)

    def _record(self, key: str, sample: _Sample) -> Record:
        found = f"(found {', '.join(f'.{extension}' for extension in sample)})"
        kinds, json, values = self._reader.kinds, sample.get("json"), dict[str, Any]()
        broken: Problem | None = None
        if json is not None and ("text" in kinds or self._reader.columns.carried):
            data = self._read(json, f"{key}.json")
            parsed = data if isinstance(data, Problem) else json_object(data)
            if isinstance(parsed, Problem):
                broken = parsed._replace(reason=f"{key}.json {parsed.reason}")
            else:
                values = parsed
        return Record(
            f"{self._name}:{key}",
            self._image(sample, found) if "image" in kinds else None,
            self._captions(key, sample, values, broken, found) if "text" in kinds else (),
            key,
            columns=tuple(values.get(name) for name in self._fields.carried),
        )

    def _image(self, sample: _Sample, found: str) -> Place | Problem:
        pictures = [member for extension, member in sample.items() if extension in PICTURES]
        if len(pictures) == 1:
            [member] = pictures
            return member.problem or [*self._place, member.name, member.offset, member.size]
        expected = f"Expected one of {', '.join(sorted(PICTURES))}."
        return (not pictures and self._damage) or Problem(
            "malformed", f"has {len(pictures) or 'no'} pictures {found}. {expected}"
        )

    def _captions(
        self, key: str, sample: _Sample, values: dict[str, Any], broken: Problem | None, found: str
    ) -> tuple[Caption | Problem, ...]:
        fields: tuple[Caption | Problem, ...] = ()
        if any(values.get(name) not in (None, "", []) for name in self._fields.captions):
            fields = self._fields.captions_of(values)
        lines: tuple[Caption | Problem, ...] = ()
        if (member := sample.get("txt")) is not None:
            data = self._read(member, f"{key}.txt")
            if isinstance(data, Problem):
                return (data,)
            text = data.decode("utf-8-sig", "surrogateescape")
            stripped = (line.strip() for line in text.split("\n"))
            lines = tuple(text_field(line, f"{key}.txt") for line in stripped if line)
        # img2dataset writes the caption into both. Other sets may mean different things by them.
        same = tuple(field.strip() if isinstance(field, str) else field for field in fields)
        if lines and fields and lines != same:
            reason = (
                f"its .txt has {len(lines)} captions, its .json {len(fields)}, and they differ. "
                "Expected the same. Remove one of the two."
            )
            return (Problem("malformed", reason),)
        expected = f"Expected {key}.txt with one per line, or {key}.json with `caption`."
        nothing = self._damage or Problem("null", f"has no captions {found}. {expected}")
        return fields or lines or (broken or nothing,)

    def _read(self, member: _Member, name: str) -> bytes | Problem:
        if member.problem is None and member.size > _MAX_TEXT:
            return Problem("too-large", f"{name} has {member.size:,} bytes.")
        if member.problem is not None:
            return member.problem._replace(reason=f"{name} {member.problem.reason}")
        self._file.seek(member.offset)
        return self._file.read(member.size)


def _members(file: BinaryIO, name: str) -> Iterator[tarfile.TarInfo]:
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
    while block:
        if block.strip(b"\0"):
            raise _damaged(name, f"no end, and no header either, at byte {end}")
        block = file.read(2**20)


def _damaged(name: str, found: str) -> DataError:
    return DataError(f"{name}: is not a whole tar ({found}). Copy or write it again.")
