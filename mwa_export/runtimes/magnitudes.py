"""Measure how large the values inside a float32 graph become."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from mwa_export.bundle.manifest import GraphFile
from mwa_export.graphs.edit import read_model
from mwa_export.graphs.float32_nodes import gives_floats
from mwa_export.inputs.preprocess import feed_of
from mwa_export.progress import Progress
from mwa_export.runtimes.ort_session import session_with_outputs

Inputs = tuple[NDArray[Any], ...]
"""Inputs of a tower: (pixels,) uint8, or (token_ids, padding_mask)."""
_GROUP = 48  # values that are kept in memory at a time


def largest_magnitudes(
    file: GraphFile, batches: Iterable[Inputs], progress: Progress
) -> dict[str, float]:
    """The largest magnitude of each float value that a node makes; NaN or infinity if one occurred.

    Texts are run without their padding. A padded score has 30000 subtracted by design, which fits
    float16 with any score that fits on its own, so it says nothing about the model.

    ``batches``: inputs of the tower: (pixels,) uint8, or (token_ids, padding_mask).
    """
    path, graph = file
    tower = graph.spec.tower
    feeds = [
        feed_of(graph.spec, inputs)
        for batch in batches
        for inputs in (_without_padding(*batch) if tower == "text" else (batch,))
    ]
    names = _float_values(read_model(path, "Export the bundle again.", values=False).graph)
    progress(f"{tower} tower: measure how large values become", len(names))
    found = dict.fromkeys(names, 0.0)
    for start in range(0, len(names), _GROUP):
        group = names[start : start + _GROUP]
        runner = session_with_outputs(path, [n for n in group if n != graph.spec.output.name])
        for feed in feeds:
            for name, values in zip(group, runner.run(group, feed), strict=True):
                # np.maximum, unlike max, keeps NaN.
                found[name] = float(np.maximum(found[name], np.abs(values).max(initial=0)))
        progress.advance(len(group))
    return found


def _float_values(graph: onnx.GraphProto) -> list[str]:
    """Names of the float32 values that nodes compute, in the order of the graph."""
    kinds = {port.name: port.type.tensor_type.elem_type for port in graph.input}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    floats = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT}
    made: list[str] = []
    for node in graph.node:
        if gives_floats(node, floats):
            floats.update(node.output)
            made += node.output
    return made


def _without_padding(ids: NDArray[Any], mask: NDArray[Any]) -> Iterator[Inputs]:
    """The rows of a batch of texts without padding, grouped by length."""
    lengths = (mask == 0).sum(axis=1)
    for length in np.unique(lengths):
        rows = lengths == length
        yield ids[rows, :length], mask[rows, :length]
