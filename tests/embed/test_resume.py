"""Resumed and shared runs of `embed` give the same bytes as a single run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from commands import files_below
from embed_samples import embed, pictures, texts

from mwa_export.embed.plan import Slice
from mwa_export.embed.progress import MaxErrors
from mwa_export.embed.run import Execution
from mwa_export.errors import (
    BundleError,
    DataError,
    OutputBusyError,
    OutputDamagedError,
    TooManyErrorsError,
    UsageError,
)
from mwa_export.vectors.lock import locked
from mwa_export.vectors.manifest import MANIFEST


@pytest.fixture(scope="module")
def bundle(files: Path) -> Path:
    return files / "bundle"


class KilledError(BaseException):
    """What a kill looks like from inside."""


def _killing(limit: int, after: bool) -> Any:
    """`Path.replace` that ends the run at its rename number ``limit``, before it or after it."""
    real, count = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count > limit and not after:
            raise KilledError
        moved = real(self, target)
        if count > limit:
            raise KilledError
        return moved

    return replace


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_ends_at_any_rename_goes_on_to_the_same_bytes(
    bundle: Path, tmp_path: Path, after: bool
) -> None:
    sources = [pictures(9, bad=(3,)), texts(10)]
    embed(bundle, sources, tmp_path / "whole")
    expected = files_below(tmp_path / "whole")
    renames = 1 + 2 * 4 + 2  # the job, two files of each shard, the errors, the manifest
    for limit in range(renames):
        out = tmp_path / f"out-{limit}"
        with (
            mock.patch.object(Path, "replace", _killing(limit, after)),
            pytest.raises(KilledError),
        ):
            embed(bundle, sources, out)
        before = {n: data for n, data in files_below(out).items() if n.endswith(".parquet")}
        assert all(expected[name] == data for name, data in before.items())
        embed(bundle, sources, out)
        assert files_below(out) == expected
    with mock.patch.object(Path, "replace", _killing(renames, after)):
        embed(bundle, sources, tmp_path / "survives")


def test_finished_shards_are_not_computed_again(bundle: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "out", pictures(24, bad=(20,))
    with pytest.raises(TooManyErrorsError):
        embed(bundle, [source], out, Execution(max_errors=MaxErrors(0)))
    part = out / "images" / "part-00000.parquet"
    before = part.stat()
    summary = embed(bundle, [source], out)
    assert (part.stat().st_ino, part.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert summary.embedded_now <= 16
    assert summary.counts["image"].embedded == 23
    again = embed(bundle, [source], out)
    assert again.embedded_now == 0
    assert again.complete


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dtype": "float16"}, "dtype: was float32, is float16"),
        ({"shard_size": 9}, "inputs.images.shard_size: was 8, is 9"),
        ({"batch": 4}, "inputs.images.batch: was 3, is 4"),
        ({"limit": 5}, "inputs.images.taken: was 9, is 5"),
        ({"format": "npy"}, "format: was parquet, is npy"),
    ],
)
def test_other_options_are_refused(
    bundle: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    embed(bundle, [pictures(9)], tmp_path / "out")
    before = files_below(tmp_path / "out")
    with pytest.raises(DataError, match=named):
        embed(bundle, [pictures(9)], tmp_path / "out", **change)
    assert files_below(tmp_path / "out") == before


@pytest.mark.slow
def test_another_source_bundle_or_folder_is_refused(
    bundle: Path, checkpoint: Path, files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    embed(bundle, [texts(9)], out)
    with pytest.raises(DataError, match=r"texts\.fingerprint: was f00d, is beef"):
        embed(bundle, [texts(9, fingerprint="beef")], out)
    with pytest.raises(DataError, match=r"inputs\.images\.rows: was absent, is 3"):
        embed(bundle, [texts(9), pictures(3)], out)
    from commands import save
    from configs import MWA
    from parity_files import export, write_tokenizer

    from mwa_export.model.synthetic import random_tensors

    other = save(tmp_path / "other.pth", random_tensors(MWA, 5))
    export(other, tmp_path / "other", write_tokenizer(tmp_path))
    with pytest.raises(DataError, match="space_id: was "):
        embed(tmp_path / "other", [texts(9)], out)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match=r"thesis.txt but no job.json"):
        embed(bundle, [texts(9)], mine)
    assert files_below(mine) == {"thesis.txt": b"precious"}


def test_a_second_run_is_refused_and_a_dead_one_holds_nothing(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    code = (
        "import sys, time; from pathlib import Path; from mwa_export.vectors.lock import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(120)\n"
    )
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(OutputBusyError, match=f"by process {holder.pid}"):
                embed(bundle, [texts(3)], out)
            with pytest.raises(OutputBusyError):
                embed(bundle, [texts(3)], out, Execution(part=Slice(1, 2)))
        finally:
            holder.kill()
    assert embed(bundle, [texts(3)], out).complete


def test_machines_that_share_the_work_make_the_same_output(
    bundle: Path, embedded: Path, tmp_path: Path
) -> None:
    out, sources = tmp_path / "out", [pictures(21, bad=(3, 20)), texts(30)]
    first = embed(bundle, sources, out, Execution(part=Slice(2, 3)))
    assert not first.complete
    assert first.left == 5
    assert not (out / MANIFEST).exists()
    with locked(out, "3-of-3"):  # another machine at work does not disturb
        assert not embed(bundle, sources, out, Execution(part=Slice(1, 3))).complete
    assert embed(bundle, sources, out, Execution(part=Slice(3, 3))).complete
    assert files_below(out) == files_below(embedded)
    with pytest.raises(UsageError, match="shard=4/3"):
        Slice(4, 3)


def test_too_many_errors_stop_the_run_and_more_are_allowed_the_next_time(
    bundle: Path, tmp_path: Path
) -> None:
    out, source = tmp_path / "out", pictures(30, bad=(9, 10, 11))
    with pytest.raises(TooManyErrorsError, match=r"3 of 14 rows failed, but `max_errors` allows 2"):
        embed(bundle, [source], out, Execution(max_errors=MaxErrors.parse("2")))
    assert not (out / MANIFEST).exists()
    with pytest.raises(TooManyErrorsError, match=r"allows 5%"):
        embed(bundle, [source], out, Execution(max_errors=MaxErrors.parse("5%")))
    assert not (out / MANIFEST).exists()
    assert embed(bundle, [source], out, Execution(max_errors=MaxErrors.parse("10%"))).complete


@pytest.mark.parametrize("text", ["x", "-1", "101%", "%", "1.5", "nan%"])
def test_a_limit_of_errors_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="max_errors"):
        MaxErrors.parse(text)


def test_no_room_and_no_permission_end_cleanly_and_the_run_goes_on(
    bundle: Path, embedded: Path, tmp_path: Path
) -> None:
    out, sources = tmp_path / "out", [pictures(21, bad=(3, 20)), texts(30)]
    from mwa_export.vectors import tables

    with (
        mock.patch.object(tables, "require", side_effect=_full_disk(2)),
        pytest.raises(BundleError, match="no space left on the device"),
    ):
        embed(bundle, sources, out)
    assert not [name for name in files_below(out) if ".part" in name]
    assert embed(bundle, sources, out).complete
    assert files_below(out) == files_below(embedded)


def _full_disk(writes: int) -> Any:
    """`require` with a pyarrow.parquet whose disk is full after some writes."""
    import errno

    from mwa_export.optional import require

    count = 0

    def stand_in(module: str) -> Any:
        real = require(module)
        if module != "pyarrow.parquet":
            return real

        def write_table(table: Any, path: Path, **options: Any) -> None:
            nonlocal count
            count += 1
            if count > writes:
                path.write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            real.write_table(table, path, **options)

        return mock.Mock(write_table=write_table)

    return stand_in


def test_a_lost_shard_of_a_finished_output_is_named(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed(bundle, [texts(30)], out)
    (out / "texts" / "part-00002.parquet").unlink()
    with pytest.raises(OutputDamagedError, match=r"part-00002.parquet: is missing or truncated"):
        embed(bundle, [texts(30)], out)
