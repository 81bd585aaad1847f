"""Replace an output with a finished update of it.

    OUT/.update/NAME/   the update: a complete output, built beside the old one

Deleting OUT/manifest.json is the commit: from then on, readers find the update. Its files are
linked into place before it is removed, so a crash at any moment leaves the old output or the new
one, and the next run finishes the move.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mwa_export.files import disk_errors, link_or_copy, sync
from mwa_export.vectors.job import FOLDERS
from mwa_export.vectors.manifest import JOB, MANIFEST, contents, read_manifest

WORK, UPDATE = ".work", ".update"


def pending_update(out: Path) -> Path | None:
    """Return the finished update that readers must use because moving it into place is unfinished.

    None: there is no such update.
    """
    if (out / MANIFEST).is_file():
        return None
    return next((path.parent for path in sorted(out.glob(f"{UPDATE}/*/{MANIFEST}"))), None)


def install_update(out: Path, made: Path) -> None:
    """Move a finished update into place. Safe to repeat after a crash.

    Raises:
        DataError: the update's manifest is damaged.
        BundleError: writing failed; the same call continues.
    """
    names = [JOB, *(file.file for file in contents(read_manifest(made)).files)]
    with disk_errors(out):
        for other in out.glob(f"{UPDATE}/*/{MANIFEST}"):
            if (
                other.parent != made
            ):  # an earlier update that never moved: `pending_update` must not find it
                other.unlink()
                sync(other.parent)
        (out / MANIFEST).unlink(missing_ok=True)
        sync(out)
        if (out / WORK).exists():
            shutil.rmtree(out / WORK)  # its ledger lists the old shards
        for name in names:
            _link(made / name, out / name)
        parts = (f"{folder}/part-*" for folder in FOLDERS.values())
        for pattern in ("*.faiss", "errors.*", *parts):
            for path in out.glob(pattern):
                if path.relative_to(out).as_posix() not in names:
                    path.unlink()
        for folder in {(out / name).parent for name in names}:
            sync(folder)
        (made / MANIFEST).replace(out / MANIFEST)
        sync(out)
        (out / UPDATE).rename(out / WORK)  # half-deleted, it must not look like an update
        shutil.rmtree(out / WORK)


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    moving = target.with_name(f".{target.name}.moving")
    moving.unlink(missing_ok=True)
    link_or_copy(path, moving)
    sync(moving)
    moving.replace(target)
    moving.unlink(missing_ok=True)  # replace() does nothing if both link to one file
