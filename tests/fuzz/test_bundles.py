"""Damaged manifests and bundle files give one error, even with matching checksums."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fuzzing import cases, little_memory, mutated, mutated_json, survived
from manifests import seal
from paths import HELPERS

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import CONFORMANCE, MANIFEST, read_manifest, write_manifest
from mwa_export.encoder.open import open_bundle
from mwa_export.errors import BundleError, MwaExportError

pytestmark = pytest.mark.slow

SAMPLE = (HELPERS / "manifest_sample.json").read_text(encoding="utf-8")


def test_odd_manifest_is_read_or_is_one_error(tmp_path: Path) -> None:
    for rng in cases("manifest", 3000):
        data = json.loads(SAMPLE)
        for _ in range(rng.choice((1, 1, 3))):
            data = mutated_json(rng, data)
        with survived(rng, BundleError):
            read = read_manifest(seal(tmp_path, data))
            again = read_manifest(seal(tmp_path, read.to_json()))
            assert replace(again, checksum=read.checksum) == read, rng


def test_damaged_manifest_is_noticed(tmp_path: Path) -> None:
    whole = (seal(tmp_path, json.loads(SAMPLE)) / MANIFEST).read_bytes()
    for rng in cases("bytes", 1500):
        (tmp_path / MANIFEST).write_bytes(content := mutated(rng, whole))
        with survived(rng, BundleError):
            read = read_manifest(tmp_path)
            assert json.loads(content) == json.loads(whole), rng  # white space
            assert read.space_id == json.loads(SAMPLE)["space_id"]


@pytest.mark.parametrize("name", [CONFORMANCE, "tokenizer/beit3.spm"])
def test_damaged_file_with_a_fitting_hash_is_used_or_is_one_error(
    name: str, files: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(files / "bundle", tmp_path / "bundle"))
    whole, manifest = (folder / name).read_bytes(), Bundle.open(folder).manifest
    for rng in cases(name, 60):
        (folder / name).write_bytes(mutated(rng, whole))
        write_manifest(folder, manifest)
        with survived(rng, MwaExportError):
            with little_memory():
                vectors = open_bundle(folder).embed_texts(["a red bus", "eine Straße"])
            assert np.isfinite(vectors).all(), rng
