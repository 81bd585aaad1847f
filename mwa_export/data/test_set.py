"""A retrieval test set: which pictures, which captions, and what belongs together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import DataError
from mwa_export.inputs.content import Caption
from mwa_export.inputs.pictures import Picture


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
    pictures: tuple[Picture, ...]  # n_image
    captions: tuple[Caption, ...]  # n_text
    caption_image_ids: NDArray[np.int64]  # (n_text,)
    excluded: tuple[Excluded, ...] = ()

    def without(self, reasons: Mapping[int, str]) -> RetrievalData:
        """The set without some pictures and without their captions, which ``excluded`` then lists.

        Args:
            reasons: row of each picture to leave out -> why.

        Raises:
            DataError: no picture is left.
        """
        if not reasons:
            return self
        keep = np.ones(len(self.pictures), bool)
        keep[list(reasons)] = False
        kept_captions = np.isin(self.caption_image_ids, self.image_ids[keep])
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
        return replace(
            self,
            image_ids=self.image_ids[keep],
            pictures=tuple(p for p, kept in zip(self.pictures, keep, strict=True) if kept),
            captions=tuple(c for c, kept in zip(self.captions, kept_captions, strict=True) if kept),
            caption_image_ids=self.caption_image_ids[kept_captions],
            excluded=self.excluded + excluded,
        )
