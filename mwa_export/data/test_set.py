"""A retrieval test set: which pictures, which captions, and what belongs together."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from mwa_export.data.fields import MAX_ID
from mwa_export.errors import DataError
from mwa_export.inputs.content import Caption, Readable


@dataclass(frozen=True, slots=True)
class Excluded:
    """A picture that was left out together with its captions, and why."""

    picture: str
    reason: str
    captions: int


@dataclass(frozen=True, slots=True)
class RetrievalData:
    """Pictures and captions of one split, in the order of the file."""

    name: str  # for people: the file and the split
    image_ids: NDArray[np.int64]  # (n_image,), unique
    pictures: tuple[Readable, ...]  # n_image
    captions: tuple[Caption, ...]  # n_text
    caption_image_ids: NDArray[np.int64]  # (n_text,)
    excluded: tuple[Excluded, ...] = ()

    def without(self, reasons: Mapping[int, str]) -> RetrievalData:
        """The set without some pictures (row -> why) and their captions; ``excluded`` lists them.

        Raises:
            DataError: no picture is left.
        """
        if not reasons:
            return self
        keep = np.ones(len(self.pictures), bool)
        keep[list(reasons)] = False
        if not keep.any():
            first = min(reasons)
            raise DataError(
                f"{self.name}: none of the {len(self.pictures)} pictures can be used, the first "
                f"because: {reasons[first]}"
            )
        excluded = tuple(
            Excluded(
                str(self.pictures[row]),
                reason,
                int((self.caption_image_ids == self.image_ids[row]).sum()),
            )
            for row, reason in sorted(reasons.items())
        )
        return replace(self.only(keep), excluded=self.excluded + excluded)

    def only(self, keep: NDArray[np.bool_]) -> RetrievalData:
        """Some pictures, (n_image,), with their captions, without calling the rest excluded."""
        captions = np.isin(self.caption_image_ids, self.image_ids[keep])
        return replace(
            self,
            image_ids=self.image_ids[keep],
            pictures=tuple(compress(self.pictures, keep)),
            captions=tuple(compress(self.captions, captions)),
            caption_image_ids=self.caption_image_ids[captions],
        )


class Groups:
    """Captions grouped by picture. Both keep the order of the file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._rows: dict[Hashable, int] = {}
        self._pictures: list[Readable] = []
        self._places: list[str] = []  # where each picture occurred first, for messages
        self._captions: list[Caption] = []
        self._owners = array("q")  # row of the picture of each caption

    def add(
        self,
        key: Hashable,
        picture: Readable,
        captions: Iterable[Caption],
        where: str,
        *,
        once: bool,
    ) -> None:
        """Add captions of a picture, which may have come before unless it comes ``once``.

        Raises:
            DataError: the key is taken.
        """
        row = self._rows.setdefault(key, len(self._pictures))
        if row == len(self._pictures):
            self._pictures.append(picture)
            self._places.append(where)
        elif once:
            raise DataError(
                f"{where}: the id {key} occurs a second time, after {self._places[row]}. "
                "Expected each once. Remove one."
            )
        elif self._pictures[row] != picture:
            raise DataError(
                f"{where}: the id {key} is {picture}, and at {self._places[row]} it is "
                f"{self._pictures[row]}. Expected one picture. Correct one of the two."
            )
        before = len(self._captions)
        self._captions.extend(captions)
        self._owners.extend([row] * (len(self._captions) - before))

    def data(self, name: str, *, numbered: bool = False) -> RetrievalData:
        """The finished set. Pictures are ``numbered`` in order unless their keys are integers.

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
        ids = np.asarray((not numbered and _numbers(self._rows)) or range(count), np.int64)
        return RetrievalData(name, ids, tuple(self._pictures), tuple(self._captions), ids[owners])


def _numbers(keys: Iterable[Hashable]) -> list[int] | None:
    """Keys as integers, or None if one is something else, or another way to write its number."""
    ids = []
    for key in keys:
        # ASCII: int() takes other digits, too. Written back: "007" is not 7.
        if not isinstance(key, str) or not (key.isascii() and key.isdecimal()) or len(key) > 19:
            return None
        ids.append(int(key))
        if str(ids[-1]) != key or ids[-1] > MAX_ID:
            return None
    return ids
