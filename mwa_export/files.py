"""Files and folders that appear whole or not at all, whenever the process dies."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mwa_export.errors import BundleError, OutputBusyError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it else."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path) as partial:
            yield partial
            sync(partial)
            partial.chmod(0o666 & ~_umask())  # what open() would have given
            partial.replace(path)
            sync(path.parent)


@contextmanager
def new_folder(path: Path, *, marker: str, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; rename it to ``path`` on success, remove it else.

    Args:
        marker: a file that every such folder holds, see check_new_folder.
        force: replace an existing folder, after everything has been written.

    Raises:
        BundleError: ``path`` exists and may not be replaced, or the disk refuses.
    """
    path = Path(path)
    check_new_folder(path, marker=marker, force=force)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path, folder=True) as partial:
            yield partial
            sync_folder(partial)
            partial.chmod(0o777 & ~_umask())
            try:
                partial.rename(path)  # refused where something is, but for an empty folder
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                check_new_folder(path, marker=marker, force=force)  # it may have appeared meanwhile
                _exchange(partial, path)
            sync(path.parent)


@contextmanager
def scratch_folder(beside: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder, beside a target or else where the system has them.

    What a killed run leaves is removed by the next one, for the same target or on this machine.
    """
    target = Path(beside).absolute() if beside else Path(tempfile.gettempdir(), "mwa-export")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(target, folder=True) as folder:
        yield folder


@contextmanager
def _temporary(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a new hidden file or folder beside ``path``, locked while it is in use.

    Those that earlier runs for ``path`` left when they were killed are removed first: nobody holds
    their locks.
    """
    for found in _leftovers(path):
        with _locked_now(found) as free:
            if free:
                remove(found)
    while True:
        # Chosen before anything is made: a signal that arrives meanwhile finds the name.
        partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            if folder:
                partial.mkdir(0o700)
            else:
                partial.touch(0o600, exist_ok=False)
            with _locked_now(partial):
                if partial.exists():  # else another run took it for a leftover
                    yield partial
                    return
        finally:
            remove(partial)


def _leftovers(path: Path) -> list[Path]:
    pattern = re.compile(re.escape(f".{path.name}.") + "[0-9a-f]{12}")
    with os.scandir(path.parent) as entries:
        return [Path(entry.path) for entry in entries if pattern.fullmatch(entry.name)]


@contextmanager
def _locked_now(path: Path) -> Iterator[bool]:
    """Lock a file or folder while the block runs; False if another process holds the lock."""
    import fcntl  # not on Windows

    handle = -1
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError:  # gone, held, or on a disk without locks: never removed
        free = False
    try:
        yield free
    finally:
        if handle >= 0:
            os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> None:
    """Swap what two names stand for, in one step where the system has one."""
    with suppress(AttributeError, OSError):
        swap = ctypes.CDLL(None).renameat2
        names = os.fsencode(one), os.fsencode(other)
        if swap(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
    old = one.with_name(one.name + ".old")
    other.rename(old)
    try:
        one.rename(other)
    except BaseException:
        old.rename(other)
        raise
    old.rename(one)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise  # else a network disk that cannot sync folders
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Wait until all files of a folder, and below it, are on the disk."""
    for place, _folders, names in os.walk(folder):
        for name in names:
            sync(Path(place, name))
        sync(Path(place))


def check_new_folder(path: Path, *, marker: str, force: bool) -> None:
    """Raise BundleError if ``path`` exists and may not be replaced.

    Only a folder that holds the file ``marker`` is replaced, or an empty one: a slip of the hand
    with ``force`` must not cost anybody their home folder.
    """
    with disk_errors(path):
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise BundleError(f"{str(path)!r}: is not valid UTF-8. Choose another name.") from error
        if not path.exists() and not path.is_symlink():
            if path.name in ("", ".."):
                raise BundleError(f"{path}: does not name a folder. Write its name out.")
            return check_writable(path.parent)
        if not (path / marker).is_file() and not (path.is_dir() and not any(path.iterdir())):
            raise BundleError(
                f"{path}: exists and was not made by this command ({marker} is missing), so it is "
                "not replaced. Choose another folder, or remove it yourself."
            )
        if not force:
            raise BundleError(
                f"{path}: exists already. Choose another folder, or replace it: `force`"
            )
        if path.is_mount() or path.resolve() in (Path.cwd(), *Path.cwd().parents):
            raise BundleError(
                f"{path}: is a mount point or holds the current folder, so it cannot be replaced. "
                "Name a new folder inside it."
            )
        check_writable(path.parent)


def check_writable(folder: Path) -> None:
    """Raise OSError if nothing can be written into a folder, or it cannot be made."""
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    if not there.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(there, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def locked(
    path: Path,
    *,
    of: Path | None = None,
    shared: bool = False,
    wait: bool = False,
    passing: bool = False,
) -> Iterator[None]:
    """Hold a lock file, with a lock that the kernel releases when the process dies.

    Args:
        path: the file, in a folder that exists.
        of: what it protects, for the message; None: its folder.
        shared: with others who share it.
        wait: for other holders, instead of raising.
        passing: remove the file afterwards.

    Raises:
        OutputBusyError: another process holds it; the message names it.
        BundleError: the folder cannot be written, or its disk has no locks.
    """
    while True:
        with disk_errors(path.parent):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            _lock(handle, path, of or path.parent, shared=shared, wait=wait)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    break  # else whoever held it has removed the file
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        if not shared:
            _say(handle, f"{os.getpid()}\n")
        yield
    finally:
        if passing:
            path.unlink(missing_ok=True)
        elif not shared:
            _say(handle, "")
        os.close(handle)


def _lock(handle: int, path: Path, of: Path, *, shared: bool, wait: bool) -> None:
    import fcntl  # not on Windows

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise BundleError(
                f"{path}: cannot be locked ({error.strerror}). Two runs on one folder would "
                "disturb each other, so it must lie on a disk with locks."
            ) from error
        holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
        who = f"process {holder}" if holder else "another run"
        raise OutputBusyError(
            f"{of}: is being written by {who}. Wait for it or stop it: a finished or dead "
            "process holds no lock."
        ) from error


def _say(handle: int, text: str) -> None:
    """Record the holder's PID. Informational, so write errors are ignored."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where that cannot be. A target that exists is never written.

    Raises:
        FileExistsError: the target exists.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        with source.open("rb") as old, target.open("xb") as new:
            shutil.copyfileobj(old, new)


def checksum(content: Mapping[str, Any]) -> str:
    """Hex sha256 of a JSON object but for its own entry `checksum`."""
    rest = {name: value for name, value in content.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk can refuse into an error for people."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "no space left on the device. Free some, or write elsewhere",
            errno.EDQUOT: "the disk quota is used up. Free some, or write elsewhere",
            errno.EROFS: "the file system is read-only. Write elsewhere",
            errno.EACCES: "no permission to write here. Write elsewhere",
            errno.EPERM: "no permission to write here. Write elsewhere",
            errno.EFBIG: "the file system or a limit of this shell allows no file of this size",
            errno.ENAMETOOLONG: "the name is too long",
            errno.ENOTDIR: "a part of this path is a file, not a folder",
            errno.EEXIST: "a part of this path is a file, not a folder",
            errno.EISDIR: "is a folder. Name a file",
        }
        if error.errno not in reasons:
            raise
        raise BundleError(f"{path}: cannot be written: {reasons[error.errno]}.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
