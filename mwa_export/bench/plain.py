"""The plain ONNX export that users have without this project: the peer of the merged graphs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from mwa_export.model.reference import ReferenceModel
from mwa_export.spec import Tower


def plain_export(
    reference: ReferenceModel, tower: Tower, feed: Mapping[str, NDArray[Any]], path: Path
) -> Path:
    """Write one tower of the unmerged reference through torch.onnx.export.

    Args:
        reference: the model.
        tower: which half of it.
        feed: inputs by name, at least two rows: of one row the exporter makes a constant.
        path: the `.onnx` file; weights may go to a file beside it.

    Returns:
        ``path``. The batch is dynamic, all else is as in ``feed``.
    """

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reference = reference

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            if tower == "vision":
                return self.reference.encode_image(*inputs)
            return self.reference.encode_text(*inputs)

    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Plain(),
            tuple(torch.from_numpy(array) for array in feed.values()),
            str(path),
            input_names=list(feed),
            output_names=["plain_embedding"],
            dynamic_shapes={"inputs": tuple({0: batch} for _ in feed)},
            dynamo=True,
            external_data=False,  # above 2 GB it is external all the same
            verbose=False,
        )
    return path
