"""Damaged images of every format give pixels or one error."""

from __future__ import annotations

import numpy as np
import pytest
from fuzzing import cases, mutated, survived
from picture_formats import GOOD, REFUSED

from mwa_export.errors import ImageError
from mwa_export.inputs.decode import pixels_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FILES = {name: make() for name, make in GOOD.items()} | REFUSED


def test_damaged_picture_is_decoded_or_is_one_error() -> None:
    decoded = 0
    for rng in cases("picture", 12000):
        name = rng.choice(sorted(FILES))
        with survived(rng, ImageError):
            pixels = pixels_of(mutated(rng, FILES[name]), name, 32)
            decoded += 1
            assert pixels.shape == (32, 32, 3), rng
            assert pixels.dtype == np.uint8
    assert decoded
