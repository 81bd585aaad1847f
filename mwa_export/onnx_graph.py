"""Build an ONNX graph that is clean by construction, and write it whole.

Equal nodes and equal constants are added once; every node and weight keeps a readable name, so that
calibration, layer reports and engine inspectors can speak of `blocks.3.fc1`. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mwa_export.towers import Port

OPSET = 17  # the newest that TensorRT 8.6 reads, and the oldest with LayerNormalization
IR_VERSION = 8  # what came with opset 17
EXTERNAL_BYTES = 1_500_000_000  # weights above this lie beside the graph: protobuf ends at 2 GB

_DTYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
}
_INLINE_BYTES = 1024  # smaller tensors (shapes, scalars) stay in the graph in any case
_ALIGNMENT = 4096  # so that runtimes can map each tensor of the data file on its own


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
        """The same for a node with several outputs."""
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
        """Write the model, and one data file beside it if the weights exceed ``external_bytes``.

        The initializers are handed over to the file one by one and the builder is empty
        afterwards, so that a large model is not in memory twice.

        Returns:
            The files written: the graph, and `NAME.data` if there is one.
        """
        self._rename(result, output.name)
        total = sum(array.nbytes for array in self._initializers.values())
        data_path = path.with_name(path.name + ".data") if total > external_bytes else None
        graph = helper.make_graph(
            self._nodes,
            path.stem,
            [_value_info(port) for port in inputs],
            [_value_info(output)],
        )
        if data_path is None:
            for name in list(self._initializers):
                graph.initializer.append(_inline(name, self._initializers.pop(name)))
        else:
            self._write_data(graph, data_path)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="mwa-export",
        )
        helper.set_model_props(model, dict(metadata))
        del graph
        path.write_bytes(model.SerializeToString(deterministic=True))
        return [path] if data_path is None else [path, data_path]

    def _write_data(self, graph: onnx.GraphProto, data_path: Path) -> None:
        with data_path.open("wb") as file:
            for name in list(self._initializers):
                array = self._initializers.pop(name)
                if array.nbytes < _INLINE_BYTES:
                    graph.initializer.append(_inline(name, array))
                    continue
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                tensor = graph.initializer.add(
                    name=name, data_type=_dtype_of(array), dims=array.shape
                )
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (
                    ("location", data_path.name),
                    ("offset", str(file.tell())),
                    ("length", str(array.nbytes)),
                ):
                    tensor.external_data.add(key=key, value=value)
                file.write(np.ascontiguousarray(array).data)

    def _rename(self, old: str, new: str) -> None:
        for node in self._nodes:
            node.output[:] = [new if value == old else value for value in node.output]
            node.input[:] = [new if value == old else value for value in node.input]

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}.{count}"
        self._names.add(candidate)
        return candidate


def _inline(name: str, array: NDArray[Any]) -> TensorProto:
    return TensorProto(
        name=name, data_type=_dtype_of(array), dims=array.shape, raw_data=array.tobytes()
    )


def _dtype_of(array: NDArray[Any]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


def _value_info(port: Port) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(port.name, _DTYPES[port.dtype], list(port.shape))
