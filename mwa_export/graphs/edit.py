"""An editable float32 graph in memory: nodes, and separately the weights as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from mwa_export.errors import BundleError
from mwa_export.graphs.build import check_structure, connections
from mwa_export.graphs.write import EXTERNAL_BYTES, write_model

Array = NDArray[Any]


def read_model(path: Path, advice: str, *, values: bool = True) -> onnx.ModelProto:
    """Read a graph, with or without the values in its data file.

    Raises:
        BundleError: the file is not an ONNX graph; the message ends with ``advice``.
    """
    try:
        return onnx.load(path, load_external_data=values)
    except Exception as error:  # protobuf does not export DecodeError under a stable name
        if type(error).__name__ != "DecodeError":
            raise
        raise BundleError(f"{path}: is not an ONNX graph ({error}). {advice}") from error


@dataclass
class FloatGraph:
    """An ONNX graph with separate weights: structure in ``model``, arrays in ``tensors``.

    Copies share the arrays, which are never modified: an edit replaces an array.
    """

    model: onnx.ModelProto
    tensors: dict[str, Array]

    def __post_init__(self) -> None:
        self._producers, self._consumers = connections(self.model.graph.node)

    @classmethod
    def load(cls, path: Path) -> FloatGraph:
        """Read a graph and its weights.

        Raises:
            BundleError: the file is not an ONNX graph.
        """
        return cls.of(read_model(path, "Export the bundle again."))

    @classmethod
    def of(cls, model: onnx.ModelProto) -> FloatGraph:
        """Move the weights out of a model. This modifies the model."""
        tensors = {proto.name: numpy_helper.to_array(proto) for proto in model.graph.initializer}
        del model.graph.initializer[:]
        return cls(model, tensors)

    def whole(self) -> onnx.ModelProto:
        """Return a model that includes its weights, for tools that need one."""
        model = deepcopy(self.model)
        for name, array in self.tensors.items():
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        return model

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes in topological order."""
        return list(self.model.graph.node)

    def producer(self, value: str) -> onnx.NodeProto | None:
        """Return the node that produces a value; None for inputs and weights."""
        return self._producers.get(value)

    def consumers(self, value: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a value."""
        return self._consumers.get(value, [])

    def with_nodes(self, nodes: Iterable[onnx.NodeProto], tensors: dict[str, Array]) -> FloatGraph:
        """Replace the nodes of a graph; tensors that no node reads are dropped."""
        model = deepcopy(self.model)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        read = {value for node in model.graph.node for value in node.input}
        return FloatGraph(model, {name: tensors[name] for name in tensors if name in read})

    def write(
        self,
        path: Path,
        metadata: Mapping[str, str] | None = None,
        *,
        external_bytes: int = EXTERNAL_BYTES,
    ) -> list[Path]:
        """Check the structure and write the graph; its arrays are kept.

        Args:
            path: the `.onnx` file.
            metadata: strings to add to the model's properties.
            external_bytes: if all weights together are larger, they go to a data file next to the
                graph.

        Returns:
            The files written.
        """
        model = deepcopy(self.model)
        model.graph.name = path.stem
        if metadata:
            known = {entry.key: entry.value for entry in model.metadata_props}
            helper.set_model_props(model, {**known, **metadata})
        check_structure(model, self.tensors)
        return write_model(path, model, dict(self.tensors), external_bytes=external_bytes)
