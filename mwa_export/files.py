"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
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
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            _with_usual_mode(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; rename it to ``path`` on success, remove it else.

    Args:
        path: the folder to make.
        force: replace an existing folder, after everything has been written.

    Raises:
        BundleError: ``path`` exists and ``force`` is not given, or the disk refuses.
    """
    path = Path(path)
    check_new_folder(path, force=force)
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        old = partial.with_name(partial.name + ".old")
        try:
            yield partial
            partial.chmod(0o777 & ~_umask())
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


def check_new_folder(path: Path, *, force: bool) -> None:
    """Raise BundleError if ``path`` exists and may not be replaced."""
    if (path.exists() or path.is_symlink()) and not force:
        raise BundleError(f"{path}: exists already. Choose another folder, or replace it: --force")


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
            errno.ENOTDIR: "a part of this path is a file, not a folder",
        }
        if error.errno not in reasons:
            raise
        raise BundleError(f"{path}: cannot be written: {reasons[error.errno]}.") from error


def _with_usual_mode(path: Path) -> None:
    """mkstemp makes private files; give the mode that open() would have given."""
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
