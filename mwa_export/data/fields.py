"""Records of a data set or source, and the fields that they are read from."""

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

MAX_ID = 2**63 - 1  # ids are stored as int64
IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "filename", "path", "url")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")

Place = list[Any]
"""Place of an image: file, size and modification time; in a tar also member, offset and size."""


class Record(NamedTuple):
    """One record of a file. A field that cannot be used is replaced by a Problem."""

    where: str  # its place in the file, for messages
    image: str | Place | Readable | bytes | Problem | None = None  # str: the path in the file
    captions: tuple[Caption | Problem, ...] = ()
    key: str | None = None  # its id in the file; None: use its path or its number
    image_id: object = None  # identifies the image; None: its path does
    split: str | None = None
    columns: tuple[object, ...] = ()  # values of the columns that are copied to the output
    numbered: bool = False  # append a number to the key of every caption, even of a single one
    problem: Problem | None = None  # why the whole record cannot be used


class Reader(Protocol):
    """A reader of one file format."""

    @property
    def root(self) -> str:
        """Folder or URL that paths of images are relative to."""
        ...

    def records(self) -> Iterator[Record]:
        """Yield every record in order.

        Raises:
            DataError: the file as a whole cannot be read.
        """
        ...


@dataclass(frozen=True)
class Fields:
    """Names of the fields of a record in one file."""

    image: str | None = None
    captions: tuple[str, ...] = ()
    id: str | None = None
    split: str | None = None
    carried: tuple[str, ...] = ()

    def record(self, values: Mapping[str, Any], where: str) -> Record:
        """Make a record of these values. ``where`` is used in messages."""
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
        """Raise DataError if a file has two columns with the name of one of the fields."""
        used = (self.image, *self.captions, self.id, *self.carried, self.split)
        if repeated := {name for name in used if name and there.count(name) > 1}:
            found = names(sorted(repeated))
            raise DataError(f"{where}: has several columns of the same name: {found}. Rename them.")

    def captions_of(self, values: Mapping[str, Any]) -> tuple[Caption | Problem, ...]:
        """Return a record's captions, stored as a text or a list of texts."""
        if len(self.captions) == 1 and isinstance(text := values.get(self.captions[0]), str):
            return (text_field(text, f'"{self.captions[0]}"'),)  # the common case, kept fast
        found = [name for name in self.captions if values.get(name) not in (None, "", [])]
        if len(found) > 1:
            both = " and ".join(f'"{name}"' for name in found)
            return (Problem("malformed", f"has {both}. Expected only one. Remove the other."),)
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
    """Names of a table's columns. A column without a given name is found by its usual names."""

    image: str | None = None
    caption: str | None = None
    id: str | None = None
    carried: tuple[str, ...] = ()

    @property
    def known(self) -> set[str]:
        """All names, in lower case, that a header may contain."""
        given = (self.image, self.caption, self.id, *self.carried, "split")
        every = (*IMAGE_COLUMNS, *CAPTION_COLUMNS, *(name for name in given if name))
        return {name.casefold() for name in every}

    def find(self, there: Collection[str], kinds: tuple[Kind, ...], where: str) -> Fields:
        """Find the fields of a file in its columns ``there``, ignoring case.

        Raises:
            DataError: a column is missing.
        """
        missing: list[str] = []

        def column(name: str | None, usual: tuple[str, ...] = (), what: str = "") -> str:
            found = _match((name,) if name else usual, there)
            if found is None:
                missing.append(name or f"for {what} ({', '.join(usual)})")
            return found or ""

        image = column(self.image, IMAGE_COLUMNS, "images") if "image" in kinds else None
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
                "Pass the names of existing columns."
            )
        return Fields(image, captions, id, _match(("split",), there), carried)

    def refuse(self, where: str, kinds: tuple[Kind, ...]) -> None:
        """Raise DataError if names of columns are given for a source without columns."""
        # A test set and `embed` name their options differently.
        text, id = ("caption", "image_id") if len(kinds) > 1 else ("text", "id")
        given: dict[str, object] = {"image_column": self.image, f"{text}_column": self.caption}
        given |= {f"{id}_column": self.id, "columns": self.carried or None}
        if named := [f"`{name}`" for name, value in given.items() if value is not None]:
            found = "has no columns, because it is not a table"
            raise DataError(f"{where}: {found}. Leave {' and '.join(named)} out.")


