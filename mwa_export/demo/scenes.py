"""Random images with captions, for the demo, its training and the tests. Needs no data set.

Scene number i of a seed is always the same image, regardless of how many are drawn.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mwa_export.demo.drawing import image_from_scene, jpeg_from_image
from mwa_export.demo.words import (
    STYLES,
    Family,
    Group,
    Place,
    Scene,
    Size,
    Style,
    captions_from_scene,
    pick,
)


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of a scene with five captions."""

    jpeg: bytes  # content of a JPEG file, 160 x 120 pixels, RGB
    captions: list[str]
    scene: Scene
    owners: NDArray[np.uint8]  # (120, 160), group at each pixel, from 1; 0 = background


def picture_from_seed(family: Family, seed: int, index: int) -> Picture:
    """Draw image ``index`` of a seed in memory."""
    rng = np.random.default_rng([seed, index, tuple(STYLES).index(family)])
    scene = _random_scene(STYLES[family], rng)
    captions = captions_from_scene(scene, STYLES[family], rng)
    image, owners = image_from_scene(scene, rng)
    jpeg = jpeg_from_image(image, quality=int(rng.integers(75, 93)))
    return Picture(jpeg, captions, scene, owners)


def write_scenes(out: Path, *, family: Family, count: int, seed: int, split: str = "test") -> Path:
    """Draw images as files. Returns the path of their captions, in Karpathy's JSON format.

    ``family``: "base" for scenes of the base training, "target" for those of the adapters.
    """
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    for index in range(count):
        picture = picture_from_seed(family, seed, index)
        captions = picture.captions
        filename = f"{split}_{index + 1:06d}.jpg"
        (folder / filename).write_bytes(picture.jpeg)
        first = index * len(captions)
        images.append(
            {
                "filepath": "images",
                "filename": filename,
                "split": split,
                "imgid": index,
                "cocoid": index + 1,
                "sentids": list(range(first, first + len(captions))),
                "sentences": [
                    {"raw": text, "tokens": _words(text), "imgid": index, "sentid": number}
                    for number, text in enumerate(captions, first)
                ],
            }
        )
    path = out / "dataset.json"
    data = {"dataset": f"mwa-export demo, {family} family, seed {seed}", "images": images}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def _words(caption: str) -> list[str]:
    return caption.lower().replace(",", " ").replace(".", " ").split()


def _random_scene(style: Style, rng: np.random.Generator) -> Scene:
    number = int(rng.choice(3, p=(0.25, 0.5, 0.25))) + 1
    places = ("centre", "left", "right", "top", "bottom") if number == 1 else ("row", "column")
    background = pick(rng, tuple(style.backgrounds))
    shapes = rng.permutation(tuple(style.shapes))[:number]
    groups = []
    for shape in shapes:
        clashes = style.clashes.get(background, ())
        colour = pick(rng, tuple(colour for colour in style.colours if colour not in clashes))
        size = cast(Size, pick(rng, ("small", "medium", "large")))
        counts = (0.7, 0.3, 0.0, 0.0) if size == "large" else (0.35, 0.3, 0.2, 0.15)
        count = int(rng.choice(4, p=counts)) + 1
        groups.append(Group(str(shape), colour, pick(rng, tuple(style.textures)), size, count))
    place = cast(Place, pick(rng, places))
    return Scene(tuple(groups), place, background, dim=bool(rng.random() < 0.2))
