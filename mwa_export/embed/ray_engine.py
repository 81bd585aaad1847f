"""The executor of `embed` for many machines: Ray Data gives shards to actors with the model.

An actor calls `Worker.embed_shard`, like the executor of one process, and writes its shard itself,
by rename: only names and accounts travel. So output, accounting and resume are those of one
process, and a shard whose worker was killed is done again, to the same bytes.
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

TRIES = 3  # of a shard whose workers die
_CPUS = 4  # of an actor, where there are as many


@dataclass(frozen=True, slots=True)
class RayOptions:
    """The Ray cluster to use, and the resources of each actor."""

    address: str | None = None  # of a running cluster; None: $RAY_ADDRESS, or a local one
    local_cpus: int | None = None  # of a local cluster; None: all cores
    cpus: int | None = None  # cores of an actor; None: 4, or what there is
    gpus: float | None = None  # of an actor; None: 1 if the runtime is CUDA, else 0
    actors: tuple[int, int] | None = None  # least and most; None: as many as there is room for

    def __post_init__(self) -> None:
        check_option("ray_cpus", self.cpus, self.cpus is None or self.cpus >= 1, "at least 1")
        fits = self.gpus is None or 0 <= self.gpus < math.inf
        check_option("ray_gpus", self.gpus, fits, "at least 0")
        least, most = self.actors or (1, 1)
        fits = 1 <= least <= most
        check_option("ray_actors", f"{least}-{most}", fits, "at least 1, the smaller number first")


@dataclass(frozen=True, slots=True)
class Pool:
    """The actors of a run."""

    least: int
    most: int
    cpus: int  # of each
    gpus: float  # of each


def ray_executor(options: RayOptions | None = None) -> Executor:
    """An executor for `Execution.executor` that runs on Ray.

    Raises:
        MissingPackageError: Ray is not installed.
    """
    check_installed("ray", "pyarrow", why="embed on a cluster")
    return partial(run_on_ray, options=options)


def run_on_ray(task: Task, *, options: RayOptions | None = None) -> None:
    """Embed the shards of a task on a Ray cluster.

    Raises:
        MissingPackageError: Ray is not installed.
        ClusterError: no cluster, no room for an actor, or a shard whose workers keep dying.
        MwaExportError: what a worker refused, as in one process.
    """
    options = options or RayOptions()
    with cluster(options.address, cpus=options.local_cpus) as ray:
        pool = size_pool(options, task.plan.job, ray.cluster_resources(), len(task.shards))
        with _quiet(ray):
            _run(ray, task, pool)


def size_pool(options: RayOptions, job: Job, resources: dict[str, float], shards: int) -> Pool:
    """Number and size of the actors that fit a cluster; at most one per shard.

    Raises:
        ClusterError: not even one fits, and no number was given for a cluster that grows.
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
            f"the Ray cluster has {have} CPUs and {resources.get('GPU', 0):g} GPUs, and an actor "
            f"needs {cpus} and {gpus:g}. Ask for less (`ray_cpus`, `ray_gpus`), or name the actors "
            "that a growing cluster may start: `ray_actors=1-8`"
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
        _tries(task.output, shard).unlink(missing_ok=True)  # of an earlier run
    task.meter.restart()
    rows = iter(done.iter_rows())
    try:
        for row in rows:
            left.discard(_account(task, row))
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"{len(left)} of {len(task.shards)} shards were not embedded: {_cause(error)} What is "
            "finished is kept; run the same command again to continue."
        ) from error
    finally:
        close = getattr(rows, "close", None)
        if close is not None:  # stops the actors when the run is stopped
            close()
    if left:
        raise ClusterError(f"Ray lost {len(left)} shards, the first {min(left)}. Run it again.")


def _account(task: Task, row: dict[str, Any]) -> str:
    """Enter a finished shard into the figures of the run. Returns its key."""
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
    """Everything an actor needs. Its sources keep their index in the output folder."""

    output: Output
    sources: tuple[Any, ...]
    folder: str  # the driver's current one: sources may be named relative to it
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
    """Holds the model; takes one shard at a time."""

    def __init__(self, orders: _Orders) -> None:
        self._orders = orders
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        shard: Shard = pickle.loads(batch["shard"][0])
        entry, clock, error = "", "", b""
        try:
            entry, clock = self._embed(shard)
        except Exception as failure:  # as data: Ray would wrap it, and lose its type
            error = _pickled(failure)
        return {"entry": [entry], "clock": [clock], "error": [error]}

    def _embed(self, shard: Shard) -> tuple[str, str]:
        """Embed and write a shard. Its entry and its clock, as JSON."""
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
        """Open the model, once it is clear that this machine sees the output of the job."""
        orders = self._orders
        if os.path.isdir(orders.folder):
            os.chdir(orders.folder)
        if Output.load(output.folder) != output:
            raise DataError(
                f"{output.folder / JOB}: a worker of the cluster does not see the file that this "
                "run wrote. Bundle, input and output must lie where every machine sees them under "
                "the same path."
            )
        return Worker.open(output.job, workers=orders.workers, runtime=orders.runtime)


@contextmanager
def _counted(output: Output, shard: Shard) -> Iterator[None]:
    """Refuse a shard whose workers died too often: Ray would try it again for ever."""
    path = _tries(output, shard)
    tries = path.stat().st_size if path.exists() else 0
    if tries >= TRIES:
        raise ClusterError(
            f"{shard}: {tries} workers died while they embedded it. What is finished stays. They "
            "have too little memory, or one of these rows kills them: run the same command without "
            "`executor=ray` to see it."
        )
    with path.open("ab") as file:
        file.write(b".")
    yield
    path.unlink()


def _tries(output: Output, shard: Shard) -> Path:
    """A file with a byte for each time that a shard was begun and not ended."""
    return output.folder / WORK / f"{shard.key}.tries"


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Silence what Ray Data tells about its plans: our own progress is shown."""
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
    """The line of Ray's message that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".") + "."
