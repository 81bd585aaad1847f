"""ONNX Runtime on CPU or CUDA, behind the Backend interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import Graph, GraphFile
from mwa_export.errors import BundleError
from mwa_export.runtimes.backend import InThisProcess, Probe, check_graphs
from mwa_export.runtimes.ort_session import probe_graph, run_graph, session
from mwa_export.spec import Embeddings, Port, Tower, TowerSpec

_INPUTS: dict[frozenset[str], Tower] = {
    frozenset({"image"}): "vision",
    frozenset({"token_ids", "padding_mask"}): "text",
}
_DTYPES: dict[str, Literal["float32", "int64", "uint8"]] = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
}


class OnnxBackend:
    """Runs the graphs of both towers on ONNX Runtime: a bundle's float32 graphs, or others."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        graphs: Mapping[Tower, GraphFile] | None = None,
        threads: int | None = None,
        check: bool = True,
        cuda: int | None = None,
    ) -> None:
        """Open both towers.

        Args:
            graphs: a graph per tower, from `choose_graphs`; float32 for a tower without one.
            threads: per operator; None uses all cores.
            check: check that the bundle's own graphs reproduce the conformance vectors.
            cuda: number of the GPU to run on; None: the CPU.

        Raises:
            BundleError: a graph is missing or cannot be loaded.
            VerificationError: results on this machine differ from the reference.
        """
        self._config = bundle.manifest.model
        self.image_size = self._config.backbone.image_size
        self._cuda = cuda
        self.graphs: dict[Tower, GraphFile] = {
            tower: (graphs or {}).get(tower) or bundle.graph(tower)
            for tower in bundle.manifest.towers
        }
        self._process = InThisProcess()  # no lock, as any thread may use a session
        self._sessions = {
            tower: session(path, threads=threads, cuda=cuda)
            for tower, (path, _graph) in self.graphs.items()
        }
        if check:
            check_graphs(self, bundle)

    @property
    def precision(self) -> str:
        """Precision of the graphs, such as "float32", or that of each tower if they differ."""
        precisions = {tower: graph.precision for tower, (_path, graph) in self.graphs.items()}
        if len(set(precisions.values())) == 1:
            return next(iter(precisions.values()))
        # The precision of another tool's graph is its file name, which mostly contains the tower.
        return ", ".join(
            precision if precision.startswith(tower) else f"{tower} {precision}"
            for tower, precision in precisions.items()
        )

    @property
    def name(self) -> str:
        return f"ONNX Runtime{'' if self._cuda is None else ' on CUDA'} {self.precision}"

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        self._process.check()
        return run_graph(self._sessions["vision"], self.graphs["vision"][1], (pixels,))

    def embed_texts(
        self, token_ids: NDArray[np.int64], padding_mask: NDArray[np.int64]
    ) -> Embeddings:
        graph = self.graphs["text"][1]
        self._process.check()
        return run_graph(self._sessions["text"], graph, (token_ids, padding_mask))

    def probe(self, tower: Tower) -> Probe:
        """Make a function that returns the outputs of a tower's blocks, on the CPU.

        Raises:
            BundleError: blocks are not named in the graph.
        """
        return probe_graph(self.graphs[tower], self._config)


def choose_graphs(bundle: Bundle, names: Sequence[str]) -> dict[Tower, GraphFile]:
    """Find graphs by name: a file in the bundle's manifest, or the path of any other file.

    A graph quantized by another tool can be measured too, if it kept the names of the inputs.

    Raises:
        BundleError: a graph does not exist or has wrong inputs, or a tower has two.
    """
    chosen: dict[Tower, GraphFile] = {}
    for name in names:
        path, graph = _find_graph(bundle, name)
        tower = graph.spec.tower
        if tower in chosen:
            raise BundleError(
                f"{name}: is a second graph for the {tower} tower, after {chosen[tower][0].name}. "
                "Pass one graph per tower."
            )
        chosen[tower] = path, graph
    return chosen


def _find_graph(bundle: Bundle, name: str) -> GraphFile:
    for graph in bundle.manifest.graphs:
        if graph.file == name:
            return bundle.file(graph.file), graph
    if Path(name).is_file():
        return Path(name), _foreign_graph(Path(name), bundle)
    have = ", ".join(graph.file for graph in bundle.manifest.graphs)
    raise BundleError(
        f"{name}: is neither a graph of {bundle.path} nor a file. The bundle has: {have}."
    )


def _foreign_graph(path: Path, bundle: Bundle) -> Graph:
    """Describe a graph that is not in the manifest, by its inputs and outputs in ONNX Runtime."""
    runner = session(path)
    inputs = {port.name: port for port in runner.get_inputs()}
    tower = _INPUTS.get(frozenset(inputs))
    if tower is None:
        raise BundleError(
            f"{path}: has the inputs {', '.join(inputs)}. Expected `image`, or `token_ids` and "
            "`padding_mask`, as in the bundle's own graphs."
        )
    own = bundle.describe(tower).spec
    ports = []
    for port in own.inputs:  # in the order of feeding
        found = inputs[port.name]
        if found.type not in _DTYPES or len(found.shape) != len(port.shape):
            raise BundleError(
                f"{path}: input {port.name} is {found.type} of shape {found.shape}. Expected "
                f"{port.dtype} of shape {list(port.shape)}."
            )
        free = [isinstance(size, str) for size in port.shape]
        if any(isinstance(size, int) for size in compress(found.shape, free)):
            raise BundleError(
                f"{path}: input {port.name} has the fixed shape {found.shape}. Expected "
                f"{list(port.shape)}: export it with dynamic axes where these have names."
            )
        ports.append(Port(port.name, tuple(found.shape), _DTYPES[found.type]))
    outputs = runner.get_outputs()
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        shapes = {port.name: port.shape for port in outputs}
        raise BundleError(f"{path}: has the outputs {shapes}. Expected one of shape (batch, D).")
    output = Port(outputs[0].name, own.output.shape, "float32")
    return Graph(path.name, TowerSpec(tower, tuple(ports), output), path.name, "onnx", 0)
