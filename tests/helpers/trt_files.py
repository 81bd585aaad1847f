"""Bundles for engine tests."""

from __future__ import annotations

import shutil
from pathlib import Path

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import write_manifest
from mwa_export.calib.calibrate import calibrate
from mwa_export.calib.samples import take_samples
from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.open import open_bundle

_made: dict[Path, Path] = {}


def calibrated_bundle(bundle: Path, data: RetrievalData, folder: Path) -> Bundle:
    """A copy of a bundle, with a calibration of 16 samples; made once and not to be changed."""
    if bundle in _made:
        return Bundle.open(_made[bundle])
    _made[bundle] = folder
    shutil.copytree(bundle, folder)
    copy = Bundle.open(folder)
    samples = take_samples(open_bundle(folder), data, 16, 0)
    calibrate(copy, samples).save(folder)
    write_manifest(folder, copy.manifest)
    return Bundle.open(folder)
