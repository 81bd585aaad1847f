"""The bundle: a folder with everything that is needed to embed, described by its manifest.

Reading it needs only numpy, not torch or the checkpoint.
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
_TRIES = 3  # attempts to open a bundle that another process may be changing


class Bundle:
    """A bundle on disk, checked against its manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._tokenizer: Tokenizer | None = None  # opened on demand
        self._checked: dict[str, tuple[Path, _Seen]] = {}  # path and state of each checked file

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read a bundle's manifest and check every file that it lists, by size and sha256.

        Raises:
            BundleError: not a bundle, an unknown schema, or a file is missing or was changed.
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
                    raise  # otherwise another process may have changed it meanwhile

    def file(self, name: str) -> Path:
        """Return the path of a file in the bundle, checked at first and after modifications.

        Raises:
            BundleError: it is missing or does not match the manifest.
        """
        path, seen = self._checked.get(name, (Path(), ()))
        if not seen or _seen(path) != seen:
            path, seen = self._find(name)
            self._checked[name] = path, seen
        return path

    def where(self, name: str) -> Path:
        """Return the path of a file in the bundle without checking it."""
        return self._checked.get(name, (self.path / name,))[0]

    def _find(self, name: str) -> tuple[Path, _Seen]:
        """Find a file by its content. After an interrupted change, it may be in `.pending`."""
        entry, place, settled = self.manifest.files[name], self.path / name, False
        while not settled:
            settled = True
            for path in (place, self.path / PENDING / name, place):  # may be moved meanwhile
                seen = _seen(path)
                if is_stored(path, entry):
                    if not path.parent.resolve().is_relative_to(self.path.resolve()):
                        raise BundleError(f"{path}: is linked from outside the bundle. {REMEDY}")
                    if seen == _seen(path):
                        return path, seen
                    settled = False  # it was replaced during the check
        raise BundleError(f"{place}: {_fault(place)}. {REMEDY}")

    def require(self, *towers: Tower, what: str) -> None:
        """Raise UsageError unless the bundle has the towers that ``what`` needs."""
        have = self.manifest.towers
        if lacking := [tower for tower in towers if tower not in have]:
            raise UsageError(
                f"{self.path}: contains only the {have[0]} tower, but {what} needs the "
                f"{lacking[0]} tower. Export the checkpoint with `towers=both`, or use another "
                "bundle."
            )

    def describe(
        self, tower: Tower, *, precision: str = "float32", dialect: str | None = None
    ) -> Graph:
        """Return the description of a tower's graph; with ``dialect`` None, that of the first.

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
        """Return the checked file and the description of a tower's graph, see `describe`.

        Raises:
            BundleError: there is no such graph, or its file or weights are damaged.
        """
        graph = self.describe(tower, precision=precision, dialect=dialect)
        for name in self.manifest.files_of(graph.file):
            self.file(name)
        return self.file(graph.file), graph

    def tokenizer(self) -> Tokenizer:
        """Open the bundle's tokenizer.

        Raises:
            BundleError: the bundle was exported without one, so it takes only token ids.
        """
        file = self.manifest.tokenizer
        if file is None:
            raise BundleError(
                f"{self.path}: was exported without a tokenizer, so it takes only token ids. "
                "To embed texts, export again with `tokenizer=FILE.spm`."
            )
        if self._tokenizer is None:
            longest = self.manifest.max_length
            self._tokenizer = Tokenizer.from_file(self.file(file), max_length=longest)
        return self._tokenizer

    def conformance(self) -> Conformance:
        """Read the conformance vectors.

        Raises:
            BundleError: the file is missing, damaged or does not fit the model.
        """
        return Conformance.load(self.file(CONFORMANCE), self.manifest.model.backbone)


def _fault(path: Path) -> str:
    """Describe what is wrong with a file that does not match the manifest."""
    try:
        if not path.exists():
            return f"is missing, but {MANIFEST} lists it"
        if not path.is_file():
            return "is not a regular file"
        path.open("rb").close()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return f"is not the file that {MANIFEST} describes"


def _seen(path: Path) -> _Seen:
    """Return a file's state, which changes when the file does; empty if it cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
