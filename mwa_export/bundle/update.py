"""Make or change a bundle: readers find the old state or the new one, whenever the process dies.

A new bundle is written beside its place and renamed. A folder that exists is changed where it is,
so it may be a mount point, the current folder or a link, and hold files of others:

1. New files are written into BUNDLE/.pending and synced.
2. The manifest in there is renamed over the bundle's. From now on the new state holds, and
   `Bundle.open` takes a file that is not in its place yet from `.pending`.
3. Files are moved into place, those that the new manifest does not name are removed, then
   `.pending`. The next change does this for one that died after step 2, and discards one that
   died before it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import (
    LOCK,
    MANIFEST,
    PENDING,
    Manifest,
    StoredFile,
    is_inside,
    is_stored,
    read_manifest,
    write_manifest,
)
from mwa_export.errors import BundleError
from mwa_export.files import (
    check_new_folder,
    check_writable,
    disk_errors,
    link_or_copy,
    locked,
    new_folder,
    remove,
    sync,
    sync_folder,
)

_REPLACED = MANIFEST + ".old"  # in `.pending`: the manifest before the change


@dataclass
class Change:
    """A change that is being prepared. All but the files that are kept goes into ``folder``."""

    folder: Path
    base: Bundle | None = None  # whose files are kept; None: a new bundle
    in_place: bool = False  # of the base
    _dropped: set[str] = field(default_factory=set)

    def drop(self, *names: str) -> None:
        """Leave files of the base out."""
        self._dropped |= set(names)

    def write(self, manifest: Manifest) -> Manifest:
        """Write the manifest, with the size and sha256 of every file; kept ones are copied first.

        Raises:
            BundleError: a file of the base has changed since it was opened.
        """
        kept = {
            name: entry
            for name, entry in (self.base.manifest.files.items() if self.base else ())
            if name not in self._dropped and not (self.folder / name).exists()
        }
        if self.base is not None and not self.in_place:
            for name, entry in kept.items():
                target = self.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.base.file(name), target)
                if not is_stored(target, entry):
                    raise BundleError(f"{self.base.path / name}: changed while it was copied.")
        return write_manifest(self.folder, manifest, kept)


@contextmanager
def changed_bundle(
    base: Bundle | None, out: Path | None = None, *, force: bool = False
) -> Iterator[Change]:
    """Yield the change of a bundle; it takes effect as a whole if the block ends without an error.

    Args:
        base: the bundle to change; None: a new one is made, at ``out``.
        out: where the result goes; None: the base is changed in place.
        force: replace ``out`` if it is a bundle already. Files in it that are not the bundle's
            are kept.

    Raises:
        BundleError: the folder may not be replaced, the disk refuses, or ``base`` was changed
            since it was opened. The old state stays.
        OutputBusyError: another process is changing the bundle.
    """
    target = check_target(base, out, force=force)
    if not target.is_dir():
        with new_folder(target, marker=MANIFEST, force=force) as folder:
            yield Change(folder, base)
        return
    folder = target.resolve()
    in_place = base is not None and folder == base.path.resolve()
    with disk_errors(target), locked(folder / LOCK, passing=True):
        _settle(folder, target)
        if in_place and base is not None and read_manifest(folder) != base.manifest:
            raise BundleError(f"{target}: was changed since it was opened. Run the command again.")
        pending = folder / PENDING
        try:
            pending.mkdir()
            yield Change(pending, base, in_place)
            _check_places(folder, target)
            if (folder / MANIFEST).exists():
                shutil.copyfile(folder / MANIFEST, pending / _REPLACED)
            sync_folder(pending)
            (pending / MANIFEST).replace(folder / MANIFEST)
            sync(folder)
        finally:
            _settle(folder, target)


def check_target(base: Bundle | None, out: Path | None = None, *, force: bool = False) -> Path:
    """The folder that `changed_bundle` would write to; call it before work that takes minutes.

    Raises:
        BundleError: it may not be replaced, or cannot be written.
    """
    target = Path(out) if out is not None else base.path if base is not None else Path()
    force = force or out is None
    with disk_errors(target):
        if not target.is_dir() or not ((target / MANIFEST).is_file() or _is_empty(target)):
            check_new_folder(target, marker=MANIFEST, force=force)
        elif not force:
            raise BundleError(
                f"{target}: already exists. Choose another folder, or pass `force` to replace it."
            )
        else:
            check_writable(target)
    return target


def _is_empty(folder: Path) -> bool:
    return all(name in (PENDING, LOCK) for name in os.listdir(folder))


def _check_places(folder: Path, target: Path) -> None:
    """Refuse a change that could not be finished."""
    files = read_manifest(folder / PENDING).files
    new = {name for name in files if (folder / PENDING / name).exists()}
    for name in new:
        if not _is_below(folder / name, folder):
            raise BundleError(f"{target / name}: leads out of the bundle. Remove the link.")
    for name in new | (_names_of(folder / MANIFEST) - files.keys()):
        place = (target / name).parent
        with disk_errors(place):
            check_writable(place)


def _settle(folder: Path, target: Path) -> None:
    """Finish the change in `.pending` if its manifest is in place; discard it else.

    Raises:
        BundleError: something is in the way. The bundle is whole, with some files in `.pending`.
    """
    try:
        _finish(folder)
    except OSError as error:
        raise BundleError(
            f"{target}: can be read, but not all of its files can be moved into place "
            f"({os.fsdecode(error.filename or folder)}: {error.strerror}). Remove what is in the "
            "way: the next change of the bundle moves them."
        ) from error


def _finish(folder: Path) -> None:
    pending = folder / PENDING
    if not pending.is_dir() or pending.is_symlink():
        remove(pending)
        return
    files: Mapping[str, StoredFile] = {}
    with suppress(BundleError):  # of an empty folder, or damaged: nothing was decided
        files = read_manifest(folder).files
    before = _names_of(pending / _REPLACED)
    for name in sorted(files, key=lambda name: name.endswith(".onnx")):  # weights, then graphs
        staged, target = pending / name, folder / name
        inside = _is_below(target, folder)
        if inside and is_stored(staged, files[name]) and not is_stored(target, files[name]):
            _place(staged, target, ours=name in before)
    for name in before - files.keys():
        if _is_below(folder / name, folder) and not (folder / name).is_dir():
            (folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # others have files in it
                (folder / name).parent.rmdir()
    sync(folder)
    remove(pending)


def _names_of(manifest: Path) -> set[str]:
    """Files of the manifest that was replaced. A damaged one has none: its files are kept."""
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        return {name for name in files if is_inside(name)}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()


def _place(staged: Path, target: Path, *, ours: bool) -> None:
    """Move a file into place in one step. `.pending` stays whole until all are there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target) and (target.is_dir() or not ours):  # kept, under another name
        target.rename(target.with_name(f"{target.name}.{secrets.token_hex(3)}.old"))
    moving = target.with_name(f".{target.name}.moving")  # here: the folder may be a mount
    remove(moving)
    link_or_copy(staged, moving)
    sync(moving)
    moving.replace(target)
    sync(target.parent)


def _is_below(path: Path, folder: Path) -> bool:
    """Whether a file's folder is inside another, links followed."""
    return path.parent.resolve().is_relative_to(folder)
