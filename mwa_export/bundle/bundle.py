"""The bundle: a folder with everything that embedding needs, described by its manifest.

Reading needs numpy only, neither torch nor the checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import BundleError, OptionsError
from mwa_export.files import sha256_of
from mwa_export.inputs.tokenizer import Tokenizer
from mwa_export.spec import ModelConfig, Port, Tower, TowerSpec

if TYPE_CHECKING:
    from mwa_export.encoder.encoder import PictureLike
    from mwa_export.runtimes.choose import RuntimeOptions
    from mwa_export.runtimes.open import Opened

SCHEMA = 1
MANIFEST = "manifest.json"
CONFORMANCE = "conformance.npz"
TOKENIZER = "tokenizer/beit3.spm"


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph of a bundle."""

    file: str  # relative to the bundle, as are all names in it
    spec: TowerSpec
    precision: str  # "float32", "float16" or "int8"
    dialect: str  # "onnx": standard operators, for every runtime; else the runtime it is made for
    opset: int
    # Least cosine with the conformance vectors, where it was made. None: exact to float32.
    conformance: float | None = None

    def to_json(self) -> dict[str, Any]:
        exact = {} if self.conformance is None else {"conformance": self.conformance}
        return {
            "file": self.file,
            "tower": self.spec.tower,
            "precision": self.precision,
            "dialect": self.dialect,
            "opset": self.opset,
            "inputs": [port.to_json() for port in self.spec.inputs],
            "output": self.spec.output.to_json(),
            **exact,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Graph:
        inputs = tuple(Port.from_json(port) for port in data["inputs"])
        spec = TowerSpec(data["tower"], inputs, Port.from_json(data["output"]))
        return cls(
            data["file"],
            spec,
            data["precision"],
            data["dialect"],
            data["opset"],
            data.get("conformance"),
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json; ``docs/bundle.md`` describes every field."""

    space_id: str
    model: ModelConfig
    preprocessing: dict[str, Any]
    graphs: tuple[Graph, ...]
    tokenizer: str | None  # its file; None: the bundle takes token ids only
    export: dict[str, Any]  # how it was made: version, sources, merge steps, measured differences
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> bytes, sha256
    engines: tuple[dict[str, Any], ...] = ()
    quantization: dict[str, Any] | None = None  # how the int8 graphs were made, and their recall

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "space_id": self.space_id,
            "model": self.model.to_json(),
            "preprocessing": self.preprocessing,
            "tokenizer": self.tokenizer,
            "graphs": [graph.to_json() for graph in self.graphs],
            "engines": list(self.engines),
            "export": self.export,
            **({} if self.quantization is None else {"quantization": self.quantization}),
            "files": self.files,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        return cls(
            space_id=data["space_id"],
            model=ModelConfig.from_json(data["model"]),
            preprocessing=data["preprocessing"],
            graphs=tuple(Graph.from_json(graph) for graph in data["graphs"]),
            tokenizer=data["tokenizer"],
            export=data["export"],
            files={
                name: {"bytes": entry["bytes"], "sha256": entry["sha256"]}
                for name, entry in data["files"].items()
            },
            engines=tuple(data["engines"]),
            quantization=data.get("quantization"),
        )


@dataclass(frozen=True, slots=True)
class Conformance:
    """A few inputs and what the PyTorch reference makes of them, for runtimes to check."""

    pixels: NDArray[np.uint8]  # (B, H, W, 3)
    token_ids: NDArray[np.int64]  # (B, T)
    padding_mask: NDArray[np.int64]  # (B, T), 1 = padding
    vision: NDArray[np.float32]  # (B, D), unit length
    text: NDArray[np.float32]  # (B, D), unit length

    def save(self, path: Path) -> None:
        np.savez_compressed(path, **{name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def load(cls, path: Path) -> Conformance:
        with np.load(path) as arrays:
            return cls(**{name: arrays[name] for name in cls.__slots__})


class Bundle:
    """A bundle on disk, checked against its manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._tokenizer: Tokenizer | None = None  # these two: opened when they are needed
        self._runtime: Opened | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read a bundle's manifest and check every file it names, by size and sha256.

        Raises:
            BundleError: no bundle, an unknown schema, or a file that is missing or changed.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        for name, entry in manifest.files.items():
            file = folder / name
            if not file.is_file():
                raise BundleError(f"{file}: is missing, and {MANIFEST} names it. {_REMEDY}")
            if file.stat().st_size != entry["bytes"] or sha256_of(file) != entry["sha256"]:
                raise BundleError(f"{file}: is not the file that {MANIFEST} describes. {_REMEDY}")
        return cls(folder, manifest)

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
                "Export again with --tokenizer FILE.spm to embed texts."
            )
        if self._tokenizer is None:
            max_length = self.manifest.preprocessing["text"]["max_length"]
            self._tokenizer = Tokenizer.from_file(self.path / file, max_length=max_length)
        return self._tokenizer

    def conformance(self) -> Conformance:
        return Conformance.load(self.path / CONFORMANCE)

    # The three below import where they run: the modules that embed import this one.

    def runtime(self, options: RuntimeOptions | None = None) -> Opened:
        """The runtime that `embed_images` and `embed_texts` use: opened once, then kept.

        Without options: the one that is open, or else the best for this machine and bundle, as
        `--runtime auto` chooses it. With options: opened anew, and used from then on.

        Raises:
            RuntimeUnavailableError, VerificationError, OptionsError: see `runtimes.open_backend`.
        """
        if options is not None or self._runtime is None:
            from mwa_export.runtimes.open import open_backend

            self._runtime = open_backend(self, options)
        return self._runtime

    def embed_images(self, pictures: Iterable[PictureLike]) -> NDArray[np.float32]:
        """Embed pictures: paths, encoded bytes, or pictures opened by Pillow, also mixed.

        Returns (n, D) float32 in their order, each row of unit length; (0, D) for none.

        Raises:
            ImageError: one cannot be read. The message names it, and nothing is returned; to
                leave bad pictures out, use `mwa-export embed`.
        """
        from mwa_export.encoder.encoder import embed_images

        return embed_images(self, pictures)

    def embed_texts(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Embed texts. A single str is refused: its letters would be embedded one by one.

        Returns (n, D) float32 in their order, each row of unit length; (0, D) for none.

        Raises:
            BundleError: the bundle carries no tokenizer.
            DataError: a single text, or something that is no text.
        """
        from mwa_export.encoder.encoder import embed_texts

        return embed_texts(self, texts)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Hash every file in the folder and write manifest.json beside them."""
    for file in sorted(_files(folder)):
        name = file.relative_to(folder).as_posix()
        manifest.files[name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    text = json.dumps(manifest.to_json(), indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


_REMEDY = "The bundle was changed or only partly copied: copy it again, or export it again."


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{folder}: is no bundle ({MANIFEST} is missing). Expected a folder made by "
            "`mwa-export onnx CHECKPOINT -o FOLDER`."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        schema = data["schema"]
        if schema != SCHEMA:
            raise BundleError(
                f"{path}: has schema version {schema!r}, and this version reads {SCHEMA}. "
                "Use the mwa-export that made it, or export again."
            )
        manifest = Manifest.from_json(data)
        for name in (CONFORMANCE, manifest.tokenizer, *(graph.file for graph in manifest.graphs)):
            if name is not None and name not in manifest.files:
                raise ValueError(f"files lacks {name}")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, OptionsError) as error:
        raise BundleError(f"{path}: is not a manifest ({error!r}). {_REMEDY}") from error


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != MANIFEST:
            yield path
