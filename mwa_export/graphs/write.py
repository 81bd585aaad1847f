"""Write an ONNX file as a stream, so that a large model is in memory only once, not three times.

An ONNX file is a protobuf message: fields in any order, each with a tag, a length and bytes.
Protobuf serializes the structure as usual; the weights are then written one by one.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

EXTERNAL_BYTES = 1_500_000_000  # larger weights go to a data file: protobuf is limited to 2 GB
_INLINE_BYTES = 1024  # smaller tensors (shapes, scalars) always stay in the graph
_ALIGNMENT = 4096  # lets runtimes memory-map each tensor of the data file separately

_MODEL_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_GRAPH_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_TENSOR_RAW_DATA = TensorProto.RAW_DATA_FIELD_NUMBER

Array = NDArray[Any]


def data_file_of(path: Path) -> Path:
    """Return the path of a graph's data file, which is next to it and may contain its weights."""
    return path.with_name(path.name + ".data")


def write_model(
    path: Path,
    model: onnx.ModelProto,
    initializers: dict[str, Array],
    *,
    external_bytes: int = EXTERNAL_BYTES,
) -> list[Path]:
    """Write a model and its weights. Returns the files written.

    Args:
        path: the `.onnx` file.
        model: a model without initializers. Its graph is removed to free memory.
        initializers: the weights by name; emptied to free memory.
        external_bytes: if all weights together are larger, they go to `NAME.data` next to the
            graph.
    """
    total = sum(array.nbytes for array in initializers.values())
    data_path = data_file_of(path) if total > external_bytes else None
    with data_path.open("wb") if data_path is not None else nullcontext() as data:
        parts: list[tuple[bytes, Array | None]] = []  # a TensorProto, and its raw data if inline
        for name in list(initializers):
            array = np.asarray(initializers.pop(name), order="C")  # ascontiguousarray makes 0-d 1-d
            external = data is not None and array.nbytes >= _INLINE_BYTES
            head = _tensor(name, array, data if external else None)
            parts.append((head, None if external else array))
    graph = model.graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    size = len(graph) + sum(_framed(_GRAPH_INITIALIZER, _size(part)) for part in parts)
    with path.open("wb") as file:
        file.write(model.SerializeToString(deterministic=True))
        _write_head(file, _MODEL_GRAPH, size)
        file.write(graph)
        for head, inline in parts:
            _write_head(file, _GRAPH_INITIALIZER, _size((head, inline)))
            file.write(head)
            if inline is not None:
                _write_head(file, _TENSOR_RAW_DATA, inline.nbytes)
                file.write(_bytes(inline))
    return [path] if data_path is None else [path, data_path]


def typed_value(name: str, array: Array) -> onnx.ValueInfoProto:
    """Describe an array's type and shape, without its values."""
    return helper.make_tensor_value_info(name, _dtype_of(array), array.shape)


def _tensor(name: str, array: Array, data: IO[bytes] | None) -> bytes:
    """Serialize a TensorProto without its values, which are written to ``data`` if given."""
    tensor = TensorProto(name=name, data_type=_dtype_of(array), dims=array.shape)
    if data is not None:
        data.write(b"\0" * (-data.tell() % _ALIGNMENT))
        tensor.data_location = TensorProto.EXTERNAL
        where = {"location": Path(data.name).name, "offset": data.tell(), "length": array.nbytes}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        data.write(_bytes(array))
    return bytes(tensor.SerializeToString(deterministic=True))


def _bytes(array: Array) -> memoryview:
    """Return the bytes of an array, viewed as integers: numpy exposes no bytes for bfloat16."""
    return array.view(f"u{array.itemsize}").data


def _size(part: tuple[bytes, Array | None]) -> int:
    head, inline = part
    return len(head) + (0 if inline is None else _framed(_TENSOR_RAW_DATA, inline.nbytes))


def _framed(field: int, size: int) -> int:
    """Return the total bytes of a field with ``size`` bytes of content, its tag and length."""
    return len(_varint(field << 3 | 2)) + len(_varint(size)) + size


def _write_head(file: IO[bytes], field: int, size: int) -> None:
    """Write the tag and length of a length-delimited field (wire type 2)."""
    file.write(_varint(field << 3 | 2) + _varint(size))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _dtype_of(array: Array) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))
