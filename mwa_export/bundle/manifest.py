"""The manifest of a bundle: every field of manifest.json, and the conformance vectors."""

from __future__ import annotations

import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.engine import Engine
from mwa_export.bundle.quantization import Quantization
from mwa_export.errors import BundleError, MwaExportError
from mwa_export.files import checksum, sha256_of
from mwa_export.inputs.preprocess import IMAGE_SPEC
from mwa_export.inputs.tokenizer import TEXT_SPEC
from mwa_export.spec import (
    TOWERS,
    BackboneConfig,
    ModelConfig,
    Tower,
    TowerSpec,
    text_spec,
    vision_spec,
)
from mwa_export.typed_json import json_from_value, value_from_json

SCHEMA = 1
MANIFEST = "manifest.json"
CONFORMANCE = "conformance.npz"
TOKENIZER = "tokenizer/beit3.spm"
PENDING, LOCK = ".pending", ".lock"  # in a bundle that is being changed, see bundle.update
PRECISIONS = ("float32", "float16", "int8")  # of graphs
MAX_MANIFEST = MAX_CONFORMANCE = 1 << 26  # bytes; typically they have a few kB and a few MB
REMEDY = "The bundle was changed or copied incompletely. Copy it again, or export it again."


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph of a bundle."""

    file: str  # relative to the bundle, like all file names in it
    spec: TowerSpec
    precision: str  # "float32", "float16" or "int8"
    dialect: str  # "onnx": standard operators, for every runtime; otherwise the target runtime
    opset: int
    # Lowest cosine with the conformance vectors when it was made. None: exact to float32.
    conformance: float | None = None
    float32: tuple[str, ...] | None = None  # nodes of a float16 graph that stay in float32
    measured: int | None = None  # number of inputs measured to choose the float32 nodes

    def to_json(self) -> dict[str, Any]:
        """Return JSON data. The fields of the spec are on the same level as the others."""
        data = {**json_from_value(self), **json_from_value(self.spec)}
        order = ("file", "tower", "precision", "dialect", "opset", "inputs", "output")
        return {name: data[name] for name in (*order, *data) if name != "spec"}


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
    merges: tuple[str, ...]  # the applied merge steps
    largest_difference_from_reference: Mapping[Tower, float]  # of any embedding component
    versions: Mapping[str, str] | None = None  # package -> version used for the export


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
    tokenizer: str | None  # its file; None: the bundle takes only token ids
    export: Export
    files: Mapping[str, StoredFile] = field(default_factory=dict)
    engines: tuple[Engine, ...] = ()
    quantization: Quantization | None = None
    checksum: str | None = None  # of all other content of the file; None: not yet written

    @property
    def towers(self) -> tuple[Tower, ...]:
        """Towers that the bundle has graphs of; those of the model if there are no graphs yet."""
        found = {graph.spec.tower for graph in self.graphs} or self.model.towers
        return tuple(tower for tower in TOWERS if tower in found)

    @property
    def max_length(self) -> int:
        """Longest text in tokens, BOS and EOS included."""
        return int(self.preprocessing["text"]["max_length"])

    def files_of(self, graph: str) -> list[str]:
        """Return a graph's file and the files with its weights."""
        return [name for name in self.files if f"{name}.".startswith(f"{graph}.")]

    def to_json(self) -> dict[str, Any]:
        """Return JSON data, ordered like in the file."""
        data = {**json_from_value(self), "model": self.model.to_json()}
        order = ("space_id", "model", "preprocessing", "tokenizer", "graphs", "engines", "export")
        return {
            "schema": SCHEMA,
            **{name: data[name] for name in order},
            "graphs": [graph.to_json() for graph in self.graphs],
            **{name: data[name] for name in ("quantization", "files", "checksum") if name in data},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """Convert JSON data to a manifest.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, MwaExportError: not a manifest.
        """
        # A graph and its spec share one JSON object.
        graphs = [{**graph, "spec": graph} for graph in data["graphs"]]
        try:
            model = ModelConfig.from_json(data["model"])
        except (LookupError, TypeError) as error:
            raise ValueError(f"model: {error!r}") from error
        value_from_json(ModelConfig, json_from_value(model), "model")  # checks the types
        return value_from_json(cls, {**data, "model": model, "graphs": graphs}, "manifest")


@dataclass(frozen=True, slots=True)
class Conformance:
    """A few inputs with the PyTorch reference's outputs, used to check runtimes."""

    pictures: NDArray[np.uint8]  # concatenated PNG files
    ends: NDArray[np.int64]  # (B,), byte offset of the end of each file
    pixels: NDArray[np.uint8]  # (B, H, W, 3), the decoded and resized images
    token_ids: NDArray[np.int64]  # (B, T)
    padding_mask: NDArray[np.int64]  # (B, T), 1 = padding
    vision: NDArray[np.float32]  # (B, D), unit length
    text: NDArray[np.float32]  # (B, D), unit length

    def files(self) -> list[bytes]:
        """Return the encoded images."""
        return [part.tobytes() for part in np.split(self.pictures, self.ends)[:-1]]

    def save(self, path: Path) -> None:
        np.savez_compressed(path, **{name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def load(cls, path: Path, backbone: BackboneConfig) -> Conformance:
        """Read the conformance vectors of a bundle with a model of these sizes.

        Raises:
            BundleError: the file is damaged or does not fit the model.
        """
        kinds = dict(zip(cls.__slots__, ("u1", "i8", "u1", "i8", "i8", "f4", "f4"), strict=True))
        ranks = dict(zip(cls.__slots__, (1, 1, 4, 2, 2, 2, 2), strict=True))
        try:
            with zipfile.ZipFile(path) as archive:
                if (total := sum(e.file_size for e in archive.infolist())) > MAX_CONFORMANCE:
                    raise ValueError(f"got {total:,} bytes, expected at most {MAX_CONFORMANCE:,}")
            with np.load(path) as arrays:
                found = {name: arrays[name] for name in cls.__slots__}
            odd = [n for n, a in found.items() if (a.dtype.str[1:], a.ndim) != (kinds[n], ranks[n])]
            if odd:
                raise ValueError(f"{odd[0]} is {found[odd[0]].dtype} of rank {found[odd[0]].ndim}")
            return cls(**found)._checked(backbone)
        # numpy raises many types of errors for damaged zips and headers.
        except Exception as error:
            raise BundleError(
                f"{path}: does not contain conformance vectors ({error}). {REMEDY}"
            ) from error

    def _checked(self, backbone: BackboneConfig) -> Conformance:
        images, texts, width = len(self.pixels), len(self.token_ids), backbone.embed_dim
        expected = {
            "ends": (images,),
            "pixels": (images, *(backbone.image_size,) * 2, 3) if images else self.pixels.shape,
            "vision": (images, width),
            "padding_mask": self.token_ids.shape,
            "text": (texts, width),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name}: expected {shape}, got {getattr(self, name).shape}")
        return self


def preprocessing_of(backbone: BackboneConfig) -> dict[str, Any]:
    """Return the preprocessing of images and texts as data for the manifest."""
    return {
        "image": {**IMAGE_SPEC, "size": backbone.image_size},
        "text": {**TEXT_SPEC, "max_length": backbone.max_text_length},
    }


def write_manifest(
    folder: Path, manifest: Manifest, known: Mapping[str, StoredFile] | None = None
) -> Manifest:
    """Write manifest.json for the files in the folder and the files in ``known``.

    Returns:
        The written manifest, with the size and sha256 of every file, and its checksum.
    """
    files = dict(known or {})
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name not in files and path.is_file() and is_inside(name):
            files[name] = StoredFile(path.stat().st_size, sha256_of(path))
    written = replace(manifest, files=dict(sorted(files.items())), checksum=None)
    written = replace(written, checksum=checksum(written.to_json()))
    text = json.dumps(written.to_json(), indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return written


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a bundle. The files that it lists are not checked.

    Raises:
        BundleError: the manifest is missing, has another schema or a wrong checksum, or a field
            is missing, malformed or out of range.
    """
    if not os.path.isfile(path := folder / MANIFEST):
        raise BundleError(
            f"{folder}: is not a bundle ({MANIFEST} is missing). Pass a folder made by "
            "`mwa-export onnx CHECKPOINT -o FOLDER`."
        )
    try:
        if (size := path.stat().st_size) > MAX_MANIFEST:
            raise ValueError(f"got {size:,} bytes, expected at most {MAX_MANIFEST:,}")
        data = json.loads(
            path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite
        )
        if "shards" in data:
            raise ValueError("it belongs to an output of `mwa-export embed`")
        if (schema := data["schema"]) == SCHEMA:
            if "checksum" not in data:
                raise ValueError("it has no checksum")
            if data["checksum"] != checksum(data):
                raise ValueError("its checksum does not match its content")
            return _checked(Manifest.from_json(data))
    except (
        *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
        *(RecursionError, MwaExportError),
    ) as error:
        reason = error if isinstance(error, ValueError | MwaExportError) else repr(error)
        raise BundleError(
            f"{path}: is not a manifest that this version can read ({reason}). {REMEDY} Export it "
            "again as well if another version of mwa-export made it."
        ) from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}).") from error
    raise BundleError(
        f"{path}: has schema version {schema!r}. Expected {SCHEMA}. "
        "Use the version of mwa-export that made it, or export again."
    )


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _checked(manifest: Manifest) -> Manifest:
    """Check what types cannot express: names, hashes, ranges, and consistency with the model.

    Names decide which files are read, written and removed. None may lead out of the folder, and
    every file in use must have an entry in ``files``.
    """
    calibration = manifest.quantization.calibration if manifest.quantization else None
    named = (manifest.tokenizer, calibration, *(graph.file for graph in manifest.graphs))
    for name in (*manifest.files, *named, *(engine.file for engine in manifest.engines)):
        if name is not None and not is_inside(name):
            raise ValueError(f"{name!r} is not the name of a file in the bundle")
    for name in (CONFORMANCE, manifest.tokenizer, *(graph.file for graph in manifest.graphs)):
        if name is not None and name not in manifest.files:
            raise ValueError(f"files lacks {name}")
    for name, entry in manifest.files.items():
        if entry.bytes < 0 or not _SHA256.fullmatch(entry.sha256):
            raise ValueError(f"files.{name}: {entry} is not a size and a sha256")
    if not _SHA256.fullmatch(manifest.space_id):
        raise ValueError(f"space_id: {manifest.space_id!r} is not a sha256")
    backbone = manifest.model.backbone
    if manifest.preprocessing != preprocessing_of(backbone):
        raise ValueError("preprocessing differs from that of this version for this model")
    for index, graph in enumerate(manifest.graphs):
        if problem := _problem_with(graph, backbone):
            raise ValueError(f"graphs[{index}]: {problem}")
    return manifest


_SHA256 = re.compile("[0-9a-f]{64}")


def _problem_with(graph: Graph, backbone: BackboneConfig) -> str | None:
    """Describe what is wrong with a graph's entry; None if nothing is."""
    if graph.precision not in PRECISIONS:
        return f"precision: {graph.precision!r} is not one of {', '.join(PRECISIONS)}"
    if graph.conformance is not None and not 0 < graph.conformance <= 1 + 1e-6:
        return f"conformance: {graph.conformance} is not a positive cosine"
    specs = (vision_spec(backbone), vision_spec(backbone, image_input="uint8"), text_spec(backbone))
    return None if graph.spec in specs else "inputs or output differ from those of the tower"


def is_stored(file: Path, entry: StoredFile) -> bool:
    """Whether a file matches its entry in the manifest."""
    try:
        return (
            file.is_file()
            and file.stat().st_size == entry.bytes
            and sha256_of(file) == entry.sha256
        )
    except OSError:
        return False


def is_inside(name: str) -> bool:
    """Whether a name is a plain relative path on every system and allowed in a bundle."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and not set(part) & set("\\:\0") for part in parts)
    return plain and not name.startswith(MANIFEST) and parts[0] not in (PENDING, LOCK)
