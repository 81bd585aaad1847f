"""Paint a demo scene as a small JPEG: things, background, light and sensor noise."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from mwa_export.demo.shapes import MIDDLES, SHAPES, TEXTURES, Plane, Points
from mwa_export.demo.words import Group, Place, Scene

Canvas = NDArray[np.float32]  # (height, width, 3), RGB, 0 to 255
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

WIDTH, HEIGHT = 160, 120  # pixels
_RADIUS = {"small": 10.5, "medium": 15.5, "large": 23.0}  # pixels
_OVERSAMPLING = 3  # for smooth edges of shapes

_COLOURS = {
    "red": (205, 35, 40), "green": (40, 150, 60), "blue": (40, 80, 205), "yellow": (240, 215, 50),
    "orange": (240, 130, 30), "purple": (125, 50, 165), "white": (245, 245, 245),
    "black": (25, 25, 28), "teal": (15, 150, 150), "pink": (245, 125, 175), "brown": (115, 70, 35),
    "lime": (150, 215, 40), "navy": (30, 38, 120), "gold": (225, 175, 45), "maroon": (125, 20, 45),
    "cream": (250, 240, 205),
}  # fmt: skip


def image_from_scene(
    scene: Scene, rng: np.random.Generator
) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Paint the scene; ``rng`` determines light, jitter and noise.

    Returns:
        The image, 160 x 120 pixels RGB, and the group at each pixel: (120, 160) uint8, numbered
        from 1, 0 = background.
    """
    owners = np.zeros((HEIGHT, WIDTH), np.uint8)
    canvas = _BACKGROUNDS[scene.background](rng)
    light = rng.uniform(0, 2 * math.pi)
    boxes = _boxes(scene.place, len(scene.groups))
    for number, (group, box) in enumerate(zip(scene.groups, boxes, strict=True), start=1):
        covered = _paint_group(canvas, group, box, light, rng)
        owners[covered > 0.5] = number
    y, x = _grid()
    slope = math.cos(light) * (x / WIDTH - 0.5) + math.sin(light) * (y / HEIGHT - 0.5)
    gain = rng.uniform(0.5, 0.6) if scene.dim else rng.uniform(0.92, 1.08)
    canvas *= (gain * (1 - rng.uniform(0.1, 0.35) * slope))[:, :, None]
    canvas *= rng.uniform(0.95, 1.05, 3).astype(np.float32)  # white balance
    canvas += rng.normal(0, rng.uniform(2, 6), canvas.shape).astype(np.float32)
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6))), owners


