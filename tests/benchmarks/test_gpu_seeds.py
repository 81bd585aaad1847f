"""Weights from seeds: what is cut out of a file is put back byte for byte, with numpy alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gpu_seeds import SPREAD, Hole, Seed, drawn, filled, levels, with_holes, without_holes
from paths import ROOT

SEED = Seed("vision.block.weight", (64, 48), 0.02 / SPREAD)


def test_values_have_the_spread_that_was_asked_for_and_no_bias() -> None:
    values = drawn(Seed("x", (300, 1000), 0.02 / SPREAD))
    assert values.dtype == np.float32
    assert values.std() == pytest.approx(0.02, rel=0.01)
    assert abs(values.mean()) < 0.0002
    assert len(np.unique(drawn(SEED))) > 300


def test_values_depend_on_the_name_alone() -> None:
    assert (drawn(SEED) == drawn(Seed(SEED.name, (48, 64), SEED.step)).reshape(64, 48)).all()
    assert (drawn(SEED) != drawn(Seed("another", SEED.shape, SEED.step))).mean() > 0.9


def test_a_file_comes_back_from_what_is_left_of_it() -> None:
    values = drawn(SEED)
    other = Seed("other", (20, 20), 0.5)
    content = b"".join(
        (b"head", values.tobytes(), b"-", drawn(other).astype(np.float16).tobytes(), b"tail")
    )
    holes = [Hole(s, t) for s in (other, SEED, Seed("absent", (9, 9), 1.0)) for t in ("<f4", "<f2")]
    rest, found = with_holes(content, holes, {})
    assert rest == b"head-tail"
    assert [hole.seed.name for hole in found] == [SEED.name, "other"]
    assert b"".join(without_holes(rest, found, {})) == content


def test_an_int8_part_comes_back_with_values_that_were_rounded_otherwise() -> None:
    rng = np.random.default_rng(0)
    rows, columns = rng.uniform(0.5, 2, 64), rng.uniform(1000, 3000, 16)
    stored = levels(drawn(SEED)[:, 16:32], rows, columns)
    where = np.array([3, 700])
    stored.reshape(-1)[where] += 1
    patches = stored.reshape(-1)[where]
    vectors = {"w.rows": rows, "w.columns": columns, "w.where": where, "w.patches": patches}
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
