"""Conformance vectors that are damaged, of another kind or too large give one error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import CONFORMANCE, Conformance
from mwa_export.errors import BundleError


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"pixels": np.zeros((1, 2, 2, 3), np.float32)},
        {"vision": np.zeros(4, np.float32)},
        {"text": np.array([None, 1], dtype=object)},
        {"token_ids": np.zeros((1, 2), np.int32)},
        {"padding_mask": np.zeros((4, 1), np.int64)},
        {"ends": np.zeros(3, np.int64)},
        {"text": np.zeros((4, 65), np.float32)},
        {"pictures": np.zeros(1 << 27, np.uint8)},
    ],
)
def test_conformance_vectors_of_another_kind_are_one_error(
    arrays: dict[str, Any], files: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(files / "bundle", tmp_path / "bundle"))
    backbone = Bundle.open(bundle).manifest.model.backbone
    good = dict(np.load(bundle / CONFORMANCE)) if arrays else {}
    np.savez(bundle / CONFORMANCE, **{**good, **arrays})
    with pytest.raises(BundleError, match="does not contain conformance vectors"):
        Conformance.load(bundle / CONFORMANCE, backbone)
    (bundle / CONFORMANCE).write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(BundleError, match="does not contain conformance vectors"):
        Conformance.load(bundle / CONFORMANCE, backbone)
