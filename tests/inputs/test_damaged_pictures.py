"""A damaged image of any format costs one row, one exclusion, or one clear error."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from commands import refused, run
from embed_samples import errors
from parity_files import write_test_set
from picture_formats import broken

from mwa_export.calib.samples import take_samples
from mwa_export.data.test_sets import read_data
from mwa_export.encoder.encoder import Encoder
from mwa_export.errors import ImageError

BROKEN = broken()
ODD = ("unknown-dds", "damaged-avif", "eps", "QOI")  # of which each raises something else
GOOD = 16


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test set in which one picture of every format is damaged; the last GOOD ones are not."""
    folder = tmp_path_factory.mktemp("pictures")
    write_test_set(folder, pictures=len(BROKEN) + GOOD)
    for number, data in enumerate(BROKEN.values()):
        (folder / f"{number:03d}.png").write_bytes(data)
    return folder


def spoiled(folder: Path, name: str) -> Path:
    """A test set with one damaged picture. Returns the table."""
    table = write_test_set(folder, pictures=GOOD)
    (folder / "005.png").write_bytes(BROKEN[name])
    return table


def test_embed_books_one_row_for_each(files: Path, pictures: Path, tmp_path: Path) -> None:
    outcome = run(
        *("embed", files / "bundle", "--images", pictures, "-o", tmp_path / "out"),
        *("--runtime", "onnxruntime", "--max-errors", len(BROKEN)),
    )
    assert outcome.status == 0, outcome
    rows = errors(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"{n:03d}.png" for n in range(len(BROKEN))]
    assert {row["code"] for row in rows} <= {"not-a-picture", "truncated", "unreadable"}
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]["images"]
    assert (counts["embedded"], counts["failed"]) == (GOOD, len(BROKEN))


def test_parity_leaves_each_out_if_allowed(files: Path, pictures: Path, tmp_path: Path) -> None:
    arguments = (
        "parity",
        files / "bundle",
        "--reference",
        files / "checkpoint.pth",
        "--data",
        pictures,
    )
    out = tmp_path / "parity"
    outcome = run(*arguments, "--max-excluded", len(BROKEN), "--undecided", "pass", "-o", out)
    assert outcome.status == 0, outcome
    data = json.loads((out / "report.json").read_text())["data"]
    assert (len(data["excluded"]), data["images"]) == (len(BROKEN), GOOD)
    allowed = len(BROKEN) - 1
    message = refused(*arguments, "--max-excluded", allowed, "-o", tmp_path / "again")
    assert f"{len(BROKEN)} of {len(BROKEN) + GOOD} images cannot be read" in message


@pytest.mark.parametrize("name", BROKEN)
def test_python_users_and_calibration_get_one_error(
    sides: tuple[Encoder, Encoder], name: str, tmp_path: Path
) -> None:
    data = read_data(spoiled(tmp_path, name))
    with pytest.raises(ImageError, match=r"image 0 \(bytes\)"):
        sides[1].embed_images([BROKEN[name]])
    with pytest.raises(ImageError, match=r"005\.png: .* Remove it from the data"):
        take_samples(sides[1], data, GOOD, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_every_other_command_ends_in_one_clear_error(
    files: Path, embedded: Path, name: str, tmp_path: Path
) -> None:
    data = spoiled(tmp_path / "data", name)
    bundle = tmp_path / "bundle"
    shutil.copytree(files / "bundle", bundle)
    picture = data.parent / "005.png"
    for arguments in (
        ("quantize", bundle, "--data", data, "--held-back", files / "data", "--samples", GOOD),
        ("bench", bundle, "--data", data, "--tower", "vision", "--rounds", 3, "-o", tmp_path / "b"),
        ("search", embedded, "--image", picture, "--bundle", bundle),
    ):
        assert "005.png" in refused(*arguments)


def test_a_pipe_in_a_test_set_is_refused_and_not_waited_for(files: Path, tmp_path: Path) -> None:
    write_test_set(tmp_path, pictures=GOOD)
    (tmp_path / "003.png").unlink()
    os.mkfifo(tmp_path / "003.png")
    arguments = (
        "parity",
        files / "bundle",
        "--reference",
        files / "checkpoint.pth",
        "--data",
        tmp_path,
    )
    message = refused(*arguments, "-o", tmp_path / "parity")
    assert "003.png" in message
