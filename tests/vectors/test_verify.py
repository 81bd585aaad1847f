"""`embed --verify` finds every kind of damage, and reports nothing for an intact output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import refused, run
from embed_samples import embed, pictures, texts
from numpy.typing import NDArray

from mwa_export.errors import DataError
from mwa_export.files import sha256_of
from mwa_export.vectors.manifest import JOB, MANIFEST, read_manifest, write_manifest
from mwa_export.vectors.verify import verify

PART = "texts/part-00001.parquet"


@pytest.fixture(scope="module")
def whole(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of both kinds with failures, not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    embed(files / "bundle", [pictures(11, bad=(3,)), texts(30)], out, limit=25)
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def rewrite(out: Path, change: Callable[[pa.Table], pa.Table], name: str = PART) -> None:
    """Change a file's rows and make the manifest vouch for the new file."""
    path, manifest = out / name, read_manifest(out)
    pq.write_table(change(pq.read_table(path, partitioning=None)), path)
    entries = [f for shards in manifest["shards"].values() for s in shards for f in s["files"]]
    for entry in (*entries, manifest["errors"]):
        if entry["file"] == name:
            entry |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_manifest(out, manifest)


def edit(out: Path, change: Callable[[dict[str, Any]], Any], *, sign: bool = False) -> None:
    """Change the manifest; ``sign``: with a checksum that fits."""
    manifest = read_manifest(out)
    change(manifest)
    if sign:
        write_manifest(out, manifest)
    else:
        (out / MANIFEST).write_text(json.dumps(manifest))


def vectors(table: pa.Table, values: NDArray[Any]) -> pa.Table:
    """A table with other vectors."""
    flat = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return table.set_column(table.column_names.index("embedding"), "embedding", flat)


def as_array(table: pa.Table) -> NDArray[Any]:
    return np.array(table.column("embedding").to_pylist(), np.float32)


def spoil(value: float) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = as_array(table)
        values[2, 0] = value
        return vectors(table, values)

    return change


def shift(table: pa.Table) -> pa.Table:
    rows = table.column("row").to_numpy().copy()
    rows[1] = rows[0]
    return table.set_column(0, "row", pa.array(rows))


def same_id(table: pa.Table) -> pa.Table:
    ids = table.column("id").to_pylist()
    ids[1] = ids[0]
    return table.set_column(1, "id", pa.array(ids))


def test_a_whole_output_passes(out: Path) -> None:
    proof = verify(out)
    assert proof.findings == ()
    assert proof.files == 2 + 4 + 1
    total = proof.counts["text"]
    assert (total.rows, total.embedded, total.failed, total.skipped) == (30, 24, 1, 5)


def test_truncated_swapped_missing_and_foreign_files_are_found(out: Path) -> None:
    first, second = out / "texts/part-00002.parquet", out / PART
    second.write_bytes(second.read_bytes()[:-1])
    assert any(f.startswith(f"{PART}: expected") for f in verify(out).findings)
    assert any("part-00001.parquet: cannot be read" in f for f in verify(out).findings)
    shutil.copyfile(first, second)
    assert any("belong to another shard" in f for f in verify(out).findings)
    second.unlink()
    assert f"{PART}: is missing" in verify(out).findings
    (out / "texts" / "part-00009.parquet").write_bytes(b"x")
    assert any(
        "part-00009.parquet: is not listed in manifest.json" in f for f in verify(out).findings
    )


def test_one_flipped_byte_is_found(out: Path) -> None:
    data = bytearray((out / PART).read_bytes())
    data[200] ^= 1
    (out / PART).write_bytes(bytes(data))
    assert any("its content does not match the sha256" in f for f in verify(out).findings)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda t: t.slice(0, t.num_rows - 1), "1 rows are neither embedded nor failed: 15"),
        (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "1 rows occur more than once: 8"),
        (shift, "1 rows are neither embedded nor failed: 9"),
        (lambda t: t.take(list(range(t.num_rows))[::-1]), "its rows are not in order"),
        (same_id, "texts: 1 ids occur more than once"),
        (spoil(float("nan")), "1 vectors are not finite or not of unit length: 10"),
        (spoil(3.0), "1 vectors are not finite or not of unit length: 10"),
        (lambda t: t.drop_columns(["id"]), "cannot be read"),
    ],
)
def test_damage_that_the_manifest_vouches_for_is_found(
    out: Path, change: Callable[[pa.Table], pa.Table], found: str
) -> None:
    rewrite(out, change)
    assert any(found in finding for finding in verify(out).findings), verify(out).findings


def test_a_lost_error_row_is_found(out: Path) -> None:
    rewrite(out, lambda t: t.slice(0, 1), "errors.parquet")
    findings = verify(out).findings
    assert any("rows are neither embedded nor failed: 7" in f for f in findings)
    rewrite(out, lambda t: t.set_column(4, "reason", pa.array([""] * t.num_rows)), "errors.parquet")
    assert any("1 rows have no reason" in f for f in verify(out).findings)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda m: m["counts"]["texts"].update(failed=0), "24 embedded + 0 failed + 5 skipped"),
        (lambda m: m["counts"]["texts"].update(rows=31, skipped=6), "counts 31 rows"),
        (lambda m: m.update(space_id="0" * 64), "job.json: describes a different job"),
        (lambda m: m["shards"]["texts"].pop(), "expected shards up to row 25"),
        (lambda m: m["shards"]["texts"].pop(1), "expected to start at row 8, starts at 16"),
    ],
)
def test_an_edited_manifest_is_found(
    out: Path, change: Callable[[dict[str, Any]], Any], found: str
) -> None:
    edit(out, change)
    assert any("was edited" in finding for finding in verify(out).findings)
    edit(out, lambda m: None, sign=True)
    findings = verify(out).findings
    assert not any("was edited" in finding for finding in findings)
    assert any(found in finding for finding in findings), findings


def test_a_lost_job_is_found_and_without_a_manifest_there_is_nothing_to_prove(out: Path) -> None:
    (out / JOB).unlink()
    assert any("job.json: cannot be read" in f for f in verify(out).findings)
    (out / MANIFEST).write_text("{}")
    with pytest.raises(DataError, match="is not a manifest"):
        verify(out)
    (out / MANIFEST).unlink()
    with pytest.raises(DataError, match=r"has no manifest.json"):
        verify(out)


def test_the_command_prints_the_account_or_the_damage(out: Path) -> None:
    outcome = run("embed", "--verify", out)
    assert outcome.status == 0, outcome
    assert "texts: 24 embedded + 1 failed + 5 skipped = 30 rows" in outcome.stdout
    (out / PART).unlink()
    outcome = run("embed", "--verify", out)
    assert outcome.status == 1
    assert f"{PART}: is missing" in outcome.stderr
    assert "BUNDLE cannot be combined with --verify" in refused("embed", "x", "--verify", out)
    assert "has no manifest.json" in refused("embed", "-q", "--verify", out / "texts")
