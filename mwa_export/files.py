"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mwa_export.errors import BundleError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it else."""
    path = Path(path)
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _beside(path)
        try:
            partial.touch(0o600, exist_ok=False)
            yield partial
            partial.chmod(0o666 & ~_umask())  # what open() would have given
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


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
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _beside(path)
        old = partial.with_name(partial.name + ".old")
        try:
            partial.mkdir(0o700)
            yield partial
            partial.chmod(0o777 & ~_umask())
            check_new_folder(path, marker=marker, force=force)  # it may have appeared meanwhile
            if path.exists() or path.is_symlink():
                path.replace(old)
            partial.replace(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.replace(path)
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A hidden name beside ``path`` that nothing has.

    Chosen before anything is made: a signal that arrives while the system makes it finds the name.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")


def check_new_folder(path: Path, *, marker: str, force: bool) -> None:
    """Raise BundleError if ``path`` exists and may not be replaced.

    Only a folder that holds the file ``marker`` is replaced, or an empty one: a slip of the hand
    with ``force`` must not cost anybody their home folder.
    """
    with _disk_errors(path):
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise BundleError(f"{str(path)!r}: is not valid UTF-8. Choose another name.") from error
        if not path.exists() and not path.is_symlink():
            if path.name in ("", ".."):
                raise BundleError(f"{path}: does not name a folder. Write its name out.")
            return
        if path.is_mount() or path.resolve() in (Path.cwd(), *Path.cwd().parents):
            raise BundleError(
                f"{path}: is a mount point or holds the current folder, so it cannot be replaced. "
                "Name a new folder inside it."
            )
        if not force:
            raise BundleError(
                f"{path}: exists already. Choose another folder, or replace it: `force`"
            )
        if not (path / marker).is_file() and not (path.is_dir() and not any(path.iterdir())):
            raise BundleError(
                f"{path}: exists and was not made by this command ({marker} is missing), so "
                "`force` does not replace it. Choose another folder, or remove it yourself."
            )


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


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
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
