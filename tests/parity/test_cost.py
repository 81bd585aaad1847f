"""Reported sizes are those of the model files, and times those of this run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from encoders import Telling, encoder_on

from mwa_export.encoder.encoder import Encoder
from mwa_export.parity.cost import Clock
from mwa_export.runtimes.backend import graph_bytes


def test_time_is_the_median_per_row_and_only_of_what_was_embedded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter(np.arange(0.0, 100.0, 0.25))  # each call of a backend takes a quarter of a second
    monkeypatch.setattr("mwa_export.parity.cost.time", SimpleNamespace(perf_counter=now.__next__))
    encoder, clock = encoder_on(Telling()), Clock()
    timed = clock.time(encoder)
    for rows in (5, 1, 2):
        timed.backend.embed_images(np.zeros((rows, 8, 8, 3), np.uint8))
    cost = clock.cost("candidate", encoder)
    assert cost.image_ms == pytest.approx(250 / 2), "the median"
    assert cost.text_ms is None, "no text was embedded"


def test_timing_changes_no_embedding() -> None:
    encoder = encoder_on(Telling())
    pixels: Any = np.arange(2 * 192, dtype=np.uint8).reshape(2, 8, 8, 3)
    wrapped = Clock().time(encoder).backend
    assert np.array_equal(wrapped.embed_images(pixels), encoder.backend.embed_images(pixels))
    assert (wrapped.name, wrapped.image_size) == ("telling", 8)


def test_size_is_of_the_graphs_and_the_weights_beside_them(tmp_path: Path) -> None:
    sizes = {"vision.onnx": 100, "vision.onnx.data": 5000, "text.onnx": 30, "text.int8.onnx": 7000}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    backend: Any = SimpleNamespace(
        graphs={tower: (tmp_path / f"{tower}.onnx", None) for tower in ("vision", "text")}
    )
    assert graph_bytes(backend) == 5130
    assert graph_bytes(Telling()) is None


def test_sides_know_their_sizes(sides: tuple[Encoder, Encoder], files: Path) -> None:
    checkpoint, bundle = sides
    graphs = [files / "bundle" / name for name in ("vision.onnx", "text.onnx")]
    assert bundle.model_bytes == sum(path.stat().st_size for path in graphs)
    assert checkpoint.model_bytes
    assert checkpoint.model_bytes < (files / "checkpoint.pth").stat().st_size
