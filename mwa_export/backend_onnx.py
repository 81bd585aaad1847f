"""ONNX Runtime on CPU, behind the Backend interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mwa_export.backend import Embeddings, check_conformance
from mwa_export.bundle import Bundle, Graph
from mwa_export.errors import BundleError
from mwa_export.lazy import require
from mwa_export.preprocess import normalize


def session(path: Path, *, threads: int | None = None) -> Any:
    """An ONNX Runtime CPU session for a graph.

    Args:
        path: the `.onnx` file; its data file, if any, lies beside it.
        threads: for one operator; None uses all cores.

    Raises:
        BundleError: ONNX Runtime cannot load the graph.
    """
    ort = require("onnxruntime", extra="onnx", why="run ONNX graphs")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own types, none of which it exports
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise BundleError(f"{path}: ONNX Runtime cannot load this graph: {error}") from error


class OnnxBackend:
    """The float32 graphs of a bundle on ONNX Runtime."""

    name = "ONNX Runtime float32"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, check: bool = True) -> None:
        """Open both towers.

        Args:
            bundle: an opened bundle.
            threads: for one operator; None uses all cores.
            check: reproduce the conformance vectors first.

        Raises:
            BundleError: a graph is missing or cannot be loaded.
            VerificationError: this machine computes something else than the reference.
        """
        self.image_size = bundle.manifest.model.backbone.image_size
        vision, self._vision_graph = bundle.graph("vision")
        text, self._text_graph = bundle.graph("text")
        self._vision = session(vision, threads=threads)
        self._text = session(text, threads=threads)
        if check:
            check_conformance(self, bundle)

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        return run_graph(self._vision, self._vision_graph, image_feed(self._vision_graph, pixels))

    def embed_texts(
        self, token_ids: NDArray[np.int64], padding_mask: NDArray[np.int64]
    ) -> Embeddings:
        return run_graph(self._text, self._text_graph, (token_ids, padding_mask))


def image_feed(graph: Graph, pixels: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """What the graph's image input wants, from (B, H, W, 3) uint8 pixels."""
    return (pixels,) if graph.spec.inputs[0].dtype == "uint8" else (normalize(pixels),)


def run_graph(session: Any, graph: Graph, arrays: tuple[NDArray[Any], ...]) -> Embeddings:
    """Feed arrays in the order of the graph's inputs. Returns (B, D) float32."""
    feed = {port.name: array for port, array in zip(graph.spec.inputs, arrays, strict=True)}
    return cast(Embeddings, session.run([graph.spec.output.name], feed)[0])
