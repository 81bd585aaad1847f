"""Training data of the demo model: images, captions and labels, and their batches."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mwa_export.demo.scenes import Picture, picture_from_seed
from mwa_export.demo.words import STYLES, Family, Place, Scene, Size, Style
from mwa_export.inputs.preprocess import normalize, pixels_from_image
from mwa_export.inputs.tokenizer import Tokenizer, pad

IMAGE_SIZE, PATCH_SIZE = 64, 8  # pixels
PIECES = 600  # vocabulary size: enough for each common word to be one piece


@dataclass(frozen=True, slots=True)
class Pictures:
    """Preprocessed images and their captions."""

    pixels: NDArray[np.uint8]  # (N, IMAGE_SIZE, IMAGE_SIZE, 3)
    captions: list[list[str]]  # five per image
    facts: NDArray[np.float32]  # (N, number of facts of the family), 1 where true
    patches: NDArray[np.float32]  # (N, patches, number of attributes), 1 where true


def draw(family: Family, seed: int, count: int) -> Pictures:
    """Draw ``count`` images on all cores, JPEG-compressed and preprocessed as in inference."""
    with ProcessPoolExecutor() as pool:
        drawn = list(pool.map(partial(_draw_one, family, seed), range(count), chunksize=100))
    pixels, captions, facts, patches = zip(*drawn, strict=True)
    return Pictures(np.stack(pixels), list(captions), np.stack(facts), np.stack(patches))


def mixed(first: Pictures, second: Pictures) -> Pictures:
    """Concatenate both sets, with separate label columns for each."""

    def beside(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
        both = np.zeros((len(a) + len(b), *a.shape[1:-1], a.shape[-1] + b.shape[-1]), np.float32)
        both[: len(a), ..., : a.shape[-1]] = a
        both[len(a) :, ..., a.shape[-1] :] = b
        return both

    pixels = np.concatenate([first.pixels, second.pixels])
    captions = first.captions + second.captions
    return Pictures(
        pixels, captions, beside(first.facts, second.facts), beside(first.patches, second.patches)
    )


def _draw_one(family: Family, seed: int, index: int) -> tuple[Any, ...]:
    picture = picture_from_seed(family, seed, index)
    pixels = pixels_from_image(Image.open(io.BytesIO(picture.jpeg)), IMAGE_SIZE)
    column = {fact: number for number, fact in enumerate(possible_facts(STYLES[family]))}
    facts = np.zeros(len(column), np.float32)
    for fact in facts_from_scene(picture.scene):
        facts[column[fact]] = 1
    return pixels, picture.captions, facts, _patch_labels(STYLES[family], picture)


def _patch_labels(style: Style, picture: Picture) -> NDArray[np.float32]:
    """Label what covers each patch: (patches, attributes), all 0 for background."""
    attributes: list[object] = [*style.shapes, *style.colours, *style.textures]
    attributes += [*get_args(Size), 1, 2, 3, 4]
    side = IMAGE_SIZE // PATCH_SIZE
    high, wide = (length // side for length in picture.owners.shape)
    cells = picture.owners.reshape(side, high, side, wide).swapaxes(1, 2).reshape(side**2, -1)
    labels = np.zeros((side**2, len(attributes)), np.float32)
    for number, group in enumerate(picture.scene.groups, start=1):
        said = (group.shape, group.colour, group.texture, group.size, group.count)
        here = (cells == number).mean(1) > 0.15
        for word in said:
            labels[here, attributes.index(word)] = 1
    return labels


def facts_from_scene(scene: Scene) -> Iterator[tuple[object, ...]]:
    """Yield what is true in a scene, for the auxiliary loss, such as the colour of each shape."""
    yield "background", scene.background
    yield "place", scene.place
    yield "dim", scene.dim
    for number, group in enumerate(scene.groups):
        for attribute in (group.shape, group.colour, group.texture):
            yield "some", attribute
        yield group.shape, group.colour
        yield group.shape, group.texture
        yield group.shape, group.size
        yield group.shape, group.count
        yield group.shape, scene.place, number


def possible_facts(style: Style) -> list[tuple[object, ...]]:
    """List everything that ``facts_from_scene`` can yield in one family."""
    alone = [(place, 0) for place in get_args(Place)]
    together = [(place, number) for place in ("row", "column") for number in (1, 2)]
    attributes = [*style.colours, *style.textures, *get_args(Size), 1, 2, 3, 4]
    facts: list[tuple[object, ...]] = [("background", name) for name in style.backgrounds]
    facts += [("place", name) for name in get_args(Place)] + [("dim", True), ("dim", False)]
    facts += [("some", name) for name in [*style.shapes, *style.colours, *style.textures]]
    facts += [(shape, attribute) for shape in style.shapes for attribute in attributes]
    return facts + [(shape, *where) for shape in style.shapes for where in alone + together]


def sentencepiece_from_captions(captions: list[list[str]]) -> bytes:
    """Train a SentencePiece model whose ids + 1 are the reference's ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for texts in captions for text in texts]),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        required_chars="".join(map(chr, range(33, 127))),
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def batches(
    pictures: Pictures, tokenizer: Tokenizer, *, size: int, seed: int
) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
    """Yield endless shuffled batches: inputs (image, token ids, padding mask), facts, patch labels.

    Each time, one of an image's five captions is drawn.
    """
    rng = np.random.default_rng(seed)
    ids = [[tokenizer.encode(text) for text in texts] for texts in pictures.captions]
    while True:
        order = rng.permutation(len(ids))
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            chosen = [ids[row][rng.integers(len(ids[row]))] for row in rows]
            token_ids, padding_mask = map(torch.from_numpy, pad(chosen))
            facts = torch.from_numpy(pictures.facts[rows])
            patches = torch.from_numpy(pictures.patches[rows])
            inputs = [_augment(pictures.pixels[rows], rng), token_ids, padding_mask]
            yield inputs, facts, patches


def _augment(pixels: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Shift each image by up to 3 pixels and vary its light. Returns (B, 3, H, W) float32."""
    room = np.pad(pixels, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    shifts = rng.integers(0, 7, (len(pixels), 2))
    moved = np.stack(
        [
            one[y : y + IMAGE_SIZE, x : x + IMAGE_SIZE]
            for one, (y, x) in zip(room, shifts, strict=True)
        ]
    )
    images = normalize(moved)
    gain = rng.uniform(0.9, 1.1, (len(pixels), 1, 1, 1)).astype(np.float32)
    return torch.from_numpy((images + 1) * gain - 1)
