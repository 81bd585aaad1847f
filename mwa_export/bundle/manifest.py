"""The manifest of a bundle: every field of manifest.json, and the conformance vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.engine import Engine
from mwa_export.bundle.fields import json_from_value, value_from_json
from mwa_export.bundle.quantization import Quantization
from mwa_export.errors import BundleError, MwaExportError
from mwa_export.files import sha256_of
from mwa_export.spec import TOWERS, ModelConfig, Tower, TowerSpec

SCHEMA = 1
MANIFEST = "manifest.json"
CONFORMANCE = "conformance.npz"
TOKENIZER = "tokenizer/beit3.spm"
REMEDY = "The bundle was changed or only partly copied: copy it again, or export it again."


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
        """JSON data, with the fields of the spec beside the others."""
        data = {**json_from_value(self), **json_from_value(self.spec)}
        order = ("file", "tower", "precision", "dialect", "opset", "inputs", "output")
        return {name: data[name] for name in (*order, "conformance") if name in data}


GraphFile = tuple[Path, Graph]


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint file that the bundle was exported from."""

    file: str
    sha256: str
    layout: str


@dataclass(frozen=True, slots=True)
class Export:
    """Record of the export."""

    mwa_export: str  # version
    sources: tuple[Source, ...]
    warnings: tuple[str, ...]
    merges: tuple[str, ...]  # the merge steps that were applied
    largest_difference_from_reference: Mapping[Tower, float]  # of an embedding's components


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Size and hash of a file in the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json; ``docs/bundle.md`` describes every field."""

    space_id: str
    model: ModelConfig
    preprocessing: Mapping[str, Any]
    graphs: tuple[Graph, ...]
    tokenizer: str | None  # its file; None: the bundle takes token ids only
    export: Export
    files: Mapping[str, StoredFile] = field(default_factory=dict)
    engines: tuple[Engine, ...] = ()
    quantization: Quantization | None = None

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The towers that the bundle has graphs of; before any is written, those of the model."""
        found = {graph.spec.tower for graph in self.graphs} or self.model.towers
        return tuple(tower for tower in TOWERS if tower in found)

    @property
    def max_length(self) -> int:
        """Longest text in tokens, BOS and EOS included."""
        return int(self.preprocessing["text"]["max_length"])

    def to_json(self) -> dict[str, Any]:
        """JSON data, in the order of the file."""
        data = {**json_from_value(self), "model": self.model.to_json()}
        order = ("space_id", "model", "preprocessing", "tokenizer", "graphs", "engines", "export")
        return {
            "schema": SCHEMA,
            **{name: data[name] for name in order},
            "graphs": [graph.to_json() for graph in self.graphs],
            **{name: data[name] for name in ("quantization", "files") if name in data},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """Read JSON data.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, MwaExportError: it is not a manifest.
        """
        # A graph and its spec share one JSON object.
        graphs = [{**graph, "spec": graph} for graph in data["graphs"]]
        model = ModelConfig.from_json(data["model"])
        return value_from_json(cls, {**data, "model": model, "graphs": graphs}, "manifest")


@dataclass(frozen=True, slots=True)
class Conformance:
    """A few inputs with the PyTorch reference's outputs, for runtimes to check."""

    pixels: NDArray[np.uint8]  # (B, H, W, 3)
    token_ids: NDArray[np.int64]  # (B, T)
    padding_mask: NDArray[np.int64]  # (B, T), 1 = padding
    vision: NDArray[np.float32]  # (B, D), unit length
    text: NDArray[np.float32]  # (B, D), unit length

    def save(self, path: Path) -> None:
        np.savez_compressed(path, **{name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def load(cls, path: Path) -> Conformance:
        """Read the file of a bundle.

        Raises:
            BundleError: it holds something else.
        """
        kinds = dict(zip(cls.__slots__, ("u1", "i8", "i8", "f4", "f4"), strict=True))
        ranks = dict(zip(cls.__slots__, (4, 2, 2, 2, 2), strict=True))
        try:
            with np.load(path) as arrays:
                found = {name: arrays[name] for name in cls.__slots__}
            odd = [n for n, a in found.items() if (a.dtype.str[1:], a.ndim) != (kinds[n], ranks[n])]
            if odd:
                raise ValueError(f"{odd[0]} is {found[odd[0]].dtype} of rank {found[odd[0]].ndim}")
        # What numpy makes of damaged zips and headers has no limits.
        except Exception as error:
            raise BundleError(
                f"{path}: does not hold conformance vectors ({error}). {REMEDY}"
            ) from error
        return cls(**found)


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write manifest.json for the files that are in the folder.

    Returns:
        What was written: the manifest with the size and sha256 of every file.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    files = {
        path.relative_to(folder).as_posix(): StoredFile(path.stat().st_size, sha256_of(path))
        for path in paths
    }
    written = replace(manifest, files=files)
    text = json.dumps(written.to_json(), indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return written


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a bundle. The files it names are not checked.

    Raises:
        BundleError: no manifest, another schema, or a field that is missing or malformed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{folder}: is not a bundle ({MANIFEST} is missing). Expected a folder made by "
            "`mwa-export onnx CHECKPOINT -o FOLDER`."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        schema = data["schema"]
        if schema == SCHEMA:
            return _complete(Manifest.from_json(data))
    except (
        *(ValueError, LookupError, TypeError, AttributeError),
        *(RecursionError, MwaExportError),
    ) as error:
        reason = error if isinstance(error, ValueError | MwaExportError) else repr(error)
        raise BundleError(f"{path}: is not a manifest ({reason}). {REMEDY}") from error
    raise BundleError(
        f"{path}: has schema version {schema!r}, and this version reads {SCHEMA}. "
        "Use the mwa-export that made it, or export again."
    )


def _complete(manifest: Manifest) -> Manifest:
    """Check the names of files, and that each the bundle is used with has an entry in ``files``.

    A name decides what is read, and in a changed bundle what is written or removed: none may lead
    out of the folder.
    """
    calibration = manifest.quantization.calibration if manifest.quantization else None
    named = (manifest.tokenizer, calibration, *(graph.file for graph in manifest.graphs))
    for name in (*manifest.files, *named, *(engine.file for engine in manifest.engines)):
        if name is not None and not _is_inside(name):
            raise ValueError(f"{name!r} is not the name of a file inside the bundle")
    for name in (CONFORMANCE, manifest.tokenizer, *(graph.file for graph in manifest.graphs)):
        if name is not None and name not in manifest.files:
            raise ValueError(f"files lacks {name}")
    return manifest


def _is_inside(name: str) -> bool:
    """Whether a name is a plain relative path, on every system."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and not set(part) & set("\\:\0") for part in parts)
    return plain and name != MANIFEST
