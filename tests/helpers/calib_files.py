"""Small towers, bundles and samples for quantization tests."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from configs import CONFIGS
from numpy.typing import NDArray

from mwa_export.calib.samples import Samples
from mwa_export.graphs.edit import FloatGraph
from mwa_export.inputs.noise import random_pixels, random_texts
from mwa_export.inputs.preprocess import normalize
from mwa_export.model.load import Model
from mwa_export.model.synthetic import random_tensors
from mwa_export.runtimes.backend import Backend
from mwa_export.runtimes.ort_session import session
from mwa_export.spec import Tower
from mwa_export.towers.export import onnx_from_tower
from mwa_export.towers.extract import tower_from_model
from mwa_export.towers.merge import merge_tower
from mwa_export.towers.steps import STEPS

TOWERS: tuple[Tower, ...] = ("vision", "text")
Array = NDArray[Any]


@cache
def _tower(name: str, tower: Tower, steps: frozenset[str]) -> bytes:
    config = CONFIGS[name]
    model = Model(config, random_tensors(config), (), ())
    plan, tensors = tower_from_model(config, model.tensors, tower, image_input="float32")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.onnx"
        onnx_from_tower(*merge_tower(plan, tensors, steps), path)
        return path.read_bytes()


def float_graph(
    name: str, tower: Tower, folder: Path, *, steps: Collection[str] = STEPS
) -> FloatGraph:
    """A merged float32 tower, as a bundle holds it."""
    path = folder / f"{name}.{tower}.onnx"
    path.write_bytes(_tower(name, tower, frozenset(steps)))
    return FloatGraph.load(path)


def embed(graph: FloatGraph, tower: Tower, folder: Path) -> Array:
    """Embeddings of fixed inputs."""
    path = folder / "run.onnx"
    graph.write(path)
    return embed_file(path, tower)


def embed_file(path: Path, tower: Tower) -> Array:
    """Embeddings of fixed inputs by a graph on disk."""
    rng = np.random.default_rng(0)
    if tower == "text":
        ids, mask = random_texts(rng, 4, 9, 90)
        feed: dict[str, Array] = {"token_ids": ids, "padding_mask": mask}
    else:
        feed = {"image": normalize(random_pixels(rng, 4, 32))}
    return np.asarray(session(path).run(None, feed)[0])


def make_samples(count: int = 24, seed: int = 0) -> Samples:
    """Pictures of coloured blocks, and texts of many lengths."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    pixels = blocks.repeat(8, axis=1).repeat(8, axis=2)
    texts = tuple(
        (0, *rng.integers(4, 90, rng.integers(3, 12)).tolist(), 2) for _index in range(count)
    )
    return Samples(pixels, texts, "0" * 64, "drawn", seed)


def embeddings(backend: Backend) -> list[Array]:
    """Of pictures and of texts that `make_samples()` does not hold."""
    unseen = make_samples(seed=9)
    images = [backend.embed_images(*inputs) for inputs in unseen.batches("vision")]
    texts = [backend.embed_texts(*inputs) for inputs in unseen.batches("text")]
    return [np.concatenate(images), np.concatenate(texts)]


def cosine(a: Array, b: Array) -> float:
    """Mean cosine of corresponding rows, whose length is 1."""
    return float((a.astype(np.float64) * b).sum(-1).mean())


def names(sites: Collection[Any]) -> frozenset[str]:
    """All sites, by name."""
    return frozenset(site.name for site in sites)
