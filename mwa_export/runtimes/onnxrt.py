"""ONNX Runtime on CPU, behind the Backend interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle, Graph
from mwa_export.cpu import fast_int8, instruction_sets
from mwa_export.errors import BundleError, RuntimeUnavailableError
from mwa_export.inputs.preprocess import normalize
from mwa_export.optional import require
from mwa_export.runtimes.backend import check_conformance, expected_cosine
from mwa_export.spec import TOWERS, Embeddings, Port, Tower, TowerSpec

GraphFile = tuple[Path, Graph]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Without VNNI the int8 kernels add pairs of products in 16 bits, which overflow: the result is
# wrong. With this they shift the weights to uint8 and are exact, and still faster than float32.
_EXACT_INT8 = "session.x64quantprecision"
# Idle threads wait busily for the next call, on cores that decoding and the other tower's session
# need. This ends it with the call.
_REST_AFTER_RUN = "session.force_spinning_stop"

_INPUTS: dict[frozenset[str], Tower] = {
    frozenset({"image"}): "vision",
    frozenset({"token_ids", "padding_mask"}): "text",
}
_DTYPES: dict[str, Literal["float32", "int64", "uint8"]] = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
}


def session(path: Path, *, threads: int | None = None, cuda: int | None = None) -> Any:
    """An ONNX Runtime session for a graph, on CPU or on CUDA.

    Args:
        path: the `.onnx` file; its data file, if any, lies beside it.
        threads: for one operator; None uses all cores.
        cuda: run on this GPU, and nowhere else.

    Raises:
        BundleError: ONNX Runtime cannot load the graph.
        RuntimeUnavailableError: CUDA was asked for, and ONNX Runtime would fall back to the CPU.
    """
    ort = require("onnxruntime", extra="onnx", why="run ONNX graphs")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(_REST_AFTER_RUN, "1")
    if fast_int8(instruction_sets()) is not True:
        options.add_session_config_entry(_EXACT_INT8, "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        provider, settings = (CPU, {}) if cuda is None else (CUDA, {"device_id": str(cuda)})
        runner = ort.InferenceSession(str(path), options, providers=[(provider, settings)])
    except Exception as error:  # ONNX Runtime raises its own types, none of which it exports
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise BundleError(f"{path}: ONNX Runtime cannot load this graph: {error}") from error
    if runner.get_providers()[0] != provider:
        raise RuntimeUnavailableError(
            f"ONNX Runtime cannot start CUDA and would use {runner.get_providers()[0]}. Check the "
            "driver, CUDA and cuDNN that this onnxruntime-gpu needs, or use --runtime onnxruntime."
        )
    return runner


def cuda_available() -> bool:
    """Whether the installed ONNX Runtime was built with CUDA."""
    ort = require("onnxruntime", extra="onnx", why="run ONNX graphs")
    return CUDA in ort.get_available_providers()


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
            bundle: an opened bundle.
            graphs: a graph per tower, as `choose_graphs` returns them; float32 where none is given.
            threads: for one operator; None uses all cores.
            check: reproduce the conformance vectors with the bundle's own graphs first.
            cuda: number of a GPU to run on; None: the CPU.

        Raises:
            BundleError: a graph is missing or cannot be loaded.
            VerificationError: this machine computes something else than the reference.
        """
        self.image_size = bundle.manifest.model.backbone.image_size
        self._cuda = cuda
        chosen = {tower: (graphs or {}).get(tower) or bundle.graph(tower) for tower in TOWERS}
        self.graphs: dict[Tower, GraphFile] = chosen
        self._sessions = {
            tower: session(path, threads=threads, cuda=cuda)
            for tower, (path, _graph) in chosen.items()
        }
        if check:
            known = [tower for tower in TOWERS if chosen[tower][1] in bundle.manifest.graphs]
            expected = {tower: expected_cosine(chosen[tower][1]) for tower in known}
            least = {tower: cosine for tower, cosine in expected.items() if cosine is not None}
            check_conformance(self, bundle, towers=known, least=least)

    @property
    def precision(self) -> str:
        """ "float32", "int8", or what each tower has if they differ."""
        precisions = {tower: graph.precision for tower, (_path, graph) in self.graphs.items()}
        if len(set(precisions.values())) == 1:
            return precisions["vision"]
        # A graph of another tool is called by its file's name, which mostly names the tower.
        return ", ".join(
            precision if precision.startswith(tower) else f"{tower} {precision}"
            for tower, precision in precisions.items()
        )

    @property
    def name(self) -> str:
        return f"ONNX Runtime{'' if self._cuda is None else ' on CUDA'} {self.precision}"

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        graph = self.graphs["vision"][1]
        return run_graph(self._sessions["vision"], graph, image_feed(graph, pixels))

    def embed_texts(
        self, token_ids: NDArray[np.int64], padding_mask: NDArray[np.int64]
    ) -> Embeddings:
        graph = self.graphs["text"][1]
        return run_graph(self._sessions["text"], graph, (token_ids, padding_mask))


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


def image_feed(graph: Graph, pixels: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """What the graph's image input wants, from (B, H, W, 3) uint8 pixels."""
    return (pixels,) if graph.spec.inputs[0].dtype == "uint8" else (normalize(pixels),)


def run_graph(session: Any, graph: Graph, arrays: tuple[NDArray[Any], ...]) -> Embeddings:
    """Feed arrays in the order of the graph's inputs. Returns (B, D) float32."""
    feed = {port.name: array for port, array in zip(graph.spec.inputs, arrays, strict=True)}
    output = session.run([graph.spec.output.name], feed)[0]
    return cast(Embeddings, output.astype(np.float32, copy=False))


def _find_graph(bundle: Bundle, name: str) -> GraphFile:
    for graph in bundle.manifest.graphs:
        if graph.file == name:
            return bundle.path / graph.file, graph
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
    own = bundle.graph(tower)[1].spec
    ports = []
    for port in own.inputs:  # in the order in which they are fed
        found = inputs[port.name]
        if found.type not in _DTYPES or len(found.shape) != len(port.shape):
            raise BundleError(
                f"{path}: input {port.name} is {found.type} of shape {found.shape}. Expected "
                f"{port.dtype} of shape {list(port.shape)}."
            )
        ports.append(Port(port.name, tuple(found.shape), _DTYPES[found.type]))
    outputs = runner.get_outputs()
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        shapes = {port.name: port.shape for port in outputs}
        raise BundleError(f"{path}: has the outputs {shapes}. Expected one of shape (batch, D).")
    output = Port(outputs[0].name, own.output.shape, "float32")
    return Graph(path.name, TowerSpec(tower, tuple(ports), output), path.name, "onnx", 0)
