"""Content that 8-bit RGB cannot hold is counted and reported once at the end of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from commands import run
from PIL import Image


def test_pictures_that_lose_something_are_counted(files: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    grey = np.arange(400, dtype=np.uint16).reshape(20, 20) * 90
    Image.fromarray(grey).save(photos / "deep.png")
    Image.fromarray(grey.astype(np.float32)).save(photos / "float.tiff")
    for mode in ("RGBA", "LA", "RGB", "L", "P"):
        Image.new("RGB", (8, 8), "red").convert(mode).save(photos / f"{mode}.png")
    outcome = run(
        *("embed", files / "bundle", "--images", photos, "-o", tmp_path / "out"),
        *("--runtime", "onnxruntime", "--log-json", tmp_path / "log"),
    )
    assert outcome.status == 0, outcome
    assert outcome.stderr.count("transparency, dropped") == 1
    assert outcome.stderr.count("cut to 8 bits") == 1
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(events[-1]["losses"].values()) == [2, 2]


def test_texts_that_are_cut_are_counted_with_their_repetitions(files: Path, tmp_path: Path) -> None:
    long = "a red circle above a blue square " * 40
    lines = [long, "a dog", long, f"another {long}", "</s> " * 70, "two dogs"]
    (tmp_path / "texts.txt").write_text("\n".join(lines) + "\n")
    outcome = run(
        *("embed", files / "bundle", "--texts", tmp_path / "texts.txt", "-o", tmp_path / "out"),
        *("--runtime", "onnxruntime", "--log-json", tmp_path / "log"),
    )
    assert outcome.status == 0, outcome
    assert outcome.stderr.count("4 texts: more than") == 1
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert list(events[-1]["losses"].values()) == [4]
