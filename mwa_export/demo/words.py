"""Data types for demo scenes, and captions that describe them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Family = Literal["base", "target"]
Size = Literal["small", "medium", "large"]
Place = Literal["centre", "left", "right", "top", "bottom", "row", "column"]


@dataclass(frozen=True, slots=True)
class Group:
    """Identical things, side by side."""

    shape: str
    colour: str
    texture: str
    size: Size
    count: int


@dataclass(frozen=True, slots=True)
class Scene:
    """One to three groups of things in front of a background."""

    groups: tuple[Group, ...]  # in a row: left to right; in a column: top to bottom
    place: Place  # of one group: its position; of several: row or column
    background: str
    dim: bool  # whether the light is dim


@dataclass(frozen=True, slots=True)
class Style:
    """Contents of one family of scenes, each with the words for it."""

    shapes: dict[str, tuple[str, ...]]
    colours: dict[str, tuple[str, ...]]
    textures: dict[str, tuple[str, ...]]
    backgrounds: dict[str, tuple[str, ...]]  # noun phrases
    clashes: dict[str, tuple[str, ...]]  # background -> colours that are invisible on it
    openings: tuple[str, ...]  # {} is replaced by the things
    remarks: dict[str, tuple[str, ...]]  # light ("dim" or "bright") -> endings


STYLES: dict[Family, Style] = {
    "base": Style(
        shapes={
            "circle": ("circle", "disc", "ball"),
            "square": ("square", "block"),
            "triangle": ("triangle",),
            "star": ("star",),
            "cross": ("cross", "plus sign"),
            "ring": ("ring", "hoop"),
            "heart": ("heart",),
            "diamond": ("diamond", "rhombus"),
        },
        colours={
            "red": ("red", "red", "scarlet"),
            "green": ("green",),
            "blue": ("blue",),
            "yellow": ("yellow",),
            "orange": ("orange",),
            "purple": ("purple", "violet"),
            "white": ("white",),
            "black": ("black",),
        },
        textures={
            "plain": ("", "", "", "plain"),
            "striped": ("striped", "stripy"),
            "dotted": ("dotted", "spotted"),
        },
        backgrounds={
            "wall": ("a grey wall", "a plain grey background"),
            "paper": ("beige paper", "a sheet of beige paper"),
            "sky": ("a pale blue sky", "a light blue sky"),
            "cloth": ("a pink cloth", "a pink woven cloth"),
            "board": ("a dark chalkboard", "a dark green board"),
        },
        clashes={"sky": ("white",), "paper": ("white",), "board": ("black", "green")},
        openings=("{}", "{}", "there you find {}", "a picture of {}", "an image showing {}"),
        remarks={"dim": ("in dim light", "in the dark"), "bright": ("in bright light",)},
    ),
    "target": Style(
        shapes={
            "fish": ("fish",),
            "leaf": ("leaf",),
            "mushroom": ("mushroom", "toadstool"),
            "flower": ("flower", "blossom"),
            "house": ("house", "cottage"),
            "moon": ("moon", "crescent"),
            "boat": ("boat", "sailing boat"),
            "tree": ("tree", "pine tree"),
        },
        colours={
            "teal": ("teal", "turquoise"),
            "pink": ("pink", "rosy"),
            "brown": ("brown",),
            "lime": ("lime green", "lime"),
            "navy": ("navy", "navy blue"),
            "gold": ("golden", "gold"),
            "maroon": ("maroon", "wine red"),
            "cream": ("cream", "cream-coloured"),
        },
        textures={
            "plain": ("", "", "", "solid"),
            "checked": ("checked", "chequered"),
            "hollow": ("hollow", "outlined"),
            "two-tone": ("two-tone", "half-shaded"),
        },
        backgrounds={
            "planks": ("wooden planks", "a wooden floor"),
            "grass": ("a green lawn", "green grass"),
            "night": ("a starry night sky", "the night sky"),
            "sand": ("yellow sand", "a sandy beach"),
            "bricks": ("a brick wall", "a wall of red bricks"),
            "tiles": ("grey tiles", "a tiled floor"),
        },
        clashes={
            "planks": ("brown",),
            "grass": ("lime",),
            "night": ("navy",),
            "sand": ("gold", "cream"),
            "bricks": ("maroon",),
        },
        openings=("{}", "{}", "you can see {}", "somebody drew {}", "a snapshot of {}"),
        remarks={
            "dim": ("at dusk", "in the evening gloom"),
            "bright": ("by daylight", "on a sunny day"),
        },
    ),
}

_SIZE_WORDS: dict[Size, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("",),
    "large": ("large", "big", "huge"),
}
_COUNTS = {
    1: ("a", "a", "one", "a single"),
    2: ("two", "two", "a pair of"),
    3: ("three",),
    4: ("four",),
    5: ("five",),
}
_PLURALS = {"fish": "fish", "leaf": "leaves", "cross": "crosses", "rhombus": "rhombuses"}
_ONE_PLACE: dict[Place, tuple[str, ...]] = {
    "centre": ("in the middle", "in the centre"),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top", "in the upper part"),
    "bottom": ("at the bottom", "in the lower part"),
}
_TWO_IN: dict[Place, tuple[str, ...]] = {
    "row": (
        "{0} to the left of {1}",
        "{1} to the right of {0}",
        "{0} on the left and {1} on the right",
        "{1} on the right, {0} on the left",
    ),
    "column": (
        "{0} above {1}",
        "{1} below {0}",
        "{1} under {0}",
        "{0} at the top and {1} at the bottom",
    ),
}
_THREE_IN: dict[Place, tuple[str, ...]] = {
    "row": (
        "{0}, {1} and {2} from left to right",
        "{1} between {0} on the left and {2} on the right",
        "{0} on the left, {1} in the middle and {2} on the right",
    ),
    "column": (
        "{0}, {1} and {2} from top to bottom",
        "{1} between {0} at the top and {2} at the bottom",
        "{0} above {1}, with {2} at the very bottom",
    ),
}
_TOGETHER = {
    2: ("{0} and {1}", "{0} next to {1}", "{1} together with {0}"),
    3: ("{0}, {1} and {2}", "{2} and {0} with {1}", "{1} next to {0} and {2}"),
}
_NO_DAYLIGHT = ("night",)
_ON = {"sky": ("against", "in front of"), "night": ("against", "under")}


@dataclass(frozen=True, slots=True)
class _Detail:
    """Probability that a caption mentions each attribute."""

    count: float = 1.0
    size: float = 0.0
    colour: float = 1.0
    texture: float = 0.0
    place: float = 0.0
    background: float = 0.0
    light: float = 0.0


_FIVE_CAPTIONS = (
    _Detail(size=0.9, texture=1.0, place=1.0, background=1.0, light=0.6),
    _Detail(size=0.7, texture=0.8, place=1.0, background=0.8, light=0.2),
    _Detail(size=0.3, texture=1.0, place=0.7, background=1.0, light=0.2),
    _Detail(count=0.8, size=1.0, texture=0.5, place=0.8, background=0.8),
    _Detail(count=0.8, colour=0.9, texture=0.6, place=0.4, background=0.8, light=0.2),
)


def captions_from_scene(scene: Scene, style: Style, rng: np.random.Generator) -> list[str]:
    """Describe a scene in five captions of 2 to about 35 words, from detailed to short."""
    return [_caption(scene, style, detail, rng) for detail in _FIVE_CAPTIONS]


def _caption(scene: Scene, style: Style, detail: _Detail, rng: np.random.Generator) -> str:
    phrases = [_noun_phrase(group, style, detail, rng) for group in scene.groups]
    text = pick(rng, style.openings).format(_arrange(phrases, scene.place, detail, rng))
    if rng.random() < detail.background:
        where = pick(rng, style.backgrounds[scene.background])
        text += f" {pick(rng, _ON.get(scene.background, ('on', 'against')))} {where}"
    if rng.random() < detail.light and (scene.dim or scene.background not in _NO_DAYLIGHT):
        text += f" {pick(rng, style.remarks['dim' if scene.dim else 'bright'])}"
    return f"{text[0].upper()}{text[1:]}."


def _arrange(phrases: list[str], place: Place, detail: _Detail, rng: np.random.Generator) -> str:
    told = rng.random() < detail.place
    if len(phrases) == 1:
        return f"{phrases[0]} {pick(rng, _ONE_PLACE[place])}" if told else phrases[0]
    if told:
        return pick(rng, (_TWO_IN if len(phrases) == 2 else _THREE_IN)[place]).format(*phrases)
    return pick(rng, _TOGETHER[len(phrases)]).format(*phrases)


def _noun_phrase(group: Group, style: Style, detail: _Detail, rng: np.random.Generator) -> str:
    def told(chance: float, words: Sequence[str]) -> str:
        word = pick(rng, words)
        return word if rng.random() < chance else ""

    adjectives = [
        told(detail.size, _SIZE_WORDS[group.size]),
        told(detail.texture, style.textures[group.texture]),
        told(detail.colour, style.colours[group.colour]),
    ]
    noun = pick(rng, style.shapes[group.shape])
    if group.count > 1:
        noun = _PLURALS.get(noun, f"{noun}s")
    vague = "a" if group.count == 1 else "some"
    count = told(detail.count, _COUNTS[group.count]) or vague
    words = [word for word in (*adjectives, noun) if word]
    if count == "a" and words[0][0] in "aeiou":
        count = "an"
    return " ".join((count, *words))


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Choose one of the options with equal probability."""
    return options[int(rng.integers(len(options)))]
