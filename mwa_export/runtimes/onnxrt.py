"""ONNX Runtime on CPU, behind the Backend interface."""

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
    """Two graphs on ONNX Runtime: a bundle's float32 ones, or those that are named."""

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
            graphs: a graph per tower, as `choose_graphs` returns them; float32 where none is given.
            threads: for one operator; None uses all cores.
            check: reproduce the conformance vectors with the bundle's own graphs first.
            cuda: number of a GPU to run on; None: the CPU.

        Raises:
            BundleError: a graph is missing or cannot be loaded.
            VerificationError: this machine computes something else than the reference.
        """
        self._config = bundle.manifest.model
        self.image_size = self._config.backbone.image_size
        self._cuda = cuda
        self.graphs: dict[Tower, GraphFile] = {
            tower: (graphs or {}).get(tower) or bundle.graph(tower)
            for tower in bundle.manifest.towers
        }
        self._process = InThisProcess()  # a session itself may be used by any thread
        self._sessions = {
            tower: session(path, threads=threads, cuda=cuda)
            for tower, (path, _graph) in self.graphs.items()
        }
        if check:
            check_graphs(self, bundle)

    @property
    def precision(self) -> str:
        """ "float32", "int8", or what each tower has if they differ."""
        precisions = {tower: graph.precision for tower, (_path, graph) in self.graphs.items()}
        if len(set(precisions.values())) == 1:
            return next(iter(precisions.values()))
        # A graph of another tool is called by its file's name, which mostly names the tower.
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
        """Observe a tower's blocks, on the CPU.

        Raises:
            BundleError: the graph does not name its blocks.
        """
        return probe_graph(self.graphs[tower], self._config)


def choose_graphs(bundle: Bundle, names: Sequence[str]) -> dict[Tower, GraphFile]:
    """Find graphs by name: a file that the bundle's manifest lists, or a path to any other file.

    So a graph that another tool quantized can be measured as well, if it kept the inputs' names.

    Raises:
        BundleError: no such graph, one with other inputs, or two for one tower.
    """
    chosen: dict[Tower, GraphFile] = {}
    for name in names:
        path, graph = _find_graph(bundle, name)
        tower = graph.spec.tower
        if tower in chosen:
            raise BundleError(
                f"{name}: is a second graph for the {tower} tower, after {chosen[tower][0].name}. "
                "Name one graph per tower."
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
    """Describe a graph that the manifest does not list, by what ONNX Runtime says about it."""
    runner = session(path)
    inputs = {port.name: port for port in runner.get_inputs()}
    tower = _INPUTS.get(frozenset(inputs))
    if tower is None:
        raise BundleError(
            f"{path}: has the inputs {', '.join(inputs)}. Expected `image`, or `token_ids` and "
            "`padding_mask`, as the bundle's own graphs have them."
        )
    own = bundle.describe(tower).spec
    ports = []
    for port in own.inputs:  # in the order in which they are fed
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