def jpeg_from_image(image: Image.Image, *, quality: int) -> bytes:
    """Encode the image as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


# --- layout ----------------------------------------------------------------------------------


def _boxes(place: Place, number: int) -> list[Box]:
    """Return a box of the image for each group."""
    if place == "row":
        edges = np.linspace(2, WIDTH - 2, number + 1).tolist()
        return [(a, 2, b, HEIGHT - 2) for a, b in pairwise(edges)]
    if place == "column":
        edges = np.linspace(1, HEIGHT - 1, number + 1).tolist()
        return [(2, a, WIDTH - 2, b) for a, b in pairwise(edges)]
    return [
        {
            "centre": (40.0, 25.0, 120.0, 95.0),
            "left": (2.0, 4.0, 60.0, 116.0),
            "right": (100.0, 4.0, 158.0, 116.0),
            "top": (4.0, 2.0, 156.0, 46.0),
            "bottom": (4.0, 74.0, 156.0, 118.0),
        }[place]
    ]


def _paint_group(
    canvas: Canvas, group: Group, box: Box, light: float, rng: np.random.Generator
) -> Plane:
    """Paint a group in place. Returns its coverage of each pixel: (HEIGHT, WIDTH), 0 to 1."""
    covered = np.zeros((HEIGHT, WIDTH, 1), np.float32)
    left, top, right, bottom = box
    layouts = [(c, -(-group.count // c)) for c in range(1, group.count + 1)]  # columns, rows
    columns, rows = max(layouts, key=lambda at: min((right - left) / at[0], (bottom - top) / at[1]))
    wide, high = (right - left) / columns, (bottom - top) / rows
    radius = min(_RADIUS[group.size] * rng.uniform(0.92, 1.08), wide / 2, high / 2)
    cells = rng.permutation(columns * rows)[: group.count]
    # The group stays together: its cells shrink towards a common point of the box.
    shrink_x = min(1.0, 2.6 * radius / wide)
    shrink_y = min(1.0, 2.6 * radius / high)
    x0 = left + (right - left) * (1 - shrink_x) * rng.random()
    y0 = top + (bottom - top) * (1 - shrink_y) * rng.random()
    wide, high = wide * shrink_x, high * shrink_y
    for cell in cells:
        x = x0 + (cell % columns + 0.5) * wide + rng.uniform(-1, 1) * max(0.0, wide / 2 - radius)
        y = y0 + (cell // columns + 0.5) * high + rng.uniform(-1, 1) * max(0.0, high / 2 - radius)
        _paint_thing(canvas, covered, group, (x, y), radius, light, rng)
    return covered[:, :, 0]


# --- one thing -------------------------------------------------------------------------------


def _paint_thing(
    canvas: Canvas,
    covered: Canvas,
    group: Group,
    centre: tuple[float, float],
    radius: float,
    light: float,
    rng: np.random.Generator,
) -> None:
    angle = rng.uniform(-0.3, 0.3)
    stretch = rng.uniform(0.92, 1.08)
    reach = math.ceil(radius * 1.15) + 2
    left, top = int(centre[0]) - reach, int(centre[1]) - reach
    side = 2 * reach
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) + np.float32(0.5)
    du, dv = (x + left - centre[0]) / radius, (y + top - centre[1]) / radius
    u = math.cos(angle) * du + math.sin(angle) * dv  # (side, side), in the thing's frame
    v = math.cos(angle) * dv - math.sin(angle) * du
    alpha = _mask(
        group.shape, group.texture == "hollow", side, radius, angle, stretch,
        (centre[0] - left, centre[1] - top),
    )  # fmt: skip
    colour = np.array(_COLOURS[group.colour], np.float32) + rng.normal(0, 7, 3).astype(np.float32)
    second = colour * 0.3 if colour.mean() > 110 else colour * 0.35 + 165
    mix = TEXTURES[group.texture](u, v)[:, :, None]
    paint = colour * (1 - mix) + second * mix
    paint *= (1 - 0.22 * (math.cos(light) * du + math.sin(light) * dv))[:, :, None]
    shade_x = round(0.16 * radius * math.cos(light))
    shade_y = round(0.16 * radius * math.sin(light))
    _blend(canvas, alpha * 0.35, np.zeros(3, np.float32), left + shade_x, top + shade_y)
    _blend(canvas, alpha, paint, left, top)
    _blend(covered, alpha, np.ones(1, np.float32), left, top)


def _mask(
    shape: str,
    hollow: bool,
    side: int,
    radius: float,
    angle: float,
    stretch: float,
    centre: tuple[float, float],
) -> Plane:
    """Return the thing's coverage of each pixel: (side, side), 0 to 1."""
    k = _OVERSAMPLING
    image = Image.new("L", (side * k, side * k))
    draw = ImageDraw.Draw(image)
    cos, sin = math.cos(angle) * radius * k, math.sin(angle) * radius * k

    def to_pixels(points: Points, scale: float) -> Points:
        middle = MIDDLES.get(shape, (0.0, 0.0))
        placed = []
        for px, py in points:
            qx = (middle[0] + (px - middle[0]) * scale) * stretch
            qy = (middle[1] + (py - middle[1]) * scale) / stretch
            placed.append(
                (centre[0] * k + cos * qx - sin * qy, centre[1] * k + sin * qx + cos * qy)
            )
        return placed

    for points, fill in SHAPES[shape]:
        draw.polygon(to_pixels(points, 1.0), fill=255 * fill)
    if hollow:
        for points, fill in SHAPES[shape]:
            if fill:
                draw.polygon(to_pixels(points, 0.6), fill=0)
    covered: Plane = np.asarray(image.reduce(k), np.float32) / np.float32(255)
    return covered


def _blend(canvas: Canvas, alpha: Plane, paint: NDArray[np.float32], left: int, top: int) -> None:
    """Blend ``paint`` into the canvas in place, with its corner at (left, top), clipped."""
    side = alpha.shape[0]
    y0, y1 = max(0, top), min(HEIGHT, top + side)
    x0, x1 = max(0, left), min(WIDTH, left + side)
    inner = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    a = alpha[inner][:, :, None]
    over = paint[inner] if paint.ndim == 3 else paint
    canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * (1 - a) + over * a


