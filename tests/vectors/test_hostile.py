"""Damaged or hostile JSON files of an output give one error, or a recomputed shard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import files_below
from embed_samples import embed, pictures, texts

from mwa_export.embed.progress import MaxErrors
from mwa_export.embed.run import Execution
from mwa_export.errors import DataError, TooManyErrorsError
from mwa_export.search.run import open_output
from mwa_export.vectors.manifest import JOB, MANIFEST, write_json
from mwa_export.vectors.output import WORK, Output
from mwa_export.vectors.verify import verify

NUMBERS: tuple[Any, ...] = (-1, 1.5, "8", None, True, [])
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def whole(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    embed(files / "bundle", [texts(20)], out)
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


Change = Callable[[dict[str, Any]], object]


def edit(path: Path, change: Change) -> None:
    data = json.loads(path.read_text())
    change(data)
    write_json(path, data)


JOBS: list[Change] = [
    *(lambda d, v=v: d["inputs"]["texts"].update(rows=v) for v in (*NUMBERS, 10**30)),
    lambda d: d["inputs"]["texts"].update(shard_size=0),
    lambda d: d["inputs"]["texts"].update(rows=10**17, taken=10**17, shard_size=1),
    lambda d: d["inputs"].update(sounds=d["inputs"]["texts"]),
    lambda d: d["inputs"]["texts"].update(columns=[["a", "b"]]),
    lambda d: d.update(inputs=[]),
    lambda d: d.update(width="wide"),
    lambda d: d.update(dtype="float8"),
    lambda d: d.update(schema=2),
    lambda d: d.pop("space_id"),
    lambda d: d.pop("inputs"),
]


@pytest.mark.parametrize("change", JOBS)
def test_a_job_that_none_is_refused(out: Path, change: Change) -> None:
    edit(out / JOB, change)
    with pytest.raises(DataError, match=r"job.json: is not a job file"):
        Output.load(out)


MANIFESTS: list[Change] = [
    *JOBS,
    *(lambda d, v=v: d["counts"]["texts"].update(failed=v) for v in NUMBERS),
    *(lambda d, v=v: d["shards"]["texts"][1].update(start=v) for v in NUMBERS),
    *(lambda d, v=v: d["shards"]["texts"][0]["files"][0].update(bytes=v) for v in NUMBERS[1:]),
    lambda d: d["shards"]["texts"][-1].update(stop=10**30),
    lambda d: d["shards"]["texts"][0].update(stem="../../etc/part-1"),
    lambda d: d["shards"]["texts"][0]["files"][0].update(file="/etc/passwd"),
    lambda d: d["shards"]["texts"][0].update(files={}),
    lambda d: d["errors"].update(file="../errors.parquet"),
    lambda d: d["indexes"].update(texts={**d["errors"], "file": "../a.faiss"}),
    lambda d: d.pop("shards"),
    lambda d: d.pop("counts"),
    lambda d: d.pop("errors"),
    lambda d: d.update(shards={}),
]


@pytest.mark.parametrize("change", MANIFESTS)
def test_a_manifest_that_is_none_is_one_error(out: Path, change: Change) -> None:
    edit(out / MANIFEST, change)
    with pytest.raises(DataError, match=r"manifest.json: is not a manifest"):
        verify(out)


@pytest.mark.parametrize("text", [DEEP, "", "[]", "3", '{"schema": 1', "\ufeff{}", "\0"])
def test_what_is_no_object_is_one_error(out: Path, text: str) -> None:
    for name in (JOB, MANIFEST):
        (out / name).write_text(text)
    with pytest.raises(DataError, match=r"manifest.json: is not a manifest"):
        verify(out)
    with pytest.raises(DataError, match=r"job.json: is not a job file"):
        open_output(out)


def test_rows_that_nobody_could_hold_are_counted_and_not_listed(out: Path) -> None:
    edit(out / MANIFEST, lambda d: d["shards"]["texts"][-1].update(stop=10**15))
    assert any("rows are neither embedded nor failed: 20, 21," in f for f in verify(out).findings)


def test_a_file_that_no_output_has_is_found_but_for_hidden_ones(out: Path) -> None:
    (out / ".DS_Store").write_text("x")
    (out / "backup").mkdir()
    (out / "notes.txt").write_text("x")
    assert verify(out).findings == (
        "backup: is not listed in manifest.json",
        "notes.txt: is not listed in manifest.json",
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-9],
        lambda _text: DEEP,
        lambda text: text.replace('"embedded": 8', '"embedded": -8'),
        lambda text: text.replace('"embedded": 8', '"embedded": "8"'),
        lambda text: text.replace("images/part-00000.parquet", "../job.json"),
        lambda text: text.replace('"errors": []', '"errors": [7]'),
    ],
)
def test_a_shard_whose_entry_is_damaged_is_computed_again(
    files: Path, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    bundle, source, whole, out = files / "bundle", pictures(24, bad=(20,)), *paths(tmp_path)
    embed(bundle, [source], whole)
    with pytest.raises(TooManyErrorsError):
        embed(bundle, [source], out, Execution(max_errors=MaxErrors(0)))
    entry = out / WORK / "images-00000.json"
    damaged = damage(entry.read_text())
    assert damaged != entry.read_text()
    entry.write_text(damaged)
    embed(bundle, [source], out)
    assert files_below(out) == files_below(whole)


def paths(root: Path) -> tuple[Path, Path]:
    return root / "whole", root / "out"
