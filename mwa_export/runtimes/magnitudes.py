"""Measure the value ranges inside a float32 graph."""

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
"""Inputs of a tower: (pixels,) uint8, or (token_ids, padding_mask) int64."""
_GROUP = 48  # values that are kept in memory at a time


def largest_magnitudes(
    file: GraphFile, batches: Iterable[Inputs], progress: Progress
) -> dict[str, float]:
    """Measure the largest magnitude of each float value in a graph, NaN or infinity included.

    Texts are run without padding. Padded scores have 30000 subtracted by design, which fits float16
    together with any score that fits on its own, so they say nothing about the model.

    ``batches``: inputs of the tower, (pixels,) uint8 or (token_ids, padding_mask) int64.

    Returns:
        Name of each value -> its largest magnitude over all batches.
    """
    path, graph = file
    tower = graph.spec.tower
    feeds = [
        feed_of(graph.spec, inputs)
        for batch in batches
        for inputs in (_without_padding(*batch) if tower == "text" else (batch,))
    ]
    names = _float_values(read_model(path, "Export the bundle again.", values=False).graph)
    progress(f"{tower} tower: measure value ranges", len(names))
    found = dict.fromkeys(names, 0.0)
    for start in range(0, len(names), _GROUP):
        group = names[start : start + _GROUP]
        runner = session_with_outputs(path, [n for n in group if n != graph.spec.output.name])
        for feed in feeds:
            for name, values in zip(group, runner.run(group, feed), strict=True):
                # Unlike max, np.maximum keeps NaN.
                found[name] = float(np.maximum(found[name], np.abs(values).max(initial=0)))
        progress.advance(len(group))
    return found


def _float_values(graph: onnx.GraphProto) -> list[str]:
    """Names of the float32 values that nodes compute, in graph order."""
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
    """Yield the rows of a text batch without padding, grouped by length."""
    lengths = (mask == 0).sum(axis=1)
    for length in np.unique(lengths):
        rows = lengths == length
        yield ids[rows, :length], mask[rows, :length]
