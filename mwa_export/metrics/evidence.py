"""Checks of whether a test set and its reference can show a drop of recall."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mwa_export.metrics.ranking import Ranking

FEWEST_PICTURES = 50
MOST_REPEATED = 0.1  # largest share of captions that also occur with another image
NEAR_CHANCE = 0.25  # mean rank / gallery size: 0 is perfect, 0.5 is chance


def repeated_captions(captions: Iterable[object], owners: Iterable[int]) -> int:
    """Count captions that are identical to a caption of another image."""
    images, listed = dict[object, set[int]](), list(captions)
    for caption, owner in zip(listed, owners, strict=True):
        images.setdefault(caption, set()).add(owner)
    return sum(len(images[caption]) > 1 for caption in listed)


def objection_to_data(pictures: int, captions: int, repeated: int) -> str | None:
    """Why a test set is not evidence, or None. Needs no embeddings."""
    if pictures < FEWEST_PICTURES:
        return f"{pictures} images are too few to judge recall. Use at least {FEWEST_PICTURES}"
    if repeated > MOST_REPEATED * captions:
        return (
            f"{repeated:,} of {captions:,} captions are identical to a caption of another image, "
            "so right answers count as wrong. Use captions that tell the images apart"
        )
    return None


def objection_to_reference(ir: Ranking) -> str | None:
    """Why the reference's recall is too low to drop, or None. ``ir``: its image retrieval."""
    mean = float(np.mean((ir.ranks - 0.5) / ir.gallery))
    if mean <= NEAR_CHANCE:
        return None
    return (
        f"the reference is near chance: on average, a caption's image ranks {mean:.0%} down the "
        "gallery, and chance is 50%. Check that every caption belongs to its image"
    )
