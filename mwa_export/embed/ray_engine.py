"""Executor of `embed` for many machines: Ray Data distributes shards to actors with the model.

An actor calls `Worker.embed_shard`, like the single-process executor, and writes its shard itself,
by rename; only names and results are transferred. Output, accounting and resuming are therefore
those of one process, and if a worker is killed, its shard is computed again, with identical bytes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mwa_export.embed.pipeline import TIMES, Clock
from mwa_export.embed.ray_cluster import cluster
from mwa_export.embed.run import Executor, Task
from mwa_export.embed.worker import Worker
from mwa_export.errors import ClusterError, DataError, check_option
from mwa_export.optional import check_installed
from mwa_export.runtimes.options import NVIDIA, RuntimeOptions
from mwa_export.vectors.entries import Entry
from mwa_export.vectors.job import Job, Shard
from mwa_export.vectors.manifest import JOB
from mwa_export.vectors.output import WORK, Output

TRIES = 3  # attempts at a shard whose workers die
_CPUS = 4  # default CPUs per actor, if the cluster has that many


@dataclass(frozen=True, slots=True)
class RayOptions:
    """The Ray cluster to use, and the resources of each actor."""

    address: str | None = None  # of a running cluster; None: $RAY_ADDRESS, or a local one
    local_cpus: int | None = None  # CPUs of a local cluster; None: all cores
    cpus: int | None = None  # CPUs per actor; None: 4, or all if there are fewer
    gpus: float | None = None  # GPUs per actor; None: 1 on NVIDIA runtimes, otherwise 0
    actors: tuple[int, int] | None = None  # minimum and maximum; None: as many as fit

    def __post_init__(self) -> None:
        check_option("ray_cpus", self.cpus, self.cpus is None or self.cpus >= 1, "at least 1")
        fits = self.gpus is None or 0 <= self.gpus < math.inf
        check_option("ray_gpus", self.gpus, fits, "at least 0")
        least, most = self.actors or (1, 1)
        fits = 1 <= least <= most
        check_option("ray_actors", f"{least}-{most}", fits, "at least 1, the smaller number first")


@dataclass(frozen=True, slots=True)
class Pool:
    """Number and size of the actors of a run."""

    least: int
    most: int
    cpus: int  # per actor
    gpus: float  # per actor


def ray_executor(options: RayOptions | None = None) -> Executor:
    """Make an executor for `Execution.executor` that runs on Ray.

    Raises:
        MissingPackageError: Ray or pyarrow is not installed.
    """
    check_installed("ray", "pyarrow", why="embed on a cluster")
    return partial(run_on_ray, options=options)


def run_on_ray(task: Task, *, options: RayOptions | None = None) -> None:
    """Embed the shards of a task on a Ray cluster.

    Raises:
        MissingPackageError: Ray is not installed.
        ClusterError: no cluster, no room for an actor, or a shard whose workers keep dying.
        MwaExportError: any error of a worker, as in one process.
    """
    options = options or RayOptions()
    with cluster(options.address, cpus=options.local_cpus) as ray:
        pool = size_pool(options, task.plan.job, ray.cluster_resources(), len(task.shards))
        with _quiet(ray):
            _run(ray, task, pool)


def size_pool(options: RayOptions, job: Job, resources: dict[str, float], shards: int) -> Pool:
    """Choose the number and size of actors that fit a cluster; at most one per shard.

    Raises:
        ClusterError: no actor fits, and no number of actors for a growing cluster was given.
    """
    have = int(resources.get("CPU", 0))
    cpus = options.cpus or max(1, min(_CPUS, have))
    gpus = options.gpus if options.gpus is not None else float(job.runtime in NVIDIA)
    room = have // cpus
    if gpus > 0:
        room = min(room, int(resources.get("GPU", 0.0) / gpus))
    if options.actors is not None:
        least, most = options.actors
    elif room:
        least = most = room
    else:
        raise ClusterError(
            f"the Ray cluster has {have} CPUs and {resources.get('GPU', 0):g} GPUs, but an actor "
            f"needs {cpus} and {gpus:g}. Lower `ray_cpus` and `ray_gpus`, or, if the cluster can "
            "grow, pass the range of actors to start, such as `ray_actors=1-8`."
        )
    return Pool(min(least, shards), min(most, shards), cpus, gpus)


def _run(ray: Any, task: Task, pool: Pool) -> None:
    data = ray.data.from_items(
        [{"shard": pickle.dumps(shard)} for shard in task.shards],
        override_num_blocks=len(task.shards),
    )
    done = data.map_batches(
        _Actor,
        fn_constructor_args=(_Orders.of(task, pool),),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=pool.least, max_size=pool.most),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    left = {shard.key for shard in task.shards}
    for shard in task.shards:
        _tries(task.output, shard).unlink(missing_ok=True)  # left by an earlier run
    task.meter.restart()
    rows = iter(done.iter_rows())
    try:
        for row in rows:
            left.discard(_account(task, row))
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"{len(left)} of {len(task.shards)} shards were not embedded: {_cause(error)} Finished "
            "shards are kept. Run the same command again to continue."
        ) from error
    finally:
        close = getattr(rows, "close", None)
        if close is not None:  # stops the actors if the run is interrupted
            close()
    if left:
        raise ClusterError(
            f"Ray lost {len(left)} shards, the first is {min(left)}. Run the same command again."
        )


def _account(task: Task, row: dict[str, Any]) -> str:
    """Add a finished shard to the run's progress. Returns its key."""
    if row["error"]:
        error, where = pickle.loads(row["error"])
        raise error from RuntimeError(f"in a worker:\n{where}")
    entry = Entry.from_json(json.loads(row["entry"]))
    clock: Clock = task.meter.clock
    for name, spent in json.loads(row["clock"]).items():
        for stage, seconds in spent.items():
            if name == "threads":
                clock.threads[stage] = seconds
            elif name == "losses":
                clock.lose(stage, seconds)
            else:
                clock.add(getattr(clock, name), stage, seconds)
    task.meter.advance(entry.shard.stop - entry.shard.start, len(entry.errors))
    task.meter.watch.shard(entry)
    return entry.shard.key


