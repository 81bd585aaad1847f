"""Examples: the queries whose rank changed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mwa_export.data.test_set import RetrievalData
from mwa_export.inputs.content import Caption
from mwa_export.metrics.ranking import Ranking
from mwa_export.parity.result import Direction, Example

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Labels:
    """Names of images and texts of captions, for display."""

    pictures: Sequence[str]  # n_image
    captions: Sequence[str]  # n_text

    @classmethod
    def of_data(cls, data: RetrievalData) -> Labels:
        """File names and captions of a test set."""
        return cls([p.name for p in data.pictures], [_text(caption) for caption in data.captions])

    @classmethod
    def of_counts(cls, images: int, captions: int) -> Labels:
        """Row numbers as labels, for data without names and texts."""
        return cls(
            [f"image {row}" for row in range(images)],
            [f"caption {row}" for row in range(captions)],
        )


def best_examples(
    before: tuple[Ranking, Ranking],
    after: tuple[Ranking, Ranking],
    owners: Ints,
    labels: Labels,
    count: int,
) -> tuple[Example, ...]:
    """Return the queries whose rank improved by the largest factor, best first.

    Arguments are those of `worst_examples`.
    """
    return tuple(
        replace(example, rank_before=example.rank_after, rank_after=example.rank_before)
        for example in worst_examples(after, before, owners, labels, count)
    )


def worst_examples(
    before: tuple[Ranking, Ranking],
    after: tuple[Ranking, Ranking],
    owners: Ints,
    labels: Labels,
    count: int,
) -> tuple[Example, ...]:
    """Return the queries whose rank worsened by the largest factor, worst first.

    Queries are sorted by factor, not by difference: falling from rank 1 to 5 hurts more than
    falling from 400 to 900.

    Args:
        before: the reference's rankings of text retrieval and of image retrieval.
        after: the candidate's.
        owners: (n_text,) image row of each caption.
        labels: names of images and texts of captions.
        count: examples per direction.
    """
    first_caption = np.zeros(len(labels.pictures), np.int64)
    first_caption[owners[::-1]] = np.arange(len(owners))[::-1]
    directions: tuple[Direction, ...] = ("tr", "ir")
    examples = []
    for direction, old, new in zip(directions, before, after, strict=True):
        for query in _worst(old, new, count):
            right, winner = int(old.right[query]), int(new.top[query, 0])
            # Rows of the right item, and of the item that ranks first afterwards.
            if direction == "tr":
                images, captions = (query, int(owners[winner])), (right, winner)
            else:
                images, captions = (right, winner), (query, int(first_caption[winner]))
            example = Example(
                direction=direction,
                query=query,
                rank_before=int(old.ranks[query]),
                rank_after=int(new.ranks[query]),
                image=images[0],
                caption=labels.captions[captions[0]],
                winner_image=images[1],
                winner_caption=labels.captions[captions[1]],
                picture=labels.pictures[images[0]],
                winner_picture=labels.pictures[images[1]],
            )
            examples.append(example)
    return tuple(examples)


def _worst(before: Ranking, after: Ranking, count: int) -> list[int]:
    factor = after.ranks / before.ranks
    order = np.argsort(-factor, kind="stable")[:count]
    return [int(query) for query in order if factor[query] > 1]


def _text(caption: Caption) -> str:
    return caption if isinstance(caption, str) else "token ids " + " ".join(map(str, caption))
