"""Put a finished update in the place of the output that it updates.

    OUT/.update/NAME/   an output of its own, made beside the old one, which stays whole until then

From the moment OUT/manifest.json goes until the new one is there, OUT is no output: a run that
was killed in between is continued by the next run, from whatever is left in .update.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mwa_export.files import disk_errors, sync
from mwa_export.vectors.manifest import MANIFEST, contents, read_manifest

WORK, UPDATE = ".work", ".update"


def pending_update(out: Path) -> Path | None:
    """The finished update whose installation was begun, or may begin, and was not ended."""
    if (out / MANIFEST).is_file():
        return None
    return next((path.parent for path in sorted(out.glob(f"{UPDATE}/*/{MANIFEST}"))), None)


def install_update(out: Path, made: Path) -> None:
    """Move a finished update into the place of the output. It can be repeated after a kill.

    Raises:
        BundleError: the disk refuses; the same call goes on.
    """
    indexes = contents(read_manifest(made)).indexes.values()
    with disk_errors(out):
        (out / MANIFEST).unlink(missing_ok=True)
        _remove(out / WORK)  # its ledger is of the old shards
        sync(out)
        for path in sorted(made.iterdir()):
            if path.name not in (MANIFEST, WORK):
                _move(path, out / path.name)
        for path in out.glob("*.faiss"):
            if path.name not in {index.file for index in indexes}:
                path.unlink()
        sync(out)
        (made / MANIFEST).replace(out / MANIFEST)
        sync(out)
        shutil.rmtree(out / UPDATE)


def _move(path: Path, target: Path) -> None:
    if path.is_dir():
        _remove(target)
    path.replace(target)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
