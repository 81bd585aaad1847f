"""Change a bundle atomically: a new folder takes its place when everything is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import MANIFEST
from mwa_export.files import link_or_copy, new_folder


@contextmanager
def changed_bundle(
    bundle: Bundle, out: Path | None = None, *, force: bool = False
) -> Iterator[Path]:
    """Yield a new folder with the bundle's files, which takes the bundle's place on success.

    The files may be links to the old ones: replace them, never write into them. The caller writes
    the manifest.

    Args:
        bundle: to change.
        out: where the changed bundle goes; None: in the place of the old one.
        force: replace ``out`` if it exists.

    Raises:
        BundleError: the folder may not be replaced, or the disk refuses. The old bundle stays.
    """
    with new_folder(out or bundle.path, marker=MANIFEST, force=force or out is None) as folder:
        for name in bundle.manifest.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(bundle.path / name, target)
        yield folder
