"""`compare` accepts embeddings in the forms of other programs, or explains what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mwa_export import CompareOptions, RecallError, compare
from mwa_export.spec import Embeddings

FEW = CompareOptions(resamples=100)


@pytest.fixture
def embeddings() -> Any:
    vectors = np.random.default_rng(0).normal(size=(20, 256))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def read_only(vectors: Embeddings) -> Any:
    copy = vectors.copy()
    copy.setflags(write=False)
    return copy


@pytest.mark.parametrize(
    "made",
    [
        lambda v: torch.tensor(v).bfloat16(),
        lambda v: torch.tensor(v).bfloat16().requires_grad_(),
        lambda v: torch.tensor(v).half(),
        lambda v: torch.tensor(v, requires_grad=True),
        lambda v: torch.tensor(v.T.copy()).T,
        lambda v: np.asfortranarray(v),
        lambda v: v.astype(">f8"),
        lambda v: np.repeat(v, 2, axis=0)[::2],
        read_only,
        lambda v: v.tolist(),
    ],
)
def test_any_floats_are_compared(made: Callable[[Embeddings], Any], embeddings: Embeddings) -> None:
    side = (made(embeddings), made(embeddings))
    found = compare((embeddings, embeddings), side, np.arange(20), options=FEW)
    assert found.direction("tr").recalls[0].candidate == 100


@pytest.mark.parametrize(
    "made",
    [
        lambda v: torch.empty(v.shape, device="meta"),
        lambda v: torch.tensor(v).to_sparse(),
        lambda v: [[0.6, 0.8], [1.0]],
        lambda v: torch.tensor(v).to(torch.complex64),
    ],
)
def test_what_is_no_array_is_one_error(
    made: Callable[[Embeddings], Any], embeddings: Embeddings
) -> None:
    with pytest.raises(RecallError, match="candidate image embeddings: "):
        compare((embeddings, embeddings), (made(embeddings), embeddings), np.arange(20))
