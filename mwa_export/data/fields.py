"""What the readers of test sets share: numbered lines, checked fields, captions by picture."""

from __future__ import annotations

import json
import reprlib
from array import array
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mwa_export.data.test_set import RetrievalData
from mwa_export.errors import DataError
from mwa_export.inputs.content import Caption
from mwa_export.inputs.pictures import Picture

MAX_ID = 2**63 - 1  # ids are kept as int64
_BOM = b"\xef\xbb\xbf"


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file that the system does not let us read."""
    return DataError(f"{path}: cannot be read ({error.strerror or error}).")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file with their numbers from 1, ends kept and a BOM dropped.

    Only a newline ends a line, as a caption may hold the other characters Unicode calls line ends.

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, (line.removeprefix(_BOM) if number == 1 else line).decode()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}:{number}: is not UTF-8 ({error.reason} at byte {error.start}). "
                        "Expected text. Save the file as UTF-8."
                    ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON lines file, each with its place "file:line". Blank lines are skipped.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    for number, line in text_lines(path):
        if line.strip():
            where = f"{path}:{number}"
            yield where, json_object(line, where)


def json_object(source: str | bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        DataError: it is something else.
    """
    try:
        value = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not JSON ({error}). Expected one JSON object.") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: is {reprlib.repr(value)}. Expected a JSON object.")
    return value


def text_field(value: object, what: str, where: str) -> str:
    """A text that is not blank. ``what`` and ``where`` are for the message.

    Raises:
        DataError: it is missing, blank, or something else than a text.
    """
    if not isinstance(value, str):
        found = "missing" if value is None else reprlib.repr(value)
        raise DataError(f"{where}: {what} is {found}. Expected a text.")
    if not value.strip():
        raise DataError(f"{where}: {what} is blank. Fill it in or remove it.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can escape
            raise DataError(
                f"{where}: {what} is {reprlib.repr(value)}, which is not Unicode. Mend it."
            ) from error
    return value


def id_field(value: object, what: str, where: str) -> int:
    """An id: an integer from 0 that fits in int64.

    Raises:
        DataError: it is something else.
    """
    if type(value) is not int or not 0 <= value <= MAX_ID:
        found = "missing" if value is None else reprlib.repr(value)
        raise DataError(f"{where}: {what} is {found}. Expected an integer from 0.")
    return value


def caption_fields(record: Mapping[str, Any], column: str, where: str) -> list[str]:
    """The captions of a JSON object: a text or a list under ``column``.

    Only where ``column`` is the usual `caption`, `captions` serves as well.

    Raises:
        DataError: there is neither, there are both, or a caption is blank or no text.
    """
    usual = column == "caption"
    if usual and None not in (record.get(column), record.get("captions")):
        raise DataError(f"{where}: has `caption` and `captions`. Expected one. Remove the other.")
    name = "captions" if usual and record.get(column) is None else column
    value = record.get(name)
    if value is None:
        raise DataError(
            f"{where}: has no `{column}`{' and no `captions`' if usual else ''}. "
            f"It has: {names(record)}. "
            "Name another with --caption-column."
        )
    if not isinstance(value, list):
        return [text_field(value, f"`{name}`", where)]
    return [text_field(item, f"`{name}`[{n}]", where) for n, item in enumerate(value)]


def names(values: Iterable[object], limit: int = 20) -> str:
    """Names for a message, the first ``limit`` of them."""
    listed = [str(value) for value in values]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return (", ".join(listed[:limit]) + more).encode("utf-8", "backslashreplace").decode() or "none"


def split_is_empty(path: Path, split: str, splits: Iterable[str]) -> DataError:
    """The error for a split without rows, which lists the ``splits`` there are."""
    return DataError(
        f"{path}: has no pictures in split {split!r}. It has: {names(sorted(splits))}. "
        "Name one of them with --split."
    )


class Groups:
    """Captions grouped by picture. Both keep the order of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[Hashable, int] = {}
        self._pictures: list[Picture] = []
        self._places: list[str] = []  # where each picture occurred first, for messages
        self._captions: list[Caption] = []
        self._owners = array("q")  # row of the picture of each caption

    @property
    def keys(self) -> list[Hashable]:
        """What was given to name each picture, by row."""
        return list(self._rows)

    def add(self, key: Hashable, picture: Picture, where: str, *, what: str = "id") -> int:
        """Add a picture and return its row.

        Raises:
            DataError: the key is taken.
        """
        if key in self._rows:
            raise DataError(
                f"{where}: {what} {key} occurs a second time, after "
                f"{self._places[self._rows[key]]}. Expected each once. Remove one."
            )
        self._rows[key] = row = len(self._pictures)
        self._pictures.append(picture)
        self._places.append(where)
        return row

    def find_or_add(self, key: Hashable, picture: Picture, where: str, *, what: str = "id") -> int:
        """Row of a picture, which is added if the key is new.

        Raises:
            DataError: the key belongs to another picture.
        """
        row = self._rows.get(key)
        if row is None:
            return self.add(key, picture, where)
        if self._pictures[row] != picture:
            raise DataError(
                f"{where}: {what} {key} is {picture}, and at {self._places[row]} it is "
                f"{self._pictures[row]}. Expected one picture. Correct one of the two."
            )
        return row

    def add_captions(self, row: int, captions: Iterable[Caption]) -> None:
        """Add captions of the picture at ``row``."""
        before = len(self._captions)
        self._captions.extend(captions)
        self._owners.extend([row] * (len(self._captions) - before))

    def data(self, name: str, image_ids: Sequence[int] | None = None) -> RetrievalData:
        """The finished set. Pictures are numbered by first occurrence unless they have ids.

        Raises:
            DataError: there are no pictures, or some have no captions.
        """
        count = len(self._pictures)
        if not count:
            raise DataError(f"{self._path}: holds no pictures. Expected a picture and captions.")
        owners = np.asarray(self._owners, np.int64)
        alone = np.flatnonzero(np.bincount(owners, minlength=count) == 0)
        if alone.size:
            raise DataError(
                f"{self._path}: {alone.size} of {count} pictures have no captions, the first is "
                f"{self._pictures[alone[0]]} ({self._places[alone[0]]}). "
                "Add their captions or remove them."
            )
        ids = np.asarray(range(count) if image_ids is None else image_ids, np.int64)
        return RetrievalData(name, ids, tuple(self._pictures), tuple(self._captions), ids[owners])
