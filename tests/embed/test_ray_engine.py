"""On Ray, the output is byte-identical to that of one process, even if workers die."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from commands import files_below
from commands import run as command
from paths import HELPERS
from ray_source import DrawnSource

from mwa_export.bundle.bundle import Bundle
from mwa_export.data.rows import Row
from mwa_export.embed.pipeline import Clock
from mwa_export.embed.plan import plan
from mwa_export.embed.progress import Meter, Unwatched
from mwa_export.embed.ray_engine import (
    TRIES,
    Pool,
    RayOptions,
    _account,
    _Actor,
    _Orders,
    ray_executor,
    size_pool,
)
from mwa_export.embed.run import Execution, Task, run
from mwa_export.embed.update import Update
from mwa_export.errors import ClusterError, DataError, MissingPackageError, UsageError
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.vectors.entries import Entry
from mwa_export.vectors.job import EmbedOptions, Job, Shard
from mwa_export.vectors.output import WORK, Output

ONNX = RuntimeOptions("onnxruntime", "float32", threads=1)
OPTIONS = EmbedOptions(shard_size=8, batch=4)
TWO = RayOptions(local_cpus=2, cpus=1, actors=(2, 2))


class Watched(Unwatched):
    """Keeps the shards that it is told of."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.handlers: set[object] = set()  # of SIGTERM, while the run goes on

    def shard(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.handlers.add(signal.getsignal(signal.SIGTERM))


@pytest.fixture(scope="module")
def bundle(files: Path) -> Bundle:
    return Bundle.open(files / "bundle")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_an_update_by_workers_is_that_of_one_process(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    monkeypatch.chdir(tmp_path)
    ray = Execution(workers=1, executor=ray_executor(TWO), update=Update(vanished="keep"))
    for name, how in (("alone", replace(ray, executor=None)), ("ray", ray)):
        for count in (30, 22):
            source = DrawnSource("image", count, label=f"drawn {count}")
            done = run(bundle, [source], Path(name), options=OPTIONS, runtime=ONNX, how=how)
        assert (done.kept, done.counts["image"].rows) == (done.counts["image"].rows - 1, 29)
    assert files_below(tmp_path / "ray") == files_below(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_two_workers_of_which_one_is_killed_write_what_one_process_writes(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))  # workers import ray_source
    marker = tmp_path / "killed"
    sources = [DrawnSource("image", 60), DrawnSource("text", 30)]
    alone = run(bundle, sources, tmp_path / "alone", options=OPTIONS, runtime=ONNX)

    deadly = [DrawnSource("image", 60, deadly=21, marker=marker), sources[1]]
    watch = Watched()
    how = Execution(workers=1, executor=ray_executor(TWO))
    before, folders = dict(os.environ), set(Path("/tmp").glob(".mwa-ray.*"))
    done = run(
        bundle, deadly, tmp_path / "ray", options=OPTIONS, runtime=ONNX, how=how, watch=watch
    )

    assert int(marker.read_text()) != os.getpid()  # a worker was killed, and not this process
    assert files_below(tmp_path / "ray") == files_below(tmp_path / "alone")
    assert done.complete
    assert done.counts == alone.counts
    assert done.counts["image"].failed == 10
    assert done.embedded_now == 90
    assert sorted(entry.shard.key for entry in watch.entries) == [
        *(f"images-{number:05d}" for number in range(8)),
        *(f"texts-{number:05d}" for number in range(4)),
    ]
    import ray

    assert not ray.is_initialized()  # what was started here was stopped here
    assert dict(os.environ) == before
    assert watch.handlers == {signal.getsignal(signal.SIGTERM)}  # Ray's own would abort
    assert set(Path("/tmp").glob(".mwa-ray.*")) == folders
    assert capsys.readouterr().out == ""  # stdout is for results


def orders_of(bundle: Bundle, source: DrawnSource, out: Path) -> tuple[_Orders, Task]:
    """A job that was begun, and what its actors are told."""
    (out / WORK).mkdir(parents=True)
    planned = plan(bundle, [source], out / WORK, options=OPTIONS, runtime=ONNX)
    output = Output.claim(out, planned.job)
    meter = Meter(Clock(), source.count, 0, 0, Unwatched())
    task = Task(planned, output, list(planned.shards()), ONNX, 1, meter)
    return _Orders.of(task, Pool(1, 1, 1, 0)), task


def ask(actor: _Actor, shard: Shard) -> dict[str, Any]:
    return {name: value[0] for name, value in actor({"shard": [pickle.dumps(shard)]}).items()}


@pytest.mark.slow
def test_a_shard_that_keeps_killing_its_workers_is_given_up(bundle: Bundle, tmp_path: Path) -> None:
    orders, task = orders_of(bundle, DrawnSource("text", 20), tmp_path / "out")
    first, second, _ = task.shards
    begun = tmp_path / "out" / WORK / f"{first.key}.tries"
    begun.write_bytes(b"." * (TRIES - 1))
    assert _account(task, ask(_Actor(orders), first)) == first.key
    assert not begun.exists()  # it went well
    begun = tmp_path / "out" / WORK / f"{second.key}.tries"
    begun.write_bytes(b"." * TRIES)
    with pytest.raises(ClusterError, match=r"part-00001 .*3 workers died"):
        _account(task, ask(_Actor(orders), second))
    assert task.meter.done == 8


def test_what_a_worker_refuses_is_refused_as_in_one_process(bundle: Bundle, tmp_path: Path) -> None:
    orders, task = orders_of(bundle, DrawnSource("text", 20, refused=10), tmp_path / "out")
    with pytest.raises(DataError, match="changed at row 10"):
        _account(task, ask(_Actor(orders), task.shards[1]))


class Faulty(DrawnSource):
    """A source with a bug."""

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        if start:
            raise ZeroDivisionError(threading.Lock())  # which cannot be pickled
        return super().rows(start, stop)


def test_a_bug_in_a_worker_stays_one(bundle: Bundle, tmp_path: Path) -> None:
    orders, task = orders_of(bundle, Faulty("text", 20), tmp_path / "out")
    with pytest.raises(RuntimeError, match="ZeroDivisionError") as bug:
        _account(task, ask(_Actor(orders), task.shards[1]))
    assert "in rows" in str(bug.value.__cause__)


def test_a_worker_that_sees_another_output_writes_nothing(bundle: Bundle, tmp_path: Path) -> None:
    orders, task = orders_of(bundle, DrawnSource("text", 20), tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    for folder in (tmp_path / "elsewhere", tmp_path / "gone"):
        blind = replace(orders, output=replace(orders.output, folder=folder))
        with pytest.raises(DataError, match="cannot see this file"):
            _account(task, ask(_Actor(blind), task.shards[0]))
        assert not any(folder.rglob("*"))


def test_times_of_the_workers_say_what_limits_the_run(bundle: Bundle, tmp_path: Path) -> None:
    orders, task = orders_of(bundle, DrawnSource("image", 8), tmp_path / "out")
    _account(task, ask(_Actor(orders), task.shards[0]))
    assert task.meter.clock.busy["infer"] > 0
    assert task.meter.snapshot().bottleneck is not None


def job(runtime: str = "onnxruntime") -> Job:
    return Job("b", "s", {}, runtime, "float32", 8, "float32", "parquet", ())


@pytest.mark.parametrize(
    ("options", "runtime", "resources", "shards", "expected"),
    [
        (RayOptions(), "onnxruntime", {"CPU": 16.0}, 100, (4, 4, 4, 0)),
        (RayOptions(), "onnxruntime", {"CPU": 2.0}, 100, (1, 1, 2, 0)),
        (RayOptions(cpus=1), "onnxruntime", {"CPU": 16.0}, 5, (5, 5, 1, 0)),
        (RayOptions(), "cuda", {"CPU": 64.0, "GPU": 4.0}, 100, (4, 4, 4, 1)),
        (RayOptions(gpus=0.5), "cuda", {"CPU": 64.0, "GPU": 4.0}, 100, (8, 8, 4, 0.5)),
        (RayOptions(actors=(1, 50)), "cuda", {"CPU": 4.0}, 20, (1, 20, 4, 1)),
    ],
)
def test_actors_fit_the_cluster_and_are_no_more_than_shards(
    options: RayOptions,
    runtime: str,
    resources: dict[str, float],
    shards: int,
    expected: tuple[int, int, int, float],
) -> None:
    pool = size_pool(options, job(runtime), resources, shards)
    assert (pool.least, pool.most, pool.cpus, pool.gpus) == expected


@pytest.mark.parametrize(
    ("options", "runtime"), [(RayOptions(), "cuda"), (RayOptions(cpus=9), "onnxruntime")]
)
def test_no_room_for_an_actor_is_refused_and_not_waited_for(
    options: RayOptions, runtime: str
) -> None:
    with pytest.raises(ClusterError, match="`ray_actors="):
        size_pool(options, job(runtime), {"CPU": 8.0}, 10)


@pytest.mark.parametrize("bad", [{"cpus": 0}, {"actors": (0, 2)}, {"actors": (3, 2)}])
def test_numbers_of_actors_that_make_no_sense_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        RayOptions(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray-cpus", "2"], "--ray-cpus requires --engine ray"),
        (["--engine", "ray", "--ray-actors", "many"], "expected N or MIN-MAX"),
        (["--engine", "ray", "--ray-actors", "4-2"], "--ray-actors 4-2"),
    ],
)
def test_options_of_ray_that_make_no_sense_are_refused(
    files: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    source = files / "data"
    done = command("embed", files / "bundle", "--images", source, "-o", tmp_path / "o", *options)
    assert done.status == 2
    assert message in done.stderr
    assert not (tmp_path / "o").exists()


def test_options_reach_the_executor() -> None:
    from mwa_export.cli.embed_cmd import _executor

    executor: Any = _executor("ray", "auto", "1-8", 2, 0.5)
    assert executor.keywords["options"] == RayOptions("auto", None, 2, 0.5, (1, 8))
    executor = _executor("ray", None, "3", None, None)
    assert executor.keywords["options"] == RayOptions(actors=(3, 3))


def test_a_missing_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(MissingPackageError, match=r"mwa-export\[ray\]"):
        ray_executor(TWO)
