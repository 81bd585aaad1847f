"""Write files and folders atomically: they appear complete or not at all, even after a crash."""

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

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # constants for Linux's renameat2


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; rename it on success, remove it on an error."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path) as partial:
            yield partial
            sync(partial)
            partial.chmod(0o666 & ~_umask())  # same mode as with open()
            partial.replace(path)
            sync(path.parent)


@contextmanager
def new_folder(path: Path, *, marker: str, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder next to ``path``; rename it on success, remove it on an error.

    Args:
        path: the folder to create.
        marker: name of a file that every such folder contains, see `check_new_folder`.
        force: replace an existing folder, after everything has been written.

    Raises:
        BundleError: ``path`` exists and must not be replaced, or cannot be written.
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
                partial.rename(path)  # fails if path exists, unless it is an empty folder
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                check_new_folder(path, marker=marker, force=force)  # may be newly created
                _exchange(partial, path)
            sync(path.parent)


@contextmanager
def scratch_folder(beside: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder, next to a target or in the system's temporary folder.

    If a run is killed, the next run with this target (or, without one, on this machine) removes
    the folder.
    """
    target = Path(beside).absolute() if beside else Path(tempfile.gettempdir(), "mwa-export")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(target, folder=True) as folder:
        yield folder


@contextmanager
def _temporary(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a new hidden file or folder next to ``path``, locked while it is in use.

    Unlocked ones are first removed: they were left by killed runs.
    """
    for found in _leftovers(path):
        with _locked_now(found) as free:
            if free:
                remove(found)
    while True:
        # The name is chosen before the `try`, so that a signal at any time finds what to remove.
        partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            if folder:
                partial.mkdir(0o700)
            else:
                partial.touch(0o600, exist_ok=False)
            with _locked_now(partial):
                if partial.exists():  # otherwise another run removed it as a leftover
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
    except OSError:  # gone, locked, or on a disk without locks: do not remove it
        free = False
    try:
        yield free
    finally:
        if handle >= 0:
            os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> None:
    """Swap two files or folders, atomically if the system supports it."""
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
    """Flush a file's content, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise  # the others mean a network disk that cannot sync folders
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Flush all files in a folder and its subfolders to disk."""
    for place, _folders, names in os.walk(folder):
        for name in names:
            sync(Path(place, name))
        sync(Path(place))


def check_new_folder(path: Path, *, marker: str, force: bool) -> None:
    """Raise BundleError if ``path`` exists and must not be replaced.

    Only an empty folder, or one that contains the file ``marker``, is replaced: a typo with
    ``force`` must not delete a home folder.
    """
    with disk_errors(path):
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise BundleError(f"{str(path)!r}: is not valid UTF-8. Choose another name.") from error
        if not path.exists() and not path.is_symlink():
            if path.name in ("", ".."):
                raise BundleError(f"{path}: is not the name of a new folder. Pass its full name.")
            return check_writable(path.parent)
        if not (path / marker).is_file() and not (path.is_dir() and not any(path.iterdir())):
            raise BundleError(
                f"{path}: already exists and was not made by this command ({marker} is missing), "
                "so it is not replaced. Choose another folder, or remove it yourself."
            )
        if not force:
            raise BundleError(
                f"{path}: already exists. Choose another folder, or pass `force` to replace it."
            )
        if path.is_mount() or path.resolve() in (Path.cwd(), *Path.cwd().parents):
            raise BundleError(
                f"{path}: is a mount point or contains the current folder, so it cannot be "
                "replaced. Choose a new folder inside it."
            )
        check_writable(path.parent)


def check_writable(folder: Path) -> None:
    """Raise OSError if a folder is not writable or cannot be created."""
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
    """Hold a lock on a file, which the kernel releases when the process dies.

    Args:
        path: the lock file, in an existing folder.
        of: the file or folder that it protects, for messages; None: the folder of ``path``.
        shared: share the lock with other processes that do so, too.
        wait: wait for other holders instead of raising.
        passing: remove the file afterwards.

    Raises:
        OutputBusyError: another process holds the lock; the message names it.
        BundleError: the folder is not writable, or its disk does not support locks.
    """
    while True:
        with disk_errors(path.parent):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            _lock(handle, path, of or path.parent, shared=shared, wait=wait)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    break  # otherwise the previous holder removed the file
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
                f"{path}: cannot be locked ({error.strerror}). Choose a folder on a disk that "
                "supports file locks: they keep two runs from writing to it at once."
            ) from error
        holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
        who = f"process {holder}" if holder else "another run"
        raise OutputBusyError(
            f"{of}: is being written by {who}. Wait until it ends, or stop it; the lock ends with "
            "the process."
        ) from error


def _say(handle: int, text: str) -> None:
    """Record the holder's PID. Informational, so write errors are ignored."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if that fails. An existing target is never overwritten.

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
    """Return the hex sha256 of a JSON object without its entry `checksum`."""
    rest = {name: value for name, value in content.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the usual errors of writing to a disk into a BundleError that names the remedy."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "no space left on the device. Free some space, or write elsewhere",
            errno.EDQUOT: "the disk quota is used up. Free some space, or write elsewhere",
            errno.EROFS: "the file system is read-only. Write elsewhere",
            errno.EACCES: "no permission to write here. Write elsewhere",
            errno.EPERM: "no permission to write here. Write elsewhere",
            errno.EFBIG: "the file is too large for the file system or a limit of this shell",
            errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
            errno.ENOTDIR: "a part of this path is a file, not a folder. Choose another path",
            errno.EEXIST: "a part of this path is a file, not a folder. Choose another path",
            errno.EISDIR: "is a folder. Pass the name of a file",
        }
        if error.errno not in reasons:
            raise
        raise BundleError(f"{path}: cannot be written: {reasons[error.errno]}.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
