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
_OBJECT_STORE = 128 << 20  # bytes: only names and results of shards are transferred
# For a cluster that is started here. Ray reads the first variable when it is imported.
_LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too: everything binds to 127.0.0.1
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
_RAYS_OWN = ("RAY_", "PYTHONBREAKPOINT")


@contextmanager
def cluster(address: str | None = None, *, cpus: int | None = None) -> Iterator[Any]:
    """Connect to a Ray cluster and yield the `ray` module.

    Args:
        address: address of a running cluster, as for `ray.init`; None: $RAY_ADDRESS, or else a
            local cluster, which is started without dashboard and usage statistics, and stopped at
            the end. An existing connection of this process is used and kept.
        cpus: CPUs of the local cluster; None: all cores.

    Raises:
        MissingPackageError: Ray is not installed.
        ClusterError: the cluster cannot be reached or started.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    # A thread of Ray prints worker messages; stdout is reserved for results.
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
            f"cannot reach the Ray cluster at {address} ({_first_line(error)}). Check "
            "`ray_address`, or omit it to start a local cluster."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _local(cpus: int) -> Iterator[Any]:
    # It contains sockets, whose paths are limited to 107 characters: TMPDIR may be too deep.
    place = _TEMPORARY if _TEMPORARY.parent.is_dir() else None
    with scratch_folder(place) as folder, _local_in(str(folder), cpus) as ray:
        yield ray


@contextmanager
def _local_in(folder: str, cpus: int) -> Iterator[Any]:
    before = dict(os.environ)
    os.environ.update(_LOCAL)
    # Registered before Ray's own handler, so it runs after it: Ray recreates the folder at exit.
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
                f"cannot start a local Ray cluster ({_first_line(error)}). Omit `executor=ray` to "
                "run in one process."
            ) from error
        yield ray
    finally:
        _stop(ray)
        for name in [name for name in os.environ if name.startswith(_RAYS_OWN)]:
            if name in before:
                os.environ[name] = before[name]
            else:  # including variables that Ray set
                del os.environ[name]


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restore the signal handlers that stop a run cleanly: those of `ray.init` abort."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signal handlers can only be set in the main thread
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not set by Python
                signal.signal(number, handler)


def _stop(ray: Any) -> None:
    """Stop the local cluster and, if this version of Ray can, wait for its processes to end."""
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
