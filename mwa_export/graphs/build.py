"""Build an ONNX graph that is clean by construction.

Equal nodes and equal constants are added once; every node and weight keeps a readable name, so that
calibration, layer reports and engine inspectors can speak of `blocks.3.fc1`. Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from mwa_export.graphs.write import EXTERNAL_BYTES, typed_value, write_model
from mwa_export.spec import Port

OPSET = 17  # the newest that TensorRT 8.6 reads, and the oldest with LayerNormalization
IR_VERSION = 8  # what came with opset 17
_SMALL_BYTES = 1024


class GraphBuilder:
    """Nodes and initializers of one graph. Values are names."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, NDArray[Any]] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._results: dict[Any, list[str]] = {}
        self._names: set[str] = set()

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output; an equal one that exists already is used instead."""
        return self.nodes(op, inputs, name, 1, **attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[str], name: str, outputs: int, **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs."""
        key = (op, tuple(inputs), outputs, repr(sorted(attributes.items())))
        if key not in self._results:
            label = self._unique(f"{name}.{op}")
            results = [label] if outputs == 1 else [f"{label}.{i}" for i in range(outputs)]
            self._nodes.append(helper.make_node(op, inputs, results, name=label, **attributes))
            self._results[key] = results
        return self._results[key]

    def weight(self, name: str, value: NDArray[Any]) -> str:
        """Add a named initializer."""
        name = self._unique(name)
        self._initializers[name] = value
        return name

    def constant(self, value: Any, dtype: type[np.generic], name: str) -> str:
        """A small initializer, shared by everyone who needs the same value."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight(f"constant.{name}", array)
        return self._constants[key]

    def write(
        self,
        path: Path,
        inputs: Sequence[Port],
        output: Port,
        result: str,
        metadata: Mapping[str, str],
        *,
        external_bytes: int = EXTERNAL_BYTES,
    ) -> list[Path]:
        """Check the graph and write it. Returns the files; the builder has no weights afterwards.

        ``result`` is the value that becomes the output. Weights of more than ``external_bytes``
        in all go to one data file beside the graph.
        """
        rename(self._nodes, result, output.name)
        model = helper.make_model(
            helper.make_graph(
                self._nodes,
                path.stem,
                [_value_info(port) for port in inputs],
                [_value_info(output)],
            ),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="mwa-export",
        )
        check_structure(model, self._initializers)
        helper.set_model_props(model, dict(metadata))
        return write_model(path, model, self._initializers, external_bytes=external_bytes)

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}.{count}"
        self._names.add(candidate)
        return candidate


def connections(
    nodes: Iterable[onnx.NodeProto],
) -> tuple[dict[str, onnx.NodeProto], dict[str, list[onnx.NodeProto]]]:
    """The node that makes each value, and the nodes that read it, each once."""
    nodes, readers = list(nodes), dict[str, list[onnx.NodeProto]]()
    for node in nodes:
        for value in dict.fromkeys(node.input):
            readers.setdefault(value, []).append(node)
    return {value: node for node in nodes for value in node.output}, readers


def rename(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Give a value another name, in all nodes that make or read it."""
    for node in nodes:
        node.output[:] = [new if value == old else value for value in node.output]
        node.input[:] = [new if value == old else value for value in node.input]


def check_structure(model: onnx.ModelProto, initializers: Mapping[str, NDArray[Any]]) -> None:
    """ONNX's own checks and strict shape inference, on types and shapes alone.

    Weights stand in as inputs of the same type, so that checking costs no memory; small constants
    stay, because shape inference reads them.
    """
    check = deepcopy(model)
    for name, array in initializers.items():
        if array.nbytes < _SMALL_BYTES:
            check.graph.initializer.append(numpy_helper.from_array(array, name))
        else:
            check.graph.input.append(typed_value(name, array))
    onnx.checker.check_model(check, full_check=True)


def _value_info(port: Port) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype))
    return helper.make_tensor_value_info(port.name, kind, list(port.shape))