@dataclass(frozen=True, slots=True)
class _Orders:
    """Everything an actor needs. Sources keep their indexes in the output folder."""

    output: Output
    sources: tuple[Any, ...]
    folder: str  # working directory of the driver, for sources with relative paths
    runtime: RuntimeOptions
    workers: int

    @classmethod
    def of(cls, task: Task, pool: Pool) -> _Orders:
        runtime = task.runtime
        if runtime.threads is None:
            runtime = replace(runtime, threads=pool.cpus)
        return cls(
            replace(task.output, folder=task.output.folder.resolve()),
            task.plan.sources,
            os.getcwd(),
            runtime,
            task.workers or pool.cpus,
        )


def _pickled(error: Exception) -> bytes:
    """Pickle an error and its traceback."""
    where = traceback.format_exc()
    try:
        return pickle.dumps((error, where))
    except Exception:  # some errors cannot be pickled, and pickle then raises anything
        return pickle.dumps((RuntimeError(repr(error)), where))


class _Actor:
    """Ray actor that holds the model and embeds one shard at a time."""

    def __init__(self, orders: _Orders) -> None:
        self._orders = orders
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        shard: Shard = pickle.loads(batch["shard"][0])
        entry, clock, error = "", "", b""
        try:
            entry, clock = self._embed(shard)
        except Exception as failure:  # returned as data: Ray would wrap it and lose its type
            error = _pickled(failure)
        return {"entry": [entry], "clock": [clock], "error": [error]}

    def _embed(self, shard: Shard) -> tuple[str, str]:
        """Embed and write a shard. Returns its entry and its clock as JSON."""
        output = self._orders.output
        if self._worker is None:
            self._worker = self._open(output)
        worker = self._worker
        worker.clock = Clock()
        source = next(source for source in self._orders.sources if source.kind == shard.kind)
        with _counted(output, shard):
            entry = worker.embed_shard(output, source, shard)
        times = {name: getattr(worker.clock, name) for name in (*TIMES, "threads", "losses")}
        return json.dumps(entry.to_json()), json.dumps(times)

    def _open(self, output: Output) -> Worker:
        """Check that this machine sees the output of the job, then open the model."""
        orders = self._orders
        if os.path.isdir(orders.folder):
            os.chdir(orders.folder)
        if Output.load(output.folder) != output:
            raise DataError(
                f"{output.folder / JOB}: a worker of the cluster cannot see this file, which this "
                "run wrote. Put bundle, input and output where every machine has them at the same "
                "path."
            )
        return Worker.open(output.job, workers=orders.workers, runtime=orders.runtime)


@contextmanager
def _counted(output: Output, shard: Shard) -> Iterator[None]:
    """Refuse a shard whose workers died too often: Ray would retry it forever."""
    path = _tries(output, shard)
    tries = path.stat().st_size if path.exists() else 0
    if tries >= TRIES:
        raise ClusterError(
            f"{shard}: {tries} workers died while embedding it. Finished shards are kept. Either "
            "workers have too little memory, or one of these rows kills them. To find out, run the "
            "same command without `executor=ray`."
        )
    with path.open("ab") as file:
        file.write(b".")
    yield
    path.unlink()


def _tries(output: Output, shard: Shard) -> Path:
    """Path of a file with one byte per unfinished attempt at a shard."""
    return output.folder / WORK / f"{shard.key}.tries"


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Silence Ray Data's log and progress bars, since we show our own progress."""
    context = ray.data.DataContext.get_current()
    logger, bars = logging.getLogger("ray.data"), context.enable_progress_bars
    level = logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """Return the last line of Ray's message, which states the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".") + "."
