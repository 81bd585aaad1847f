"""Read WebDataset tars: the members with one key form a sample, an image and its captions."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from mwa_export.data.addresses import packing_of
from mwa_export.data.compressed import plain_copy
from mwa_export.data.fields import Columns, Fields, Place, Record, key_of, names, text_field
from mwa_export.data.files import open_file, readable
from mwa_export.data.places import state_of
from mwa_export.data.tables import json_object
from mwa_export.data.tar_members import members_of
from mwa_export.errors import DataError, RemoteError
from mwa_export.inputs.content import Caption, Kind, Problem
from mwa_export.inputs.formats import HEAD, extensions, likely, shown

_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # WebDataset's rule
_COMPRESSED = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
_MAX_TEXT = 16 << 20  # max bytes of a member that is read during the scan
_OPEN = 1 << 16  # max samples of a tar that wait for more members; limits memory
_NOTED = 20  # extensions that a message lists
_AGAIN = Problem("malformed", "occurs twice. Expected each name once.")
_LATE = Problem(
    "malformed",
    f"is more than {_OPEN:,} samples behind other members with its key. Sort the tar by name.",
)


class _Member(NamedTuple):
    name: str
    offset: int
    size: int
    problem: Problem | None


_Sample = dict[str, _Member]
"""The members with one key, by extension."""


@dataclass(frozen=True, slots=True)
class TarReader:
    """Reads one or more tars. The members of a sample may be anywhere in a tar.

    Captions are the lines of `KEY.txt`, or `caption` or `captions` in `KEY.json`. A sample without
    an image `KEY.png`, but with `KEY.1.png` and `KEY.2.png`, becomes one sample per image. A
    truncated member is a problem of its sample. A damaged end of a tar is a separate record,
    because the samples after it are unknown. Unused members are counted in ``skipped``.
    """

    tars: tuple[str, ...]
    columns: Columns  # fields of KEY.json; for the image: its extension
    kinds: tuple[Kind, ...]  # what the records need
    root: str = ""  # paths of tars are complete
    skipped: Counter[str] = field(default_factory=Counter, compare=False)  # extension -> count

    def records(self) -> Iterator[Record]:
        """Yield every sample, ordered by first member.

        Raises:
            DataError: a tar cannot be read, or no sample has a given field or image extension.
        """
        self.skipped.clear()
        found = set[str]()
        for name in self.tars:
            # Images are read with random access, so a compressed tar is unpacked to a copy.
            with open_file(str(plain_copy(name)) if packing_of(name) else name) as file:
                start = file.read(8)
                for magic, suffix in _COMPRESSED.items():
                    if start.startswith(magic):
                        raise DataError(
                            f"{readable(name)}: is compressed, but has the name of a plain tar. "
                            f"Rename it to end with {suffix}."
                        )
                place = [name, *(state_of(name) or (None, None))]
                yield from _Tar(file, readable(name), place, self, found).records()
        columns = self.columns
        named = (columns.image, columns.caption, columns.id, *columns.carried)
        if found and (missing := [n for n in named if n is not None and n not in found]):
            raise DataError(
                f"{names(map(readable, self.tars), 3)}: no sample has {names(missing)}. Samples "
                f"have: {names(sorted(found))}. Pass one of these names."
            )


class _Tar:
    """One open tar."""

    def __init__(
        self, file: BinaryIO, name: str, place: Place, reader: TarReader, found: set[str]
    ) -> None:
        self._file, self._name, self._place, self._reader = file, name, place, reader
        self._length = file.seek(0, 2)
        self._damage: Problem | None = None
        self._found = found  # some extensions and fields of samples, for messages
        columns = reader.columns
        captions = ("caption", "captions") if columns.caption is None else (columns.caption,)
        self._fields = Fields(None, captions, columns.id, carried=columns.carried)
        self._needs_json = "text" in reader.kinds or columns.id or columns.carried

    def records(self) -> Iterator[Record]:
        """Yield every sample, and a record for damage."""
        reported = False
        for record in self._samples():
            found = (record.image, *record.captions)
            reported |= any(isinstance(f, Problem) and f.code == "truncated" for f in found)
            yield record
        if self._damage is not None and not reported:
            yield Record(self._name, key=f"{self._name}: end", problem=self._damage)

    def _samples(self) -> Iterator[Record]:
        samples: dict[str, _Sample] = {}
        closed = set[int]()  # hashes of keys
        try:
            for member in members_of(self._file, self._name):
                if (named := self._key(member)) is None:
                    continue
                key, extension = named
                late = hash(key) in closed and key not in samples
                if late or extension in samples.setdefault(key, {}):
                    if not late or self._is_needed(extension):
                        yield self._extra(member.name, _LATE if late else _AGAIN)
                    continue
                samples[key][extension] = self._member(member)
                if len(samples) > _OPEN:
                    first = next(iter(samples))
                    closed.add(hash(first))
                    yield from self._records(first, samples.pop(first))
        except RemoteError:
            raise
        except DataError as error:
            reason = str(error).removeprefix(f"{self._name}: ")
            self._damage = Problem("truncated", reason)
        for key, sample in samples.items():
            yield from self._records(key, sample)

    def _key(self, member: tarfile.TarInfo) -> tuple[str, str] | None:
        """Return the key and extension of a member; None if it is skipped."""
        if member.isdir():
            return None
        if (match := _KEY.fullmatch(member.name)) is not None:
            return match[1], match[2].lower()
        self._file.seek(min(member.offset_data, self._length))
        hidden = member.name.rpartition("/")[2].startswith(".")
        if not hidden and likely(self._file.read(HEAD)):
            return member.name, ""
        self._reader.skipped["hidden" if hidden else shown("")] += 1
        return None

    def _is_needed(self, extension: str) -> bool:
        """Whether a member with this extension is used for a record."""
        if extension in ("txt", "json"):
            return bool(self._needs_json)
        return _is_picture(extension) and "image" in self._reader.kinds

    def _extra(self, member: str, problem: Problem) -> Record:
        return Record(f"{self._name}:{member}", key=member, problem=problem)

    def _records(self, key: str, sample: _Sample) -> Iterator[Record]:
        """Yield the record of a sample, or one per image if no image has the plain key."""
        pictures = [extension for extension in sample if _is_picture(extension)]
        parts = {key: sample}
        if self._reader.columns.image is None and pictures and all("." in p for p in pictures):
            parts = {}
            for extension, member in sample.items():
                stem, _, last = f"{key}.{extension}".rpartition(".")
                parts.setdefault(stem, {})[last] = member
        for stem, part in parts.items():
            self._count(part)
            yield self._record(stem, part)

    def _count(self, sample: _Sample) -> None:
        """Count the unused members of a sample, and note its extensions."""
        chosen = self._reader.columns.image
        if chosen in sample or len(self._found) < _NOTED:
            self._found.update(sample)
        for extension in sample:
            other = "." in extension if chosen is None else extension != chosen
            if other if _is_picture(extension) else extension not in ("txt", "json"):
                self._reader.skipped[shown(extension)] += 1

    def _member(self, info: tarfile.TarInfo) -> _Member:
        problem = None
        if not info.isreg() or info.issparse():
            problem = Problem("unreadable", "is a link or a special file. Expected a regular file.")
        elif info.offset_data + info.size > self._length:
            kept = max(0, self._length - info.offset_data)
            found = f"has {kept} of {info.size} bytes, because the tar is truncated."
            problem = Problem("truncated", f"{found} Copy or write it again.")
        return _Member(info.name, info.offset_data, info.size, problem)

    def _record(self, key: str, sample: _Sample) -> Record:
        found = f"(found {', '.join(f'.{extension}' for extension in sample)})"
        kinds, json, values = self._reader.kinds, sample.get("json"), dict[str, Any]()
        broken: Problem | None = None
        if json is not None and self._needs_json:
            data = self._read(json, f"{key}.json")
            parsed = data if isinstance(data, Problem) else json_object(data)
            if isinstance(parsed, Problem):
                broken = parsed._replace(reason=f"{key}.json {parsed.reason}")
            else:
                values = parsed
                named = self._reader.columns.caption, self._fields.id, *self._fields.carried
                self._found.update(name for name in named if name in values)
        given = None if self._fields.id is None else values.get(self._fields.id)
        wanted = self._fields.id is not None or bool(self._fields.carried)
        image = self._image(sample, found) if "image" in kinds else None
        return Record(
            f"{self._name}:{key}",
            image and broken if broken and wanted else image,
            self._captions(key, sample, values, broken, found) if "text" in kinds else (),
            key_of(given) or key,
            given,
            columns=tuple(values.get(name) for name in self._fields.carried),
        )

    def _image(self, sample: _Sample, found: str) -> Place | Problem:
        chosen = self._reader.columns.image
        plain = (extension for extension in sample if _is_picture(extension, plain=True))
        pictures = [sample[e] for e in (plain if chosen is None else [chosen]) if e in sample]
        if len(pictures) == 1:
            [member] = pictures
            return member.problem or [*self._place, member.name, member.offset, member.size]
        expected = "such as .jpg" if chosen is None else shown(chosen)
        reason = f"has no image {found}. Expected one, {expected}."
        if pictures:
            reason = f"has {len(pictures)} images {found}. Pass the extension of one as "
            reason += "`image_column`."
        return (not pictures and self._damage) or Problem("malformed", reason)

    def _captions(
        self, key: str, sample: _Sample, values: dict[str, Any], broken: Problem | None, found: str
    ) -> tuple[Caption | Problem, ...]:
        columns = self._reader.columns
        fields: tuple[Caption | Problem, ...] = ()
        if broken and (columns.caption or columns.id or columns.carried):
            return (broken,)
        if columns.caption is not None:
            return self._fields.captions_of(values)
        if any(values.get(name) not in (None, "", []) for name in self._fields.captions):
            fields = self._fields.captions_of(values)
        lines: tuple[Caption | Problem, ...] = ()
        if (member := sample.get("txt")) is not None:
            data = self._read(member, f"{key}.txt")
            if isinstance(data, Problem):
                return (data,)
            text = data.decode("utf-8-sig", "surrogateescape")
            stripped = (line.strip() for line in re.split("[\r\n]", text))
            lines = tuple(text_field(line, f"{key}.txt") for line in stripped if line)
        # img2dataset writes the same caption into both. In other sets they may differ in meaning.
        same = tuple(field.strip() if isinstance(field, str) else field for field in fields)
        if lines and fields and lines != same:
            reason = (
                f"its .txt ({len(lines)} captions) and its .json ({len(fields)}) differ. "
                "Expected equal captions. Remove one of the files."
            )
            return (Problem("malformed", reason),)
        expected = f'Expected {key}.txt with one caption per line, or {key}.json with "caption".'
        nothing = self._damage or Problem("null", f"has no captions {found}. {expected}")
        return fields or lines or (broken or nothing,)

    def _read(self, member: _Member, name: str) -> bytes | Problem:
        if member.problem is None and member.size > _MAX_TEXT:
            return Problem(
                "too-large", f"{name} has {member.size:,} bytes. Expected at most {_MAX_TEXT:,}."
            )
        if member.problem is not None:
            return member.problem._replace(reason=f"{name} {member.problem.reason}")
        self._file.seek(member.offset)
        return self._file.read(member.size)


def _is_picture(extension: str, *, plain: bool = False) -> bool:
    """Whether a member with this extension is an image; ``plain``: and has no dot in it."""
    last = extension.rpartition(".")[2]
    return (last in extensions() or not extension) and (last == extension or not plain)
