"""Records of a collection, and the fields that they are read from."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from mwa_export.data.addresses import public
from mwa_export.errors import DataError
from mwa_export.inputs.content import Caption, Code, Kind, Problem, Readable
from mwa_export.inputs.decode import RowRefusedError, text_of

MAX_ID = 2**63 - 1  # ids are kept as int64
IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "filename", "path", "url")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")

Place = list[Any]
"""Where a picture lies: file, size and time of change; in a tar also member, offset and size."""


class Record(NamedTuple):
    """One record as its file has it. What cannot be used is replaced by the problem with it."""

    where: str  # for messages
    image: str | Place | Readable | bytes | Problem | None = None  # text: a path, as written
    captions: tuple[Caption | Problem, ...] = ()
    key: str | None = None  # the name that the file gives it; None: its path, or its number
    image_id: object = None  # tells pictures apart; None: the path does
    split: str | None = None
    columns: tuple[object, ...] = ()  # what is carried along
    numbered: bool = False  # captions are named by key and number, also where there is only one
    problem: Problem | None = None  # with the record as a whole


class Reader(Protocol):
    """Reads one file format."""

    @property
    def root(self) -> str:
        """Folder or URL that paths of pictures are relative to."""
        ...

    def records(self) -> Iterator[Record]:
        """Every record, in order.

        Raises:
            DataError: the file as a whole cannot be read.
        """
        ...


@dataclass(frozen=True)
class Fields:
    """The names under which a record of one file has its fields."""

    image: str | None = None
    captions: tuple[str, ...] = ()
    id: str | None = None
    split: str | None = None
    carried: tuple[str, ...] = ()

    def record(self, values: Mapping[str, Any], where: str) -> Record:
        """The record with these values. ``where`` is for messages."""
        given = None if self.id is None else values.get(self.id)
        split = None if self.split is None else values.get(self.split)
        return Record(
            where,
            None if self.image is None else image_field(values, self.image),
            self.captions_of(values),
            key_of(given),
            given,
            None if split in (None, "") else str(split),
            tuple([values.get(name) for name in self.carried]),
        )

    def check_unique(self, there: Sequence[str], where: str) -> None:
        """Raise DataError if one of the fields stands twice among the columns of a file."""
        used = (self.image, *self.captions, self.id, *self.carried, self.split)
        if repeated := {name for name in used if name and there.count(name) > 1}:
            found = names(sorted(repeated))
            raise DataError(f"{where}: has columns of the same name: {found}. Rename them.")

    def captions_of(self, values: Mapping[str, Any]) -> tuple[Caption | Problem, ...]:
        """A record's captions: a text, or a list of texts."""
        if len(self.captions) == 1 and isinstance(text := values.get(self.captions[0]), str):
            return (text_field(text, f'"{self.captions[0]}"'),)  # mostly, and fast
        found = [name for name in self.captions if values.get(name) not in (None, "", [])]
        if len(found) > 1:
            both = " and ".join(f'"{name}"' for name in found)
            return (Problem("malformed", f"has {both}. Expected one of them. Remove the other."),)
        there = [name for name in self.captions if name in values]
        for name in (found or there or self.captions)[:1]:
            value = values.get(name)
            if isinstance(value, Problem):
                return (value,)
            if name not in values:
                return (_absent(values, name),)
            if value == []:
                return (Problem("null", f'"{name}" is an empty list. Expected a text.'),)
            if not isinstance(value, list):
                return (text_field(value, f'"{name}"'),)
            return tuple(text_field(item, f'"{name}"[{n}]') for n, item in enumerate(value))
        return ()


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of a table's columns. One that is not named is found by its usual names."""

    image: str | None = None
    caption: str | None = None
    id: str | None = None
    carried: tuple[str, ...] = ()

    @property
    def known(self) -> set[str]:
        """Names that a header may have, without regard to case."""
        given = (self.image, self.caption, self.id, *self.carried, "split")
        every = (*IMAGE_COLUMNS, *CAPTION_COLUMNS, *(name for name in given if name))
        return {name.casefold() for name in every}

    def find(self, there: Collection[str], kinds: tuple[Kind, ...], where: str) -> Fields:
        """The fields of a file that has the columns ``there``, without regard to case.

        Raises:
            DataError: a column is missing.
        """
        missing: list[str] = []

        def column(name: str | None, usual: tuple[str, ...] = (), what: str = "") -> str:
            found = _match((name,) if name else usual, there)
            if found is None:
                missing.append(name or f"for {what} ({', '.join(usual)})")
            return found or ""

        image = column(self.image, IMAGE_COLUMNS, "pictures") if "image" in kinds else None
        captions: tuple[str, ...] = ()
        if "text" in kinds:
            captions = (column(self.caption, CAPTION_COLUMNS, "captions"),)
            pair = CAPTION_COLUMNS[:2]
            if self.caption is None and captions[0].casefold() in pair:
                captions = tuple(_match((name,), there) or name for name in pair)
        id = None if self.id is None else column(self.id)
        carried = tuple(column(name) for name in self.carried)
        if missing:
            raise DataError(
                f"{where}: has no column {names(missing)}. It has: {names(there)}. "
                "Name columns that it has."
            )
        return Fields(image, captions, id, _match(("split",), there), carried)

    def refuse(self, where: str, kinds: tuple[Kind, ...]) -> None:
        """Raise DataError if columns are named, for a source that has none."""
        text, id = ("caption", "image_id") if len(kinds) > 1 else ("text", "id")  # of a test set
        given: dict[str, object] = {"image_column": self.image, f"{text}_column": self.caption}
        given |= {f"{id}_column": self.id, "columns": self.carried or None}
        if named := [f"`{name}`" for name, value in given.items() if value is not None]:
            found = "has no columns; only tables do"
            raise DataError(f"{where}: {found}. Leave {' and '.join(named)} out.")


