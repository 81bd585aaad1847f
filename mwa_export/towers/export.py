"""Write a tower as an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mwa_export.graphs.build import GraphBuilder
from mwa_export.graphs.write import EXTERNAL_BYTES
from mwa_export.towers.forward import TowerPlan, run
from mwa_export.towers.onnx_ops import OnnxOps

if TYPE_CHECKING:
    from torch import Tensor


def onnx_from_tower(
    plan: TowerPlan,
    tensors: dict[str, Tensor],
    out: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    external_bytes: int = EXTERNAL_BYTES,
) -> list[Path]:
    """Write a tower as float32 ONNX (opset 17), with inputs and output as in ``plan.spec``.

    Args:
        plan: structure of the tower.
        tensors: its tensors; emptied to free memory.
        out: path of the `.onnx` file.
        metadata: strings to store in the model's properties.
        external_bytes: if all weights together are larger, they go to a data file next to the
            graph.

    Returns:
        The files written.
    """
    arrays = {}
    for name in list(tensors):
        arrays[name] = tensors.pop(name).numpy().astype(np.float32, copy=False)
    graph = GraphBuilder()
    spec = plan.spec
    result = run(OnnxOps(graph, plan, arrays), plan, [port.name for port in spec.inputs])
    assert not arrays, f"tensors that no node reads: {sorted(arrays)}"
    return graph.write(
        out, spec.inputs, spec.output, result, metadata or {}, external_bytes=external_bytes
    )
