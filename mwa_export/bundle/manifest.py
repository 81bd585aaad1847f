"""manifest.json: what a bundle holds, typed, and how it is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.files import sha256_of
from mwa_export.spec import ModelConfig, Port, TowerSpec

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


GraphFile = tuple[Path, Graph]


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


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Hash every file in the folder and write manifest.json beside them."""
    for file in sorted(_files(folder)):
        name = file.relative_to(folder).as_posix()
        manifest.files[name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    text = json.dumps(manifest.to_json(), indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != MANIFEST:
            yield path
