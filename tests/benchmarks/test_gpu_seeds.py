"""Seeded weights: bytes removed from a file are restored exactly, with only numpy."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_seeds import Hole, Seed, drawn, filled, levels, steps_of, with_holes, without_holes
from paths import ROOT

SEED, OTHER = Seed("vision.block.weight", (64, 48)), Seed("other", (2, 10, 20))


def steps(*seeds: Seed, spread: float = 0.02) -> dict[str, Any]:
    """Steps for values whose every second row and column is twice as large."""
    found = {}
    for seed in seeds:
        rows, columns = math.prod(seed.shape[:-1]), seed.shape[-1]
        like = np.outer(1 + np.arange(rows) % 2, 1 + np.arange(columns) % 2) * spread
        for kind, values in zip(("row_steps", "column_steps"), steps_of(like), strict=True):
            found[f"{seed.name}.{kind}"] = values
    return found


def test_values_have_the_spread_of_rows_and_columns_and_no_bias() -> None:
    seed = Seed("x", (300, 1000))
    values = drawn(seed, steps(seed))
    assert values.dtype == np.float32
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = values[row::2, column::2]
        assert part.std() == pytest.approx(0.02 * (1 + row) * (1 + column), rel=0.02)
        assert abs(part.mean()) < 0.02 * part.std()
        assert len(np.unique(part)) > 300


def test_values_depend_on_the_name() -> None:
    other = Seed("another", SEED.shape)
    vectors = steps(SEED, other)
    assert (drawn(SEED, vectors) == drawn(SEED, vectors)).all()
    assert (drawn(SEED, vectors) != drawn(other, vectors)).mean() > 0.9


def test_a_file_comes_back_from_what_is_left_of_it() -> None:
    absent = Seed("absent", (9, 9))
    vectors = steps(SEED, OTHER, absent)
    half = drawn(OTHER, vectors).astype(np.float16)
    content = b"".join((b"head", drawn(SEED, vectors).tobytes(), b"-", half.tobytes(), b"tail"))
    holes = [Hole(seed, kind) for seed in (OTHER, SEED, absent) for kind in ("<f4", "<f2")]
    rest, found = with_holes(content, holes, vectors)
    assert rest == b"head-tail"
    assert [hole.seed.name for hole in found] == [SEED.name, "other"]
    assert b"".join(without_holes(rest, found, vectors)) == content


def test_an_int8_part_comes_back_with_values_that_were_rounded_otherwise() -> None:
    rng = np.random.default_rng(0)
    rows, columns = rng.uniform(0.5, 2, 64), rng.uniform(1000, 3000, 16)
    vectors = steps(SEED)
    stored = levels(drawn(SEED, vectors)[:, 16:32], rows, columns)
    where = np.array([3, 700])
    stored.reshape(-1)[where] += 1
    patches = stored.reshape(-1)[where]
    vectors |= {"w.rows": rows, "w.columns": columns, "w.where": where, "w.patches": patches}
    hole = Hole(SEED, "|i1", "w", (16, 32))
    assert filled(hole, vectors) == stored.tobytes()
    assert hole.size == stored.nbytes


def test_filling_needs_numpy_only() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules); import gpu_seeds;"
        "print({m.split('.')[0] for m in set(sys.modules) - before} & set(sys.argv[2:]))"
    )
    unwanted = ("onnx", "torch", "mwa_export", "onnxruntime")
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks"), *unwanted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_file_that_does_not_become_what_was_packed_is_refused(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "gpu_seeds.py"
    (tmp_path / "a.onnx").write_bytes(b"x")
    (tmp_path / "recipe.json").write_text('{"a.onnx": {"sha256": "0", "holes": []}}')
    np.savez(tmp_path / "recipe.npz")
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a.onnx: does not become" in done.stderr
    assert (tmp_path / "a.onnx").read_bytes() == b"x"
