"""WebDataset tars: members of one key are one sample, a picture and its captions."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from mwa_export.data.files import joined, open_file, place_of, readable
from mwa_export.data.spool import Entry, text_entry
from mwa_export.data.webdataset import KEY, PICTURES, members_of, refuse_compressed
from mwa_export.errors import DataError
from mwa_export.inputs.content import Kind, Problem

_MAX_TEXT = 16 << 20  # bytes of a member that is read during the scan


@dataclass(frozen=True, slots=True)
class TarReader:
    """One or more tars. Members of a sample follow one another, as WebDataset has it.

    The id is the key; of several captions of a key, the key, `#` and a number from 0. A sample
    without what is asked for is a failed row, as is a member that a tar was cut in, and a damaged
    end of a tar: what followed is not known.
    """

    kind: Kind
    root: str
    tars: tuple[str, ...]
    columns: tuple[str, ...] = ()  # fields of KEY.json

    def entries(self) -> Iterator[Entry]:
        """Every sample."""
        for name in self.tars:
            full = joined(self.root, name)
            place, problem = place_of(self.root, name)
            if place is None:
                raise DataError(f"{readable(full)}: {problem and problem.reason}")
            with open_file(full) as file:
                refuse_compressed(file, readable(full))
                length = file.seek(0, 2)
                cut = False
                for key, sample in self._samples(file, full):
                    if isinstance(sample, str):
                        if not cut:
                            nothing = (None,) * len(self.columns)
                            cut_off = Problem("truncated", sample)
                            yield f"{readable(name)}: end", None, nothing, cut_off
                        continue
                    cut |= any(m.offset_data + m.size > length for m in sample.values())
                    yield from self._rows(file, place, key, sample, length)

    def _samples(
        self, file: BinaryIO, full: str
    ) -> Iterator[tuple[str, dict[str, tarfile.TarInfo] | str]]:
        current, sample = "", dict[str, tarfile.TarInfo]()
        damage = None
        members = members_of(file, readable(full))
        while True:
            try:
                member = next(members)
            except StopIteration:
                break
            except DataError as error:
                damage = str(error)
                break
            match = KEY.fullmatch(member.name)
            if member.isdir() or match is None:
                continue
            key, extension = match[1], match[2].lower()
            if sample and (key != current or extension in sample):
                yield current, sample
                sample = {}
            current = key
            sample[extension] = member
        if sample:
            yield current, sample
        if damage is not None:
            yield "", damage

    def _rows(
        self,
        file: BinaryIO,
        place: list[Any],
        key: str,
        sample: dict[str, tarfile.TarInfo],
        length: int,
    ) -> Iterator[Entry]:
        record = _json(file, sample.get("json"), length)
        columns = tuple(record.get(name) for name in self.columns)
        if self.kind == "image":
            pictures = [member for extension, member in sample.items() if extension in PICTURES]
            problem = _obstacle(pictures, length)
            where = None
            if problem is None:
                found = pictures[0]
                where = [*place, found.name, found.offset_data, found.size]
            yield key, where, columns, problem
            return
        texts: list[Any]
        if "txt" in sample:
            problem = _obstacle([sample["txt"]], length)
            if problem is not None:
                yield key, None, columns, problem
                return
            data = _read(file, sample["txt"]).removeprefix(b"\xef\xbb\xbf")
            texts = [line for line in data.split(b"\n") if line.strip()] or [data]
        else:
            value = record.get("caption", record.get("captions"))
            texts = value if isinstance(value, list) and value else [value]
        for number, text in enumerate(texts):
            yield text_entry(key if len(texts) == 1 else f"{key}#{number}", text, columns)


def _obstacle(members: list[tarfile.TarInfo], length: int) -> Problem | None:
    if len(members) != 1:
        found = len(members) or "no"
        return Problem("malformed", f"the sample has {found} pictures. Expected one.")
    member = members[0]
    if not member.isreg() or member.issparse():
        return Problem("unreadable", "is a link or a special file. Expected a plain file.")
    if member.offset_data + member.size > length:
        kept = max(0, length - member.offset_data)
        return Problem("truncated", f"{kept} of {member.size} bytes: the tar was cut.")
    return None


def _read(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    return file.read(min(member.size, _MAX_TEXT))


def _json(file: BinaryIO, member: tarfile.TarInfo | None, length: int) -> dict[str, Any]:
    """The sample's fields; none where there is no such member or it is no JSON object."""
    if member is None or _obstacle([member], length) is not None:
        return {}
    try:
        value = json.loads(_read(file, member))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
