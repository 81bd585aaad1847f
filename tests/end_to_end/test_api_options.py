"""The library refuses the same options as the command line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from mwa_export import (
    CompareOptions,
    EngineOptions,
    Gates,
    ModelOptions,
    OptionsError,
    QuantizeOptions,
    RuntimeOptions,
)
from mwa_export.bench.run import BenchOptions
from mwa_export.embed.ray_engine import RayOptions
from mwa_export.embed.run import Execution


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (RuntimeOptions, {"threads": 20_000}),
        (BenchOptions, {"threads": 20_000}),
        (BenchOptions, {"runtimes": ("tensorflow",)}),
        (BenchOptions, {"lengths": "-3"}),
        (QuantizeOptions, {"threads": 0}),
        (QuantizeOptions, {"seed": -3}),
        (QuantizeOptions, {"samples": 0}),
        (QuantizeOptions, {"max_recall_drop": math.nan}),
        (QuantizeOptions, {"points": -1}),
        (Execution, {"workers": 20_000}),
        (Gates, {"max_recall_drop": math.nan}),
        (Gates, {"min_cosine": math.nan}),
        (CompareOptions, {"seed": -3}),
        (CompareOptions, {"confidence": math.nan}),
        (EngineOptions, {"seed": -3}),
        (EngineOptions, {"samples": 0}),
        (ModelOptions, {"adapter_scale": math.inf}),
        (ModelOptions, {"image_size": 10**6}),
        (ModelOptions, {"max_length": -1}),
        (RayOptions, {"gpus": math.nan}),
    ],
)
def test_a_value_that_cannot_be_is_refused_when_it_is_given(
    make: Callable[..., Any], values: dict[str, Any]
) -> None:
    with pytest.raises(OptionsError, match=next(iter(values)).rstrip("s")):
        make(**values)
