"""Searching an output of `embed` finds the right rows in every format, and reports missing ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused, run
from numpy.typing import NDArray
from PIL import Image

from mwa_export.bundle.bundle import Bundle
from mwa_export.encoder.open import load
from mwa_export.errors import DataError, UsageError
from mwa_export.inputs.content import Kind
from mwa_export.inputs.pictures import Picture
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.search.result import Found
from mwa_export.search.run import Query, open_output, picture_of, search_output
from mwa_export.vectors.entries import Entry
from mwa_export.vectors.job import Dtype, Format, Input, Job, RowError, shards
from mwa_export.vectors.output import WORK, Output
from mwa_export.vectors.shards import Embedded

ONNX = RuntimeOptions("onnxruntime", "float32")
TEXTS = ["abc de fg", "hij kl", "mno pab cde", "klm no", "abc de fg", "a b c d e f g"]
SHARD = 4


@pytest.fixture(scope="module")
def bundle(files: Path) -> Bundle:
    return Bundle.open(files / "bundle")


@pytest.fixture(scope="module")
def pictures(files: Path) -> list[Path]:
    return sorted((files / "data").glob("*.png"))[:10]


def write_output(
    out: Path,
    bundle: Bundle,
    vectors: dict[Kind, NDArray[Any]],
    ids: dict[Kind, Sequence[str]],
    *,
    source: str = "pictures",
    dtype: Dtype = "float32",
    format: Format = "parquet",
    failed: frozenset[int] = frozenset(),
    lost: frozenset[int] = frozenset(),
) -> Job:
    """An output as `embed` writes it. ``failed``: rows; ``lost``: shards that are not written."""
    inputs = tuple(
        Input(kind, source, "f", len(rows), len(rows), SHARD, 2, (("number", "int64"),))
        for kind, rows in vectors.items()
    )
    space, width = bundle.manifest.space_id, next(iter(vectors.values())).shape[1]
    path = str(bundle.path)
    job = Job(path, space, {}, "onnxruntime", "float32", width, dtype, format, inputs)
    (out / WORK).mkdir(parents=True)
    output = Output.claim(out, job)
    entries: list[Entry] = []
    for entry in inputs:
        for shard in shards(entry):
            if shard.number in lost:
                continue
            rows = range(shard.start, shard.stop)
            good = np.array([row for row in rows if row not in failed], np.int64)
            named = ids[entry.kind]
            embedded = Embedded(
                shard,
                good,
                [named[row] for row in good],
                [(int(row) * 10,) for row in good],
                vectors[entry.kind][good],
                [RowError(row, named[row], "unreadable", "x") for row in rows if row in failed],
            )
            entries.append(output.save(embedded))
    if not lost:
        output.finish(entries)
        output.remove_work()
    return job


@pytest.fixture(scope="module")
def vectors(bundle: Bundle, pictures: list[Path]) -> dict[Kind, NDArray[Any]]:
    encoder = load(bundle, ONNX)
    return {"image": encoder.embed_images(pictures), "text": encoder.embed_texts(TEXTS)}


@pytest.fixture(scope="module")
def ids(pictures: list[Path]) -> dict[Kind, Sequence[str]]:
    return {"image": [p.name for p in pictures], "text": [f"t{n}" for n in range(len(TEXTS))]}


Made = tuple[dict[Kind, NDArray[Any]], dict[Kind, Sequence[str]]]


@pytest.fixture(scope="module")
def made(vectors: dict[Kind, NDArray[Any]], ids: dict[Kind, Sequence[str]]) -> Made:
    return vectors, ids


def found_in(out: Path, query: Query, where: str = "images", **options: Any) -> Found:
    return search_output(open_output(out, where), query, runtime=ONNX, **options)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_a_picture_finds_itself_in_every_format(
    tmp_path: Path,
    bundle: Bundle,
    pictures: list[Path],
    made: Made,
    dtype: Dtype,
    format: Format,
) -> None:
    write_output(tmp_path / "out", bundle, *made, dtype=dtype, format=format)
    exact = np.argsort(-(made[0]["image"] @ made[0]["image"][6]), kind="stable")
    found = found_in(tmp_path / "out", Query(image=pictures[6]), k=10)
    assert found.hits[0].id == pictures[6].name
    assert found.hits[0].score == pytest.approx(1, abs=0.02)
    assert sorted(hit.id for hit in found.hits) == sorted(made[1]["image"])
    if dtype == "float32":
        assert [hit.id for hit in found.hits] == [made[1]["image"][row] for row in exact]
    for hit in found.hits:  # what was carried along belongs to the row that was found
        assert hit.columns == {"number": 10 * made[1]["image"].index(hit.id)}
    assert [hit.rank for hit in found.hits] == list(range(1, 11))
    assert (found.searched, found.warnings) == (10, ())


def test_a_text_finds_equal_texts_in_the_order_of_the_input(
    tmp_path: Path, bundle: Bundle, made: Made
) -> None:
    write_output(tmp_path / "out", bundle, *made)
    found = found_in(tmp_path / "out", Query(text="abc de fg"), "texts", k=2)
    assert [hit.id for hit in found.hits] == ["t0", "t4"]
    assert found.hits[0].score == found.hits[1].score == pytest.approx(1, abs=1e-4)
    assert all(hit.picture is None for hit in found.hits)


def test_failed_rows_leave_the_others_where_they_are(
    tmp_path: Path, bundle: Bundle, pictures: list[Path], made: Made
) -> None:
    write_output(tmp_path / "out", bundle, *made, failed=frozenset({0, 5, 6}))
    found = found_in(tmp_path / "out", Query(image=pictures[7]), k=10)
    assert found.hits[0].id == pictures[7].name
    assert found.hits[0].columns == {"number": 70}
    assert found.searched == 7
    assert "3 of 10 images could not be embedded" in found.warnings[0]


def test_an_unfinished_output_is_searched_and_says_so(
    tmp_path: Path, bundle: Bundle, pictures: list[Path], made: Made
) -> None:
    write_output(tmp_path / "out", bundle, *made, lost=frozenset({1}))
    found = found_in(tmp_path / "out", Query(image=pictures[8]), k=3)
    assert found.hits[0].id == pictures[8].name
    assert found.searched == 6
    assert "2 of 3 shards are written, with 6 of 10 images" in found.warnings[0]


def test_a_shard_that_is_lost_from_a_finished_output_is_an_error(
    tmp_path: Path, bundle: Bundle, pictures: list[Path], made: Made
) -> None:
    write_output(tmp_path / "out", bundle, *made)
    (tmp_path / "out/images/part-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"part-00001.parquet: is missing"):
        found_in(tmp_path / "out", Query(image=pictures[8]))


def test_another_embedding_space_is_refused(tmp_path: Path, bundle: Bundle, made: Made) -> None:
    write_output(tmp_path / "out", bundle, *made)
    path = tmp_path / "out/job.json"
    other = bundle.manifest.space_id[::-1]
    path.write_text(path.read_text().replace(bundle.manifest.space_id, other))
    with pytest.raises(UsageError, match=rf"{other[:16]}, so their vectors cannot be compared"):
        found_in(tmp_path / "out", Query(text="a"))
    message = refused("search", tmp_path / "out", "a")
    assert "another export of that model" in message


def test_pictures_are_found_below_the_source_and_where_they_have_moved(
    tmp_path: Path, bundle: Bundle, pictures: list[Path], made: Made
) -> None:
    source = pictures[0].parent
    write_output(tmp_path / "out", bundle, *made, source=str(source))
    globbed = replace(open_output(tmp_path / "out").entry, source=str(source / "*.png"))
    assert picture_of(globbed)(pictures[2].name) == Picture(pictures[2])
    assert picture_of(globbed)("a\0b") is None
    found = found_in(tmp_path / "out", Query(text="a"), k=10)
    assert [hit.picture.path for hit in found.hits if hit.picture] == [  # type: ignore[union-attr]
        source / hit.id for hit in found.hits
    ]
    moved = shutil.copytree(source, tmp_path / "moved")
    found = found_in(tmp_path / "out", Query(text="a"), pictures=moved)
    assert str(found.hits[0].picture) == str(moved / found.hits[0].id)
    write_output(tmp_path / "elsewhere", bundle, *made, source="gone")
    found = found_in(tmp_path / "elsewhere", Query(text="a"))
    assert {hit.picture for hit in found.hits} == {None}


@pytest.mark.parametrize("query", [(None, None), ("a", Path("b")), ("  ", None)])
def test_one_query_is_expected(query: tuple[str | None, Path | None]) -> None:
    with pytest.raises(UsageError):
        Query(*query)


@pytest.fixture
def out(tmp_path: Path, bundle: Bundle, pictures: list[Path], made: Made) -> Path:
    write_output(tmp_path / "out", bundle, *made, source=str(pictures[0].parent))
    return tmp_path / "out"


def test_the_command_prints_a_table_or_json(out: Path, pictures: list[Path]) -> None:
    asked = ("--runtime", "onnxruntime")
    shown = run("search", out, "--image", pictures[3], "-k", 2, "-q", *asked)
    assert shown.status == 0, shown.stderr
    assert shown.stderr == ""
    first = next(line for line in shown.stdout.splitlines() if line.strip().startswith("1 "))
    assert first.split()[1:] == ["1.0000", pictures[3].name, "30"]
    printed = run("search", out, "--image", pictures[3], "-k", 2, "--json", *asked)
    data = json.loads(printed.stdout)
    assert data["query"] == {"image": str(pictures[3])}
    assert data["in"] == "images"
    assert [hit["rank"] for hit in data["found"]] == [1, 2]
    assert data["found"][0]["picture"] == str(pictures[3])


def test_the_command_writes_a_contact_sheet_and_replaces_only_such(
    out: Path, tmp_path: Path, pictures: list[Path]
) -> None:
    page = tmp_path / "found.html"
    for k in (3, 5):  # the second time it replaces the first
        done = run("search", out, "abc", "-k", k, "--html", page, "--runtime", "onnxruntime")
        assert done.status == 0, done.stderr
        assert page.read_text().count("<img ") == k
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    assert "is not an HTML file" in refused("search", out, "abc", "--html", other)
    assert other.read_text() == "mine"
    assert "found a folder" in refused("search", out, "abc", "--html", tmp_path)


def test_without_an_output_or_its_part_there_is_nothing_to_search(
    out: Path, tmp_path: Path, bundle: Bundle, made: Made, files: Path
) -> None:
    assert "expected a folder that" in refused("search", tmp_path / "none", "a")
    assert "it is a bundle" in refused("search", files / "bundle", "a")
    only: Made = ({"text": made[0]["text"]}, made[1])
    write_output(tmp_path / "texts", bundle, *only)
    message = refused("search", tmp_path / "texts", "a", "--in", "images")
    assert "contains texts, but no images" in message
    assert run("search", tmp_path / "texts", "a", "-q", "--runtime", "onnxruntime").status == 0
    message = refused("search", out, "a", "--bundle", tmp_path / "gone")
    assert "is not a bundle" in message
    assert "no such file" in refused("search", out, "--image", tmp_path / "gone.jpg")


def test_a_hostile_id_cannot_write_to_the_terminal(
    tmp_path: Path, bundle: Bundle, made: Made
) -> None:
    evil = {**made[1], "text": ["\x1b]0;owned\x07\x1b[31m[red]"] * len(TEXTS)}
    write_output(tmp_path / "out", bundle, made[0], evil)
    shown = run("search", tmp_path / "out", "a", "--in", "texts", "--runtime", "onnxruntime")
    assert shown.status == 0
    assert "\x1b" not in shown.stdout
    assert "[red]" in shown.stdout


def test_the_page_of_an_unreadable_picture_is_written(
    tmp_path: Path, bundle: Bundle, made: Made, pictures: list[Path]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in pictures[1:]:
        Image.open(path).save(folder / path.name)
    (folder / pictures[0].name).write_bytes(b"<html>")
    write_output(tmp_path / "out", bundle, *made, source=str(folder))
    page = tmp_path / "page.html"
    done = run(
        "search", tmp_path / "out", "a", "-k", 10, "--html", page, "--runtime", "onnxruntime"
    )
    assert done.status == 0
    assert page.read_text().count("<img ") == 9
    assert "cannot be decoded" in page.read_text()