def _match(wanted: Iterable[str], there: Collection[str]) -> str | None:
    """The first of the wanted names that there is, without regard to case."""
    folded = {name.casefold(): name for name in reversed(list(there))}
    for name in wanted:
        if name in there or name.casefold() in folded:
            return name if name in there else folded[name.casefold()]
    return None


def key_of(given: object) -> str | None:
    """The id of a row as text; None: it is null or blank, so the row's path or number is."""
    if given is None or (isinstance(given, str) and not given.strip()):
        return None
    if isinstance(given, bytes):
        given = given.decode("utf-8", "backslashreplace")
    elif isinstance(given, bool | dict | list):
        given = json.dumps(given, default=str)
    return escaped(public(str(given)))


def has_caption(there: Collection[str]) -> bool:
    """Whether one of the columns is known to hold captions."""
    return _match(CAPTION_COLUMNS, there) is not None


def image_field(values: Mapping[str, Any], name: str) -> str | bytes | Problem:
    """A picture's path or bytes, or the struct of both that `datasets` writes."""
    value = values.get(name)
    if isinstance(value, Problem):
        return value
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) or (isinstance(value, str) and value.strip()):
        return value
    if name not in values:
        return _absent(values, name)
    found = "null" if value is None else "blank" if isinstance(value, str) else reprlib.repr(value)
    code: Code = "null" if value is None or isinstance(value, str) else "not-a-picture"
    return Problem(code, f'"{name}" is {found}. Expected the path of a picture.')


def _absent(values: Mapping[str, Any], name: str) -> Problem:
    return Problem("null", f'has no "{name}". It has: {names(values)}.')


def holds_pictures(kinds: tuple[Kind, ...]) -> str:
    """Why a folder of pictures cannot be named."""
    option = "images" if len(kinds) > 1 else "image_root"  # of a test set, or of `embed`
    return f"holds the pictures themselves, not paths to them. Leave `{option}` out."


def text_field(value: object, what: str) -> str | Problem:
    """A text that can be tokenized. ``what`` is for the message."""
    try:
        return text_of(value, what=what)
    except RowRefusedError as error:
        if isinstance(value, str) and any("\udc80" <= letter <= "\udcff" for letter in value):
            return Problem("not-text", f"{what} is not UTF-8. Save the file as UTF-8.")
        return error.problem


def id_field(value: object, what: str) -> int | Problem:
    """An id: an integer from 0 that fits in int64."""
    if type(value) is int and 0 <= value <= MAX_ID:
        return value
    found = "missing" if value is None else reprlib.repr(value)
    return Problem("malformed", f"{what} is {found}. Expected an integer from 0.")


def of_split(records: Iterable[Record], split: str, name: str) -> Iterator[Record]:
    """Records of one split, and those that cannot be told.

    Raises:
        DataError: there are no splits, or there is no such one.
    """
    found: set[str] = set()
    for record in records:
        found |= {record.split} if record.split is not None else set()
        if record.problem is not None or record.split == split:
            yield record
        elif not found:
            raise DataError(
                f"{record.where}: has no splits: the whole file is one. Leave `split` out, and "
                f"name the file that holds split {split}."
            )
        elif record.split is None:
            yield record._replace(problem=Problem("malformed", 'has no "split". Add it.'))
    if found and split not in found:
        raise DataError(
            f"{name}: has nothing in split {split!r}. It has: {names(sorted(found))}. "
            "Name one of them."
        )


def escaped(text: str) -> str:
    """A name that can be stored: lone surrogates are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def names(values: Iterable[object], limit: int = 20) -> str:
    """Names for a message, the first ``limit`` of them."""
    listed = [text if len(text := str(value)) < 200 else f"{text[:200]}..." for value in values]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return escaped(", ".join(listed[:limit]) + more) or "none"
