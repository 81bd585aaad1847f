"""Peers on PyTorch: the unmerged reference as it is, under autocast, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from mwa_export.bench.contenders import Run
from mwa_export.bench.inputs import Batch
from mwa_export.inputs.preprocess import normalize
from mwa_export.model.reference import ReferenceModel
from mwa_export.spec import Embeddings, Tower

Encode = Callable[..., Tensor]


def eager(reference: ReferenceModel, tower: Tower) -> Run:
    """The reference in float32."""
    return _run(_encoder(reference, tower), tower)


def eager_bfloat16(reference: ReferenceModel, tower: Tower) -> Run:
    """The reference under PyTorch's own autocast to bfloat16."""
    return _run(_encoder(reference, tower), tower, autocast=True)


def compiled(reference: ReferenceModel, tower: Tower) -> Run:
    """The reference through torch.compile, which compiles at the first call of every shape."""
    torch.compiler.reset()
    return _run(torch.compile(_encoder(reference, tower), dynamic=False), tower)


def _encoder(reference: ReferenceModel, tower: Tower) -> Encode:
    return reference.encode_image if tower == "vision" else reference.encode_text


def _run(encode: Encode, tower: Tower, *, autocast: bool = False) -> Run:
    def run(batch: Batch) -> Embeddings:
        arrays = (normalize(batch[0]),) if tower == "vision" else batch
        context: Any = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
        with torch.inference_mode(), context:
            embeddings = encode(*(torch.from_numpy(array) for array in arrays))
        return cast(Embeddings, embeddings.float().numpy())

    return run
