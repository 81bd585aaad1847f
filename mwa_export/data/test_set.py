"""A retrieval test set: images, captions, and which captions belong to which image."""

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
    """An image that was left out together with its captions, and the reason."""

    picture: str
    reason: str
    captions: int


@dataclass(frozen=True, slots=True)
class RetrievalData:
    """Images and captions of one split, in the order of the file."""

    name: str  # the file and the split, for messages
    image_ids: NDArray[np.int64]  # (n_image,), unique
    pictures: tuple[Readable, ...]  # n_image
    captions: tuple[Caption, ...]  # n_text
    caption_image_ids: NDArray[np.int64]  # (n_text,)
    excluded: tuple[Excluded, ...] = ()

    def without(self, reasons: Mapping[int, str]) -> RetrievalData:
        """Leave out some images (row -> reason) and their captions; ``excluded`` lists them.

        Raises:
            DataError: no image is left.
        """
        if not reasons:
            return self
        keep = np.ones(len(self.pictures), bool)
        keep[list(reasons)] = False
        if not keep.any():
            first = min(reasons)
            raise DataError(
                f"{self.name}: none of the {len(self.pictures)} images can be used. The first one: "
                f"{reasons[first]}"
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
        """Select images by a mask (n_image,), with their captions. ``excluded`` stays unchanged."""
        captions = np.isin(self.caption_image_ids, self.image_ids[keep])
        return replace(
            self,
            image_ids=self.image_ids[keep],
            pictures=tuple(compress(self.pictures, keep)),
            captions=tuple(compress(self.captions, captions)),
            caption_image_ids=self.caption_image_ids[captions],
        )


class Groups:
    """Captions grouped by image. Both keep the order of the file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._rows: dict[Hashable, int] = {}
        self._pictures: list[Readable] = []
        self._places: list[str] = []  # where each image occurred first, for messages
        self._captions: list[Caption] = []
        self._owners = array("q")  # for each caption, the row of its image

    def add(
        self,
        key: Hashable,
        picture: Readable,
        captions: Iterable[Caption],
        where: str,
        *,
        once: bool,
    ) -> None:
        """Add captions of an image. With ``once``, the image must be new.

        Raises:
            DataError: the key belongs to another image, or occurs twice with ``once``.
        """
        row = self._rows.setdefault(key, len(self._pictures))
        if row == len(self._pictures):
            self._pictures.append(picture)
            self._places.append(where)
        elif once:
            raise DataError(
                f"{where}: the id {key} already occurs in {self._places[row]}. Expected each id "
                "once. Remove one of the two."
            )
        elif self._pictures[row] != picture:
            raise DataError(
                f"{where}: the id {key} is {picture}, but at {self._places[row]} it is "
                f"{self._pictures[row]}. Expected one image per id. Correct one of the two."
            )
        before = len(self._captions)
        self._captions.extend(captions)
        self._owners.extend([row] * (len(self._captions) - before))

    def data(self, name: str, *, numbered: bool = False) -> RetrievalData:
        """Return the finished set. Image ids are the keys if these are integers and not
        ``numbered``, otherwise numbers from 0.

        Raises:
            DataError: there are no images, or some have no captions.
        """
        count = len(self._pictures)
        if not count:
            raise DataError(f"{self._path}: has no images. Expected images with captions.")
        owners = np.asarray(self._owners, np.int64)
        alone = np.flatnonzero(np.bincount(owners, minlength=count) == 0)
        if alone.size:
            raise DataError(
                f"{self._path}: {alone.size} of {count} images have no captions. The first one is "
                f"{self._pictures[alone[0]]} ({self._places[alone[0]]}). "
                "Add captions or remove these images."
            )
        ids = np.asarray((not numbered and _numbers(self._rows)) or range(count), np.int64)
        return RetrievalData(name, ids, tuple(self._pictures), tuple(self._captions), ids[owners])


def _numbers(keys: Iterable[Hashable]) -> list[int] | None:
    """Convert keys to integers; None if one is not an integer in its usual form."""
    ids = []
    for key in keys:
        # int() also accepts digits that are not ASCII. The comparison below rejects "007".
        if not isinstance(key, str) or not (key.isascii() and key.isdecimal()) or len(key) > 19:
            return None
        ids.append(int(key))
        if str(ids[-1]) != key or ids[-1] > MAX_ID:
            return None
    return ids
