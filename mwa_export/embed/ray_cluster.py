"""Connect to a Ray cluster, or start a local one that accepts no outside connections."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from mwa_export.cpu import cores
from mwa_export.errors import ClusterError
from mwa_export.files import scratch_folder
from mwa_export.optional import require

_TEMPORARY = Path("/tmp/mwa-ray")
_OBJECT_STORE = 128 << 20  # bytes: only names of shards and their accounts travel
# Of a cluster that is started here. Ray reads the first when it is imported.
_LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too: everything binds to 127.0.0.1
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
_RAYS_OWN = ("RAY_", "PYTHONBREAKPOINT")


@contextmanager
def cluster(address: str | None = None, *, cpus: int | None = None) -> Iterator[Any]:
    """Yield `ray`, connected.

    Args:
        address: of a running cluster, as `ray.init` takes it; None: that of $RAY_ADDRESS, or else a
            local cluster is started, without dashboard and usage statistics, and stopped at the
            end. A connection that the process has already is used and kept.
        cpus: of the local cluster; None: all cores.

    Raises:
        MissingPackageError: Ray is not installed.
        ClusterError: the cluster cannot be reached or started.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    # A thread of Ray prints what happens to workers; stdout is for results.
    with redirect_stdout(sys.stderr):
        if address is None and not _connected():
            with _local(cpus or cores()) as ray:
                yield ray
        else:
            with _running(address) as ray:
                yield ray


@contextmanager
def _running(address: str | None) -> Iterator[Any]:
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    try:
        with _own_signals():
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"the Ray cluster at {address} cannot be reached ({_first_line(error)}). Check "
            "`ray_address`, or leave it out to start a local cluster."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _local(cpus: int) -> Iterator[Any]:
    # Sockets lie in it, whose paths may have 107 characters: TMPDIR can be too deep.
    place = _TEMPORARY if _TEMPORARY.parent.is_dir() else None
    with scratch_folder(place) as folder, _local_in(str(folder), cpus) as ray:
        yield ray


@contextmanager
def _local_in(folder: str, cpus: int) -> Iterator[Any]:
    before = dict(os.environ)
    os.environ.update(_LOCAL)
    # Registered before Ray registers its own: when Python ends, Ray makes the folder once more.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ray = _ray()
    try:
        try:
            with _own_signals():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=_OBJECT_STORE,
                    _temp_dir=folder,
                )
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise ClusterError(
                f"no local Ray cluster can be started ({_first_line(error)}). Use the engine of "
                "one process: leave out `executor=ray`."
            ) from error
        yield ray
    finally:
        _stop(ray)
        for name in [name for name in os.environ if name.startswith(_RAYS_OWN)]:
            if name in before:
                os.environ[name] = before[name]
            else:  # also what Ray has set
                del os.environ[name]


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers that stop a run cleanly: `ray.init` sets its own, which abort."""
    if threading.current_thread() is not threading.main_thread():
        yield  # neither can set any there
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not set by Python
                signal.signal(number, handler)


def _stop(ray: Any) -> None:
    """End the local cluster, and wait until its processes are gone, where Ray can."""
    try:
        ray.shutdown(wait_for_processes=True)
    except TypeError:  # an older Ray
        ray.shutdown()


def _connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _ray() -> Any:
    require("ray.data")
    return require("ray")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
