"""The bundle: a folder with everything that embedding needs, described by its manifest.

Reading needs numpy only, neither torch nor the checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path

from mwa_export.bundle.manifest import (
    CONFORMANCE,
    MANIFEST,
    PENDING,
    REMEDY,
    Conformance,
    Graph,
    Manifest,
    is_stored,
    read_manifest,
)
from mwa_export.errors import BundleError, UsageError
from mwa_export.inputs.tokenizer import Tokenizer
from mwa_export.spec import Tower

_Seen = tuple[int, ...]
_TRIES = 3  # to open a bundle that may be changing


class Bundle:
    """A bundle on disk, checked against its manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._tokenizer: Tokenizer | None = None  # opened when it is needed
        self._checked: dict[str, tuple[Path, _Seen]] = {}  # where each file is, as last seen

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read a bundle's manifest and check every file it names, by size and sha256.

        Raises:
            BundleError: no bundle, an unknown schema, or a file that is missing or changed.
        """
        folder, before = Path(path), list[Manifest]()
        while True:
            bundle = cls(folder, read_manifest(folder))
            try:
                for name in bundle.manifest.files:
                    bundle.file(name)
                return bundle
            except BundleError:
                before.append(bundle.manifest)
                if before[-_TRIES:] == [bundle.manifest] * _TRIES:
                    raise  # else it may have been changed meanwhile

    def file(self, name: str) -> Path:
        """Where a file of the bundle is. Its content is checked unless it has not been touched.

        Raises:
            BundleError: it is missing, or is not the file that the manifest describes.
        """
        path, seen = self._checked.get(name, (Path(), ()))
        if not seen or _seen(path) != seen:
            path, seen = self._find(name)
            self._checked[name] = path, seen
        return path

    def where(self, name: str) -> Path:
        """Where a file of the bundle is, without a look at it."""
        return self._checked.get(name, (self.path / name,))[0]

    def _find(self, name: str) -> tuple[Path, _Seen]:
        """Find a file by its content. Of a change that was interrupted, some are not in place."""
        entry, place, settled = self.manifest.files[name], self.path / name, False
        while not settled:
            settled = True
            for path in (place, self.path / PENDING / name, place):  # it may be moved meanwhile
                seen = _seen(path)
                if is_stored(path, entry):
                    if not path.parent.resolve().is_relative_to(self.path.resolve()):
                        raise BundleError(f"{path}: is linked from outside the bundle. {REMEDY}")
                    if seen == _seen(path):
                        return path, seen
                    settled = False  # it was moved into place just now
        raise BundleError(f"{place}: {_fault(place)}. {REMEDY}")

    def require(self, *towers: Tower, what: str) -> None:
        """Raise UsageError unless the bundle has the towers that ``what`` needs."""
        have = self.manifest.towers
        if lacking := [tower for tower in towers if tower not in have]:
            raise UsageError(
                f"{self.path}: holds the {have[0]} tower alone, and {what} needs the {lacking[0]} "
                "tower. Export the checkpoint with `towers=both`, or use a bundle that has it."
            )

    def describe(
        self, tower: Tower, *, precision: str = "float32", dialect: str | None = None
    ) -> Graph:
        """The description of a tower's graph; ``dialect`` None takes the first.

        Raises:
            BundleError: the bundle has no such graph.
        """
        for graph in self.manifest.graphs:
            if (graph.spec.tower, graph.precision) == (tower, precision) and dialect in (
                None,
                graph.dialect,
            ):
                return graph
        have = ", ".join(f"{g.spec.tower} {g.precision} {g.dialect}" for g in self.manifest.graphs)
        wanted = precision if dialect is None else f"{precision} {dialect}"
        raise BundleError(
            f"{self.path}: has no {wanted} graph for {tower}. It has: {have or 'none'}."
        )

    def graph(
        self, tower: Tower, *, precision: str = "float32", dialect: str | None = None
    ) -> tuple[Path, Graph]:
        """The checked file and the description of a tower's graph, as `describe` finds it.

        Raises:
            BundleError: there is no such graph, or its file or weights are damaged.
        """
        graph = self.describe(tower, precision=precision, dialect=dialect)
        for name in self.manifest.files_of(graph.file):
            self.file(name)
        return self.file(graph.file), graph

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the bundle carries.

        Raises:
            BundleError: it was exported without one and takes token ids only.
        """
        file = self.manifest.tokenizer
        if file is None:
            raise BundleError(
                f"{self.path}: was exported without a tokenizer and takes token ids only. "
                "Export again with `tokenizer=FILE.spm` to embed texts."
            )
        if self._tokenizer is None:
            longest = self.manifest.max_length
            self._tokenizer = Tokenizer.from_file(self.file(file), max_length=longest)
        return self._tokenizer

    def conformance(self) -> Conformance:
        return Conformance.load(self.file(CONFORMANCE), self.manifest.model.backbone)


def _fault(path: Path) -> str:
    """What is wrong with a file that is not what the manifest describes."""
    try:
        if not path.exists():
            return f"is missing, and {MANIFEST} names it"
        if not path.is_file():
            return "is not a plain file"
        path.open("rb").close()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return f"is not the file that {MANIFEST} describes"


def _seen(path: Path) -> _Seen:
    """What changes when a file does; empty if it cannot be seen."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
