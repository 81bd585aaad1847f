"""Outlines and textures of the things in demo scenes, in coordinates of about -1 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]  # (height, width)
Points = list[tuple[float, float]]  # corners in the unit circle, y down


def _arc(
    cx: float, cy: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0
) -> Points:
    steps = np.radians(np.linspace(start, stop, 28))
    return [(cx + rx * math.cos(t), cy + ry * math.sin(t)) for t in steps]


def _polar(radius: Callable[[float], float], steps: int) -> Points:
    turns = [2 * math.pi * i / steps - math.pi / 2 for i in range(steps)]
    return [(radius(t) * math.cos(t), radius(t) * math.sin(t)) for t in turns]


def _heart() -> Points:
    turns = np.linspace(0, 2 * math.pi, 36)
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in turns
    ]


def _star() -> Points:
    corners = _polar(lambda _: 1.0, 10)
    return [(x, y) if i % 2 == 0 else (0.42 * x, 0.42 * y) for i, (x, y) in enumerate(corners)]


MIDDLES = {"moon": (-0.55, 0.0), "house": (0.0, 0.2), "tree": (0.0, 0.05), "boat": (0.0, 0.1)}
SHAPES: dict[str, list[tuple[Points, int]]] = {
    "circle": [(_arc(0, 0, 0.92, 0.92), 1)],
    "square": [([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)], 1)],
    "triangle": [([(0, -0.95), (0.95, 0.8), (-0.95, 0.8)], 1)],
    "star": [(_star(), 1)],
    "cross": [
        ([(-0.3, -0.95), (0.3, -0.95), (0.3, 0.95), (-0.3, 0.95)], 1),
        ([(-0.95, -0.3), (0.95, -0.3), (0.95, 0.3), (-0.95, 0.3)], 1),
    ],
    "ring": [(_arc(0, 0, 0.95, 0.95), 1), (_arc(0, 0, 0.5, 0.5), 0)],
    "heart": [(_heart(), 1)],
    "diamond": [([(0, -1), (0.62, 0), (0, 1), (-0.62, 0)], 1)],
    "fish": [
        (_arc(-0.2, 0, 0.75, 0.5), 1),
        ([(0.35, 0), (0.95, -0.5), (0.95, 0.5)], 1),
    ],
    "leaf": [
        (_arc(-0.75, 0, 1.2, 1.2, -50, 50) + _arc(0.75, 0, 1.2, 1.2, 130, 230), 1),
        ([(-0.06, 0.8), (0.06, 0.8), (0.06, 1.1), (-0.06, 1.1)], 1),
    ],
    "mushroom": [
        (_arc(0, 0.05, 0.95, 0.95, 180, 360), 1),
        ([(-0.28, 0), (0.28, 0), (0.34, 0.9), (-0.34, 0.9)], 1),
    ],
    "flower": [(_polar(lambda t: 0.68 + 0.3 * math.cos(5 * t), 60), 1)],
    "house": [
        ([(-0.7, -0.05), (0.7, -0.05), (0.7, 0.9), (-0.7, 0.9)], 1),
        ([(0, -0.95), (0.98, 0), (-0.98, 0)], 1),
    ],
    "moon": [(_arc(0, 0, 0.95, 0.95), 1), (_arc(0.45, 0, 0.78, 0.78), 0)],
    "boat": [
        ([(-0.95, 0.4), (0.95, 0.4), (0.6, 0.9), (-0.6, 0.9)], 1),
        ([(-0.05, -0.95), (-0.05, 0.3), (-0.8, 0.3)], 1),
        ([(0.08, -0.8), (0.7, 0.3), (0.08, 0.3)], 1),
    ],
    "tree": [
        ([(0, -1), (0.6, -0.1), (-0.6, -0.1)], 1),
        ([(0, -0.6), (0.8, 0.6), (-0.8, 0.6)], 1),
        ([(-0.15, 0.6), (0.15, 0.6), (0.15, 1), (-0.15, 1)], 1),
    ],
}
Texture = Callable[[Plane, Plane], Plane]  # 1 where the second colour shows
TEXTURES: dict[str, Texture] = {
    "plain": lambda u, v: np.zeros_like(u),
    "hollow": lambda u, v: np.zeros_like(u),
    "striped": lambda u, v: (np.sin(6.5 * (u + 0.5 * v)) > 0.1).astype(np.float32),
    "dotted": lambda u, v: (
        ((u * 1.7 + 0.5) % 1 - 0.5) ** 2 + ((v * 1.7 + 0.5) % 1 - 0.5) ** 2 < 0.075
    ).astype(np.float32),
    "checked": lambda u, v: ((np.floor(u * 2) + np.floor(v * 2)) % 2).astype(np.float32),
    "two-tone": lambda u, v: (u > 0).astype(np.float32),
}
