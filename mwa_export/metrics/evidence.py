"""Whether a test set and its reference can say anything about a drop of recall."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mwa_export.metrics.ranking import Ranking

FEWEST_PICTURES = 50
MOST_REPEATED = 0.1  # share of the captions
NEAR_CHANCE = 0.25  # mean rank over the gallery: 0 is perfect, 0.5 is chance


def repeated_captions(captions: Iterable[object], owners: Iterable[int]) -> int:
    """Captions that read the same as a caption of another picture."""
    images, listed = dict[object, set[int]](), list(captions)
    for caption, owner in zip(listed, owners, strict=True):
        images.setdefault(caption, set()).add(owner)
    return sum(len(images[caption]) > 1 for caption in listed)


def objection_to_data(pictures: int, captions: int, repeated: int) -> str | None:
    """Why a test set is no evidence, or None. Known before anything is embedded."""
    if pictures < FEWEST_PICTURES:
        return f"{pictures} pictures are too few for evidence. Needed: {FEWEST_PICTURES} or more"
    if repeated > MOST_REPEATED * captions:
        return (
            f"{repeated:,} of {captions:,} captions read the same as a caption of another picture, "
            "so right answers count as wrong ones. Give captions that tell the pictures apart"
        )
    return None


def objection_to_reference(ir: Ranking) -> str | None:
    """Why the reference's recall can hardly drop, or None. ``ir``: its image retrieval."""
    mean = float(np.mean((ir.ranks - 0.5) / ir.gallery))
    if mean <= NEAR_CHANCE:
        return None
    return (
        f"the reference is near chance: a caption's picture ranks {mean:.0%} down the gallery on "
        "average, and chance is 50%. Check that the captions belong to the pictures"
    )
