"""Peers on PyTorch: the unmerged reference as it is, under autocast, or compiled."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

from mwa_export.bench.contenders import Run
from mwa_export.bench.inputs import Batch
from mwa_export.bench.plain import ReferenceTower
from mwa_export.spec import Embeddings


def on_pytorch(start: ReferenceTower, *, autocast: bool = False, compiled: bool = False) -> Run:
    """Run the reference: in float32, under autocast to bfloat16, or compiled for each new shape."""
    import torch

    encode: Any = start.encode
    if compiled:
        torch.compiler.reset()
        encode = torch.compile(encode, dynamic=False)

    def run(batch: Batch) -> Embeddings:
        context: Any = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
        with torch.inference_mode(), context:
            embeddings = encode(*map(torch.from_numpy, start.feed(batch).values()))
        return cast(Embeddings, embeddings.float().numpy())

    return run
