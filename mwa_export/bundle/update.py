"""Create or change a bundle atomically: readers find the old or the new state, even after a crash.

A new bundle is written next to its final place and renamed. An existing folder is changed in place,
so it may be a mount point, the current folder or a link, and may contain other files:

1. New files are written to BUNDLE/.pending and synced.
2. The new manifest is moved from there over the bundle's. From then on the new state is valid, and
   `Bundle.open` reads files that are not yet in place from `.pending`.
3. Files are moved into place, files that the new manifest does not list are removed, and finally
   `.pending`. If a process dies after step 2, the next change completes step 3; if it dies before
   step 2, the next change discards `.pending`.
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
    """A change in preparation. All new files go into ``folder``."""

    folder: Path
    base: Bundle | None = None  # bundle whose files are kept; None: a new bundle
    in_place: bool = False  # whether ``base`` itself is changed
    _dropped: set[str] = field(default_factory=set)

    def drop(self, *names: str) -> None:
        """Leave out files of the base."""
        self._dropped |= set(names)

    def write(self, manifest: Manifest) -> Manifest:
        """Copy the kept files and write the manifest, with the size and sha256 of every file.

        Raises:
            BundleError: a file of the base has changed since the base was opened.
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
                    raise BundleError(
                        f"{self.base.path / name}: changed while it was copied. Run again."
                    )
        return write_manifest(self.folder, manifest, kept)


@contextmanager
def changed_bundle(
    base: Bundle | None, out: Path | None = None, *, force: bool = False
) -> Iterator[Change]:
    """Yield a change of a bundle, which is applied atomically if the block ends without an error.

    Args:
        base: the bundle to change; None: create a new one at ``out``.
        out: folder of the result; None: change the base in place.
        force: replace ``out`` if it already is a bundle. Other files in it are kept.

    Raises:
        BundleError: the folder must not be replaced, cannot be written, or ``base`` was changed
            since it was opened. The old state is kept.
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
    """Return the folder that `changed_bundle` would write to. Call it before slow work.

    Raises:
        BundleError: it must not be replaced, or cannot be written.
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
    """Raise BundleError for a change whose files could not be moved into place."""
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
    """Complete the change in `.pending` if its manifest is in place; otherwise discard it.

    Raises:
        BundleError: a file is in the way. The bundle is complete, with some files in `.pending`.
    """
    try:
        _finish(folder)
    except OSError as error:
        raise BundleError(
            f"{target}: is usable, but not all of its files could be moved into place "
            f"({os.fsdecode(error.filename or folder)}: {error.strerror}). Remove what is in the "
            "way. The next change of the bundle moves them."
        ) from error


def _finish(folder: Path) -> None:
    pending = folder / PENDING
    if not pending.is_dir() or pending.is_symlink():
        remove(pending)
        return
    files: Mapping[str, StoredFile] = {}
    with suppress(BundleError):  # an empty folder, or a damaged manifest: nothing to complete
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
            with suppress(OSError):  # the folder contains other files
                (folder / name).parent.rmdir()
    sync(folder)
    remove(pending)


def _names_of(manifest: Path) -> set[str]:
    """Return the files in a replaced manifest; none if it is damaged, so that they are kept."""
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        return {name for name in files if is_inside(name)}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()


def _place(staged: Path, target: Path, *, ours: bool) -> None:
    """Put a file into place atomically. `.pending` stays complete until all files are in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target) and (target.is_dir() or not ours):  # keep it under another name
        target.rename(target.with_name(f"{target.name}.{secrets.token_hex(3)}.old"))
    moving = target.with_name(f".{target.name}.moving")  # in the same folder, maybe a mount point
    remove(moving)
    link_or_copy(staged, moving)
    sync(moving)
    moving.replace(target)
    sync(target.parent)


def _is_below(path: Path, folder: Path) -> bool:
    """Whether a file's folder is inside another, after following links."""
    return path.parent.resolve().is_relative_to(folder)