# --- backgrounds -----------------------------------------------------------------------------


def _grid() -> tuple[Plane, Plane]:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    return y, x


def _clouds(rng: np.random.Generator, cells: int) -> Plane:
    """Make smooth noise (HEIGHT, WIDTH) of about -1 to 1, with ``cells`` patches per row."""
    coarse = rng.normal(0, 0.5, (max(2, cells * 3 // 4), cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def _tinted(colour: tuple[int, int, int], pattern: Plane, rng: np.random.Generator) -> Canvas:
    """Fill (HEIGHT, WIDTH, 3) with a slightly shifted colour, and add a brightness pattern."""
    shift = np.array(colour, np.float32) + rng.normal(0, 6, 3).astype(np.float32)
    return shift + pattern[:, :, None]


def _cloudy(
    colour: tuple[int, int, int],
    first: tuple[float, int],
    second: tuple[float, int],
    rng: np.random.Generator,
) -> Canvas:
    """Fill with a colour and two patterns of clouds, each given as strength and ``cells``."""
    pattern = first[0] * _clouds(rng, first[1]) + second[0] * _clouds(rng, second[1])
    return _tinted(colour, pattern, rng)


def _sky(rng: np.random.Generator) -> Canvas:
    y, _ = _grid()
    fade = (35 * (y / HEIGHT - 0.5)).astype(np.float32)
    return _tinted((160, 200, 235), fade + 12 * _clouds(rng, 7), rng)


def _cloth(rng: np.random.Generator) -> Canvas:
    y, x = _grid()
    return _tinted((232, 165, 180), 9 * (np.sin(x * 1.1) + np.sin(y * 1.1)).astype(np.float32), rng)


def _planks(rng: np.random.Generator) -> Canvas:
    y, _ = _grid()
    high = rng.uniform(15, 24)
    row = np.floor(y / high)
    grain = 9 * np.sin(y * 2.1 + 3 * _clouds(rng, 5)) + 12 * np.sin(row * 12.9)
    grain -= 45 * ((y % high) < 1.6)
    return _tinted((176, 124, 74), (grain + 4 * _clouds(rng, 50)).astype(np.float32), rng)


def _night(rng: np.random.Generator) -> Canvas:
    canvas = _tinted((20, 24, 52), 6 * _clouds(rng, 5), rng)
    stars = rng.integers(0, (HEIGHT, WIDTH), (45, 2))
    canvas[stars[:, 0], stars[:, 1]] = rng.uniform(140, 255, (45, 1)).astype(np.float32)
    return canvas


def _sand(rng: np.random.Generator) -> Canvas:
    y, _ = _grid()
    ripples = 10 * np.sin(y * rng.uniform(0.35, 0.55) + 4 * _clouds(rng, 4))
    return _tinted((224, 196, 132), ripples + 8 * _clouds(rng, 90), rng)


def _lattice(
    colour: tuple[int, int, int], joint: float, offset: float, rng: np.random.Generator
) -> Canvas:
    """Draw bricks or tiles: rows of blocks with joints, every second row moved by ``offset``."""
    y, x = _grid()
    high = rng.uniform(14, 18)
    wide = high * (2.2 if offset else 1.4)
    row = np.floor(y / high)
    x = x + (row % 2) * offset * wide
    joints = ((y % high) < 2) | ((x % wide) < 2)
    tone = 14 * np.sin(np.floor(x / wide) * 7.3 + row * 3.7)
    pattern = np.where(joints, np.float32(joint), tone).astype(np.float32)
    return _tinted(colour, pattern + 5 * _clouds(rng, 60), rng)


_BACKGROUNDS: dict[str, Callable[[np.random.Generator], Canvas]] = {
    "sky": _sky, "cloth": _cloth, "planks": _planks, "night": _night, "sand": _sand,
    "wall": partial(_cloudy, (150, 150, 152), (10, 4), (5, 40)),
    "paper": partial(_cloudy, (222, 203, 165), (7, 80), (6, 6)),
    "board": partial(_cloudy, (38, 66, 55), (12, 5), (6, 60)),
    "grass": partial(_cloudy, (78, 135, 55), (28, 80), (10, 9)),
    "bricks": partial(_lattice, (158, 78, 62), 60.0, 0.5),
    "tiles": partial(_lattice, (165, 170, 172), -60.0, 0.0),
}  # fmt: skip
