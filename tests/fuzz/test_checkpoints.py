"""Damaged checkpoints are read correctly or give one error; nothing in them runs."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from checkpoint_layouts import ARGS
from configs import MWA
from fuzzing import cases, little_memory, mutated, survived
from safetensors.torch import save

from mwa_export.errors import MwaExportError
from mwa_export.model.checkpoint import read_checkpoint
from mwa_export.model.load import ModelSource, load_model
from mwa_export.model.synthetic import random_tensors

pytestmark = pytest.mark.slow

TENSORS = {name: torch.arange(6.0).reshape(2, 3) + n for n, name in enumerate("abc")}


def _saved(**options: bool) -> bytes:
    torch.save({"model": TENSORS, "args": ARGS, "epoch": 3}, file := io.BytesIO(), **options)
    return file.getvalue()


def _tar() -> bytes:
    with tarfile.open(mode="w", fileobj=(file := io.BytesIO())) as archive:
        for name, content in (("pickle", pickle.dumps(ARGS, 2)), ("storages", _saved())):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


FILES = {
    "zip.pth": _saved(),
    "stream.pth": _saved(_use_new_zipfile_serialization=False),
    "old.tar": _tar(),
    "tensors.safetensors": save(TENSORS),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_read_or_is_one_error(name: str, tmp_path: Path) -> None:
    path, read = tmp_path / name, 0
    with little_memory():
        for rng in cases(name, 1500):
            path.write_bytes(mutated(rng, FILES[name]))
            with survived(rng, MwaExportError):
                found = read_checkpoint(path)
                read += 1
                assert all(isinstance(t, torch.Tensor) for t in found.tensors.values()), rng
    assert read or name == "old.tar"


def test_damaged_model_is_loaded_or_is_one_error(tmp_path: Path) -> None:
    """Beyond reading: names, shapes and options that do not fit a model."""
    path = tmp_path / "model.pth"
    torch.save({"model": random_tensors(MWA), "args": ARGS}, file := io.BytesIO())
    whole = file.getvalue()
    for rng in cases("model", 60):
        path.write_bytes(mutated(rng, whole))
        with survived(rng, MwaExportError):
            load_model(ModelSource(path))
