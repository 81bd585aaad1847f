"""Convert images to model input like the reference: RGB, square bicubic resize, [-1, 1].

Needs numpy, and Pillow to resize. Images are not cropped, and their EXIF orientation is not
applied, because the reference does neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import ImageError
from mwa_export.spec import TowerSpec

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SPEC: dict[str, Any] = {
    "colour": "RGB",
    "resize": "bicubic, to the square, aspect ratio not kept",
    "exif_orientation": "not applied",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
"""The image preprocessing as data. It is stored in the manifest and part of the space id."""


def pixels_from_image(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Convert to RGB and resize. Returns (size, size, 3) uint8.

    The width is resized first, then the height, each rounded to bytes, like Pillow did by default
    when the reference was trained. Pillow 13 resizes the height of some images first, which
    changes their pixels.
    """
    from PIL import Image

    rgb = image if image.mode == "RGB" else image.convert("RGB")  # convert() always copies
    wide = rgb.resize((size, rgb.height), Image.Resampling.BICUBIC)
    return np.asarray(wide.resize((size, size), Image.Resampling.BICUBIC))


def normalize(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Normalize pixels: (..., H, W, 3) uint8 -> (..., 3, H, W) float32 in [-1, 1].

    Computes (x / 255 - 0.5) / 0.5 in the reference's order, because float32 rounds every operation.

    Raises:
        ImageError: the array is not uint8 with three channels last.
    """
    if pixels.dtype != np.uint8 or pixels.ndim < 3 or pixels.shape[-1] != 3:
        raise ImageError(
            f"the pixels are {pixels.dtype} of shape {pixels.shape}. "
            "Expected uint8 with shape (..., height, width, 3)."
        )
    scaled = pixels.astype(np.float32) / np.float32(255)
    scaled = (scaled - np.float32(0.5)) / np.float32(0.5)
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def arrays_of(spec: TowerSpec, inputs: tuple[NDArray[Any], ...]) -> tuple[NDArray[Any], ...]:
    """Convert pixels or token ids to the input arrays of a graph, in its order.

    Args:
        spec: inputs and output of the graph.
        inputs: (pixels,), (B, H, W, 3) uint8; or (token_ids, padding_mask), (B, T) int64.
    """
    if spec.tower == "vision" and spec.inputs[0].dtype != "uint8":
        return (normalize(inputs[0]),)
    return inputs


def feed_of(spec: TowerSpec, inputs: tuple[NDArray[Any], ...]) -> dict[str, NDArray[Any]]:
    """Return the arrays of `arrays_of` by the names of the inputs."""
    arrays = arrays_of(spec, inputs)
    return {port.name: array for port, array in zip(spec.inputs, arrays, strict=True)}
