"""A bundle is refused where images would be decoded to other pixels than at export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mwa_export.bundle.bundle import Bundle
from mwa_export.errors import VerificationError
from mwa_export.inputs import decode
from mwa_export.runtimes.onnxrt import OnnxBackend


def test_bundle_carries_pictures_of_other_shapes_than_the_model_takes(files: Path) -> None:
    vectors = Bundle.open(files / "bundle").conformance()
    upright, lying = (decode.decode_picture(file).size for file in vectors.files())
    assert upright[0] < upright[1]
    assert lying[0] > lying[1]


def test_other_pixels_are_noticed(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(files / "bundle")
    OnnxBackend(bundle)

    def height_first(image: Image.Image, size: int) -> Any:
        tall = image.resize((image.width, size), Image.Resampling.BICUBIC)
        return np.asarray(tall.resize((size, size), Image.Resampling.BICUBIC))

    monkeypatch.setattr(decode, "pixels_from_image", height_first)
    versions = bundle.manifest.export.versions
    assert versions is not None
    with pytest.raises(VerificationError, match=f"than Pillow {versions['pillow']}"):
        OnnxBackend(bundle)
