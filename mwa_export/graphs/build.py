"""Build an ONNX graph without duplicates and with readable names. Knows nothing about models.

Equal nodes and equal constants are added once. Nodes and weights keep readable names, so that
calibration, layer reports and engine inspectors can refer to `blocks.3.fc1`.
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

OPSET = 17  # the newest opset that TensorRT 8.6 reads, and the oldest with LayerNormalization
IR_VERSION = 8  # the IR version of opset 17
_SMALL_BYTES = 1024


class GraphBuilder:
    """Nodes and initializers of one graph. Values are referred to by name."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, NDArray[Any]] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._results: dict[Any, list[str]] = {}
        self._names: set[str] = set()

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output, or reuse an equal one. Returns the name of its output."""
        return self.nodes(op, inputs, name, 1, **attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[str], name: str, outputs: int, **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs, or reuse an equal one. Returns their names."""
        key = (op, tuple(inputs), outputs, repr(sorted(attributes.items())))
        if key not in self._results:
            label = self._unique(f"{name}.{op}")
            results = [label] if outputs == 1 else [f"{label}.{i}" for i in range(outputs)]
            self._nodes.append(helper.make_node(op, inputs, results, name=label, **attributes))
            self._results[key] = results
        return self._results[key]

    def weight(self, name: str, value: NDArray[Any]) -> str:
        """Add a named initializer. Returns its name, which may get a number."""
        name = self._unique(name)
        self._initializers[name] = value
        return name

    def constant(self, value: Any, dtype: type[np.generic], name: str) -> str:
        """Add a small initializer, or reuse one with an equal value. Returns its name."""
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
        """Check the graph and write it. This removes the weights from the builder.

        Args:
            path: the `.onnx` file.
            inputs, output: the graph's ports.
            result: name of the value that becomes the output.
            metadata: strings to store in the model's properties.
            external_bytes: if all weights together are larger, they go to a data file next to the
                graph.

        Returns:
            The files written.
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
    """Return the producer of each value, and the nodes that read each value."""
    nodes, readers = list(nodes), dict[str, list[onnx.NodeProto]]()
    for node in nodes:
        for value in dict.fromkeys(node.input):
            readers.setdefault(value, []).append(node)
    return {value: node for node in nodes for value in node.output}, readers


def rename(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Rename a value in all nodes that produce or read it."""
    for node in nodes:
        node.output[:] = [new if value == old else value for value in node.output]
        node.input[:] = [new if value == old else value for value in node.input]


def check_structure(model: onnx.ModelProto, initializers: Mapping[str, NDArray[Any]]) -> None:
    """Run ONNX's checker with strict shape inference, without copying weights.

    Weights are replaced by inputs of the same type and shape. Small constants stay, because shape
    inference reads them.
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
