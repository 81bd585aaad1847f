"""Peers on PyTorch: the unmerged reference as it is, under autocast, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

from mwa_export.bench.contenders import Run
from mwa_export.bench.inputs import Batch
from mwa_export.bench.plain import ReferenceTower
from mwa_export.inputs.preprocess import normalize
from mwa_export.spec import Embeddings

if TYPE_CHECKING:
    from torch import Tensor

Encode = Callable[..., "Tensor"]


def eager(start: ReferenceTower) -> Run:
    """The reference in float32."""
    return _run(start, start.encode)


def eager_bfloat16(start: ReferenceTower) -> Run:
    """The reference under PyTorch's own autocast to bfloat16."""
    return _run(start, start.encode, autocast=True)


def compiled(start: ReferenceTower) -> Run:
    """The reference through torch.compile, which compiles at the first call of every shape."""
    import torch

    torch.compiler.reset()
    return _run(start, torch.compile(start.encode, dynamic=False))


def _run(start: ReferenceTower, encode: Encode, *, autocast: bool = False) -> Run:
    import torch

    def run(batch: Batch) -> Embeddings:
        arrays = (normalize(batch[0]),) if start.tower == "vision" else batch
        context: Any = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
        with torch.inference_mode(), context:
            embeddings = encode(*(torch.from_numpy(array) for array in arrays))
        return cast(Embeddings, embeddings.float().numpy())

    return run
