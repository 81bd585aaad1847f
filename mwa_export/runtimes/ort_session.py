"""ONNX Runtime sessions: open a graph, run it, and read its internal values."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.manifest import Graph, GraphFile
from mwa_export.cpu import fast_int8, instruction_sets
from mwa_export.errors import BundleError, RuntimeUnavailableError
from mwa_export.files import link_or_copy, scratch_folder
from mwa_export.inputs.preprocess import feed_of
from mwa_export.optional import require
from mwa_export.runtimes.backend import Probe
from mwa_export.spec import Embeddings, ModelConfig
from mwa_export.towers.forward import block_outputs

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Without VNNI, the int8 kernels add pairs of products in 16 bits, which overflow and give wrong
# results. With this option they shift the weights to uint8, which is exact and still faster than
# float32.
_EXACT_INT8 = "session.x64quantprecision"
# By default, idle threads spin until the next call, on cores that decoding and the other tower's
# session need. With this option they stop at the end of a call.
_REST_AFTER_RUN = "session.force_spinning_stop"
# ONNX Runtime 1.23, the last for Python 3.10, moves float8 pairs of Q and DQ across nodes
# that do not take float8, and then refuses its own graph. This leaves the pairs where they are.
_KEEP_PAIRS = "session.disable_quant_qdq"


def session(path: Path, *, threads: int | None = None, cuda: int | None = None) -> Any:
    """Open an ONNX Runtime session for a graph, on CPU or CUDA.

    Args:
        path: the `.onnx` file; its data file, if any, is in the same folder.
        threads: per operator; None uses all cores.
        cuda: number of the GPU to run on; None: the CPU.

    Raises:
        BundleError: ONNX Runtime cannot load the graph.
        RuntimeUnavailableError: ONNX Runtime cannot start CUDA and would fall back to the CPU.
    """
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(_REST_AFTER_RUN, "1")
    if fast_int8(instruction_sets()) is not True:
        options.add_session_config_entry(_EXACT_INT8, "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        provider, settings = (CPU, {}) if cuda is None else (CUDA, {"device_id": str(cuda)})
        providers = [(provider, settings)]
        try:
            runner = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:
            if "float8" not in str(error):
                raise
            options.add_session_config_entry(_KEEP_PAIRS, "1")
            runner = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime raises its own types, none of which it exports
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise BundleError(f"{path}: ONNX Runtime cannot load this graph: {error}") from error
    if runner.get_providers()[0] != provider:
        raise RuntimeUnavailableError(
            f"ONNX Runtime cannot start CUDA and would use {runner.get_providers()[0]}. Check the "
            "driver, CUDA and cuDNN that this onnxruntime-gpu needs, or use `runtime=onnxruntime`."
        )
    return runner


def cuda_available() -> bool:
    """Whether the installed ONNX Runtime was built with CUDA."""
    ort = require("onnxruntime")
    return CUDA in ort.get_available_providers()


def run_graph(session: Any, graph: Graph, inputs: tuple[NDArray[Any], ...]) -> Embeddings:
    """Run a graph on a tower's inputs (see `feed_of`). Returns (B, D) float32."""
    output = session.run([graph.spec.output.name], feed_of(graph.spec, inputs))[0]
    return cast(Embeddings, output.astype(np.float32, copy=False))


def session_with_outputs(path: Path, names: Sequence[str]) -> Any:
    """Open a session for a copy of the graph with additional outputs.

    Concatenated protobuf messages are merged. A few bytes at the end of the file therefore add
    outputs, without parsing the weights.
    """
    onnx = require("onnx")
    from mwa_export.graphs.write import data_file_of

    outputs = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    ]
    tail = onnx.ModelProto(graph=onnx.GraphProto(output=outputs)).SerializeToString()
    with scratch_folder() as folder:
        copy = folder / path.name
        shutil.copyfile(path, copy)
        with copy.open("ab") as file:
            file.write(tail)
        data = data_file_of(path)
        if data.is_file():
            link_or_copy(data, folder / data.name)
        return session(copy)


def probe_graph(file: GraphFile, config: ModelConfig) -> Probe:
    """Make a function that returns the output of each block of a graph; see `Probe`.

    Raises:
        BundleError: blocks are not named, because another tool made or changed the graph.
    """
    path, graph = file
    names = _block_values(path, config)
    runner = session_with_outputs(path, names)

    def probe(inputs: tuple[NDArray[Any], ...]) -> list[NDArray[np.float32]]:
        found = runner.run([*names, graph.spec.output.name], feed_of(graph.spec, inputs))
        return [np.asarray(value, np.float32) for value in found]

    return probe


def _block_values(path: Path, config: ModelConfig) -> list[str]:
    """Names of the output values of all blocks."""
    onnx = require("onnx")
    from mwa_export.towers.onnx_ops import sum_value

    blocks = block_outputs(config.backbone.layers, enhancer=config.enhancer)
    names = [sum_value(block) for block in blocks]
    model = onnx.load(path, load_external_data=False)
    known = {value for node in model.graph.node for value in node.output}
    absent = [name for name in names if name not in known]
    if absent:
        raise BundleError(
            f"{path}: has no value named {absent[0]}, so its layers cannot be compared. Expected a "
            "graph that this package exported. Omit `layers`."
        )
    return names
