"""The bundle: a folder with everything that embedding needs, described by its manifest.

Reading needs numpy only, neither torch nor the checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path

from mwa_export.bundle.manifest import (
    CONFORMANCE,
    MANIFEST,
    REMEDY,
    Conformance,
    Graph,
    Manifest,
    read_manifest,
)
from mwa_export.errors import BundleError, UsageError
from mwa_export.files import sha256_of
from mwa_export.inputs.tokenizer import Tokenizer
from mwa_export.spec import Tower


class Bundle:
    """A bundle on disk, checked against its manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._tokenizer: Tokenizer | None = None  # opened when it is needed

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read a bundle's manifest and check every file it names, by size and sha256.

        Raises:
            BundleError: no bundle, an unknown schema, or a file that is missing or changed.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        for name, entry in manifest.files.items():
            file = folder / name
            if not file.is_file():
                raise BundleError(f"{file}: is missing, and {MANIFEST} names it. {REMEDY}")
            if file.stat().st_size != entry.bytes or sha256_of(file) != entry.sha256:
                raise BundleError(f"{file}: is not the file that {MANIFEST} describes. {REMEDY}")
        return cls(folder, manifest)

    def require(self, *towers: Tower, what: str) -> None:
        """Raise UsageError unless the bundle has the towers that ``what`` needs."""
        have = self.manifest.towers
        if lacking := [tower for tower in towers if tower not in have]:
            raise UsageError(
                f"{self.path}: holds the {have[0]} tower alone, and {what} needs the {lacking[0]} "
                "tower. Export the checkpoint with `towers=both`, or use a bundle that has it."
            )

    def graph(
        self, tower: Tower, *, precision: str = "float32", dialect: str | None = None
    ) -> tuple[Path, Graph]:
        """The file and the description of a tower's graph; ``dialect`` None takes the first.

        Raises:
            BundleError: the bundle has no such graph.
        """
        for graph in self.manifest.graphs:
            if (graph.spec.tower, graph.precision) == (tower, precision) and dialect in (
                None,
                graph.dialect,
            ):
                return self.path / graph.file, graph
        have = ", ".join(f"{g.spec.tower} {g.precision} {g.dialect}" for g in self.manifest.graphs)
        wanted = precision if dialect is None else f"{precision} {dialect}"
        raise BundleError(f"{self.path}: has no {wanted} graph for {tower}. It has: {have}.")

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
            self._tokenizer = Tokenizer.from_file(self.path / file, max_length=longest)
        return self._tokenizer

    def conformance(self) -> Conformance:
        return Conformance.load(self.path / CONFORMANCE)
