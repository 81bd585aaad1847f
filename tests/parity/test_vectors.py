"""Existing vectors can be compared: .npy files of any model, and outputs of `embed`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from numpy.typing import NDArray
from parity_arrays import noisy, perfect
from parity_files import write_test_set

from mwa_export.errors import DataError, RecallError, UsageError
from mwa_export.parity.vectors import compare_vectors


def save(folder: Path, **arrays: NDArray[Any]) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / name, array)
    return {name: folder / f"{name}.npy" for name in arrays}


@pytest.fixture
def npy(tmp_path: Path) -> dict[str, Path]:
    """Both sides of 80 images with three captions each; the candidate's texts are noisy."""
    side, owners = perfect(80, 3)
    worse = noisy(np.random.default_rng(0), side.texts, 0.3)
    return save(tmp_path / "npy", images=side.images, texts=side.texts, worse=worse, owners=owners)


def test_files_of_arrays_are_compared(npy: dict[str, Path]) -> None:
    before = [npy["images"], npy["texts"]]
    result = compare_vectors(before, [npy["images"], npy["worse"]], npy["owners"])
    assert (result.data.images, result.data.captions) == (80, 240)
    assert result.cosines[0].identical == 80
    assert result.cosines[1].identical == 0
    assert result.reference.name == "images.npy and texts.npy"
    assert result.direction("tr").recalls[0].reference == 100


def test_other_lengths_are_refused_or_scaled(npy: dict[str, Path], tmp_path: Path) -> None:
    long = save(tmp_path / "long", images=3 * np.load(npy["images"]), texts=np.load(npy["texts"]))
    before = [npy["images"], npy["texts"]]
    with pytest.raises(RecallError, match="length"):
        compare_vectors(before, [*long.values()], npy["owners"])
    scaled = compare_vectors(before, [*long.values()], npy["owners"], normalize=True)
    assert scaled.cosines[0].minimum == pytest.approx(1)
    assert all(change.won == change.lost == 0 for d in scaled.directions for change in d.recalls)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([{"a": 1}], dtype=object), "cannot be read"),
        (np.zeros((240, 80), np.int64), "Expected floats"),
        (np.zeros(240, np.float32), "Expected floats"),
    ],
)
def test_arrays_that_are_no_vectors_are_named(
    npy: dict[str, Path], tmp_path: Path, content: NDArray[Any], message: str
) -> None:
    np.save(tmp_path / "bad.npy", content, allow_pickle=True)
    with pytest.raises(DataError, match=message) as error:
        compare_vectors(
            [npy["images"], npy["texts"]], [npy["images"], tmp_path / "bad.npy"], npy["owners"]
        )
    assert "bad.npy" in str(error.value)


def test_arrays_need_the_owners_of_their_texts(npy: dict[str, Path]) -> None:
    side = [npy["images"], npy["texts"]]
    with pytest.raises(UsageError, match="`owners=FILE"):
        compare_vectors(side, side)
    with pytest.raises(UsageError, match="candidate has 3 paths"):
        compare_vectors(side, [*side, npy["owners"]])
    with pytest.raises(DataError, match="cannot be read"):
        compare_vectors(side, [npy["images"].parent / "none.npy", npy["texts"]], npy["owners"])


@pytest.fixture(scope="module")
def outputs(files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same rows embedded twice, in another order; once without the last text."""
    folder = tmp_path_factory.mktemp("outputs")
    captions, data = write_test_set(folder / "data"), folder / "data"
    records = [json.loads(line) for line in captions.read_text().splitlines()]
    made = {}
    for name, rows in (
        ("usual", records),
        ("turned", records[::-1]),
        ("fewer", records[:-1]),
    ):
        table = folder / "data" / f"{name}.jsonl"
        lines = [{"image": r["image"], "id": r["image"], "captions": r["captions"]} for r in rows]
        table.write_text("".join(json.dumps(line) + "\n" for line in lines))
        outcome = run(
            *("embed", files / "bundle", "--images", table, "--texts", table, "--id-column", "id"),
            *("-o", folder / name, "--runtime", "onnxruntime", "--image-root", data, "-q"),
        )
        assert outcome.status == 0, outcome
        made[name] = folder / name
    return made


@pytest.mark.slow
def test_outputs_of_embed_are_aligned_by_id_and_paired_by_theirs(outputs: dict[str, Path]) -> None:
    result = compare_vectors([outputs["usual"]], [outputs["turned"]])
    assert (result.data.images, result.data.captions) == (20, 40)
    assert all(c.identical == c.rows for c in result.cosines)
    assert result.reference.space_id == result.candidate.space_id
    assert result.reference.name == "usual"


@pytest.mark.slow
def test_outputs_of_other_rows_are_refused_by_name(outputs: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"differ: 1 ids are on one side only, such as 019"):
        compare_vectors([outputs["usual"]], [outputs["fewer"]])


@pytest.mark.slow
def test_folder_that_is_no_output_is_refused(outputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not an output folder of `embed`"):
        compare_vectors([outputs["usual"]], [tmp_path])
