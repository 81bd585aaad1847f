"""Read the residual stream after every block, from the PyTorch reference or from an ONNX graph."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import BundleError
from mwa_export.files import link_or_copy
from mwa_export.optional import require
from mwa_export.runtimes.onnxrt import GraphFile, image_feed, session
from mwa_export.spec import ModelConfig, Tower
from mwa_export.towers.forward import block_outputs

Floats = NDArray[np.float32]
Probe = Callable[[tuple[NDArray[Any], ...]], list[Floats]]
"""Inputs of a tower (pixels; or token ids and padding mask) -> what each block passes on, (B, T, D)
or, where a graph computes only that, its first token (B, 1, D); the embedding (B, D) comes last."""


def layer_names(config: ModelConfig) -> list[str]:
    """What a probe's arrays are, in their order."""
    return [*(f"block {index}" for index in range(config.backbone.layers)), "embedding"]


def check_named_blocks(file: GraphFile, config: ModelConfig) -> list[str]:
    """The values that end each block.

    Raises:
        BundleError: the graph has no such values: another tool made it, or renamed them.
    """
    onnx = require("onnx", extra="export", why="look into a graph")
    from mwa_export.towers.onnx_ops import sum_value

    path, _graph = file
    blocks = block_outputs(config.backbone.layers, enhancer=config.enhancer)
    names = [sum_value(block) for block in blocks]
    model = onnx.load(path, load_external_data=False)
    known = {value for node in model.graph.node for value in node.output}
    absent = [name for name in names if name not in known]
    if absent:
        raise BundleError(
            f"{path}: has no value named {absent[0]}, so its layers cannot be compared. Expected a "
            "graph that this package made. Leave --layers out."
        )
    return names


def probe_graph(file: GraphFile, config: ModelConfig, *, threads: int | None = None) -> Probe:
    """A probe of an ONNX graph that has the names this package gives.

    Raises:
        BundleError: the graph has no such values: another tool made it, or renamed them.
    """
    path, graph = file
    names = check_named_blocks(file, config)
    runner = session_with_outputs(path, names, threads)

    def probe(inputs: tuple[NDArray[Any], ...]) -> list[Floats]:
        arrays = image_feed(graph, inputs[0]) if graph.spec.tower == "vision" else inputs
        feed = {port.name: array for port, array in zip(graph.spec.inputs, arrays, strict=True)}
        wanted = [*names, graph.spec.output.name]
        return [np.asarray(value, np.float32) for value in runner.run(wanted, feed)]

    return probe


def session_with_outputs(path: Path, names: Sequence[str], threads: int | None = None) -> Any:
    """A session for a copy of the graph with more outputs.

    Serialized messages may be joined: what follows is merged into what came before. So a few bytes
    at the end of the file add outputs, and the weights are never parsed here.
    """
    onnx = require("onnx", extra="export", why="look into a graph")
    from mwa_export.graphs.write import data_file_of

    outputs = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    ]
    tail = onnx.ModelProto(graph=onnx.GraphProto(output=outputs)).SerializeToString()
    with tempfile.TemporaryDirectory(prefix="mwa-export-") as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        with copy.open("ab") as file:
            file.write(tail)
        data = data_file_of(path)
        if data.is_file():
            link_or_copy(data, Path(folder) / data.name)
        return session(copy, threads=threads)


def probe_reference(reference: Any, tower: Tower) -> Probe:
    """A probe of the PyTorch reference, a `TorchBackend`."""
    import torch

    from mwa_export.inputs.preprocess import normalize

    model = reference.reference

    @torch.inference_mode()
    def probe(inputs: tuple[NDArray[Any], ...]) -> list[Floats]:
        found: list[Floats] = []

        def keep(_layer: Any, _inputs: Any, output: tuple[Any, Any]) -> None:
            found.append(output[0].numpy().copy())

        # Registered after the enhancer's own hook, so it sees what the next block sees.
        hooks = [layer.register_forward_hook(keep) for layer in model.beit3.encoder.layers]
        try:
            if tower == "vision":
                result = model.encode_image(torch.from_numpy(normalize(inputs[0])))
            else:
                result = model.encode_text(*(torch.from_numpy(array) for array in inputs))
        finally:
            for hook in hooks:
                hook.remove()
        return [*found, result.numpy()]

    return probe