def _match(wanted: Iterable[str], there: Collection[str]) -> str | None:
    """Return the first of the wanted names that exists, ignoring case."""
    folded = {name.casefold(): name for name in reversed(list(there))}
    for name in wanted:
        if name in there or name.casefold() in folded:
            return name if name in there else folded[name.casefold()]
    return None


def key_of(given: object) -> str | None:
    """Convert the id of a row to text; None if it is null or blank."""
    if given is None or (isinstance(given, str) and not given.strip()):
        return None
    if isinstance(given, bytes):
        given = given.decode("utf-8", "backslashreplace")
    elif isinstance(given, bool | dict | list):
        given = json.dumps(given, default=str)
    return escaped(public(str(given)))


def has_caption(there: Collection[str]) -> bool:
    """Whether one of the columns has a usual name for captions."""
    return _match(CAPTION_COLUMNS, there) is not None


def image_field(values: Mapping[str, Any], name: str) -> str | bytes | Problem:
    """Return an image's path or bytes, also from the struct of both that `datasets` writes."""
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
    return Problem(code, f'"{name}" is {found}. Expected the path of an image.')


def _absent(values: Mapping[str, Any], name: str) -> Problem:
    return Problem("null", f'has no "{name}". It has: {names(values)}.')


def holds_pictures(kinds: tuple[Kind, ...]) -> str:
    """Explain why a folder of images cannot be given for a source that contains its images."""
    option = "images" if len(kinds) > 1 else "image_root"  # for a test set, or for `embed`
    return f"contains images, not paths of images. Leave `{option}` out."


def text_field(value: object, what: str) -> str | Problem:
    """Return a text that can be tokenized, or a Problem. ``what`` names it in the message."""
    try:
        return text_of(value, what=what)
    except RowRefusedError as error:
        if isinstance(value, str) and any("\udc80" <= letter <= "\udcff" for letter in value):
            return Problem("not-text", f"{what} is not UTF-8. Save the file as UTF-8.")
        return error.problem


def id_field(value: object, what: str) -> int | Problem:
    """Return an id, or a Problem unless it is a non-negative integer that fits int64."""
    if type(value) is int and 0 <= value <= MAX_ID:
        return value
    found = "missing" if value is None else reprlib.repr(value)
    return Problem("malformed", f"{what} is {found}. Expected a non-negative integer.")


def of_split(records: Iterable[Record], split: str, name: str) -> Iterator[Record]:
    """Yield the records of one split, and those whose split cannot be read.

    Raises:
        DataError: the file has no splits, or not this one.
    """
    found: set[str] = set()
    for record in records:
        found |= {record.split} if record.split is not None else set()
        if record.problem is not None or record.split == split:
            yield record
        elif not found:
            raise DataError(
                f"{record.where}: has no splits. Leave `split` out, and pass the file with split "
                f"{split}."
            )
        elif record.split is None:
            yield record._replace(problem=Problem("malformed", 'has no "split". Add it.'))
    if found and split not in found:
        raise DataError(
            f"{name}: has nothing in split {split!r}. It has: {names(sorted(found))}. "
            "Pass one of these as `split`."
        )


def escaped(text: str) -> str:
    """Escape lone surrogates in a name, so that it can be stored."""
    return text.encode("utf-8", "backslashreplace").decode()


def names(values: Iterable[object], limit: int = 20) -> str:
    """List the first ``limit`` names for a message."""
    listed = [text if len(text := str(value)) < 200 else f"{text[:200]}..." for value in values]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return escaped(", ".join(listed[:limit]) + more) or "none"
