"""Invalid engine options are refused by name before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trt_fake import FakeTensorRT

from mwa_export.engines.graphs import EngineGraph
from mwa_export.engines.options import EngineOptions
from mwa_export.errors import UsageError
from mwa_export.trt.build import BuildOptions
from mwa_export.trt.layers import Inspection, Layer, Port
from mwa_export.trt.versions import TensorRt, TensorRt8

ADA = ((8, 9),)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"precision": "float16", "float8_attention": True}, "float8_attention"),
        ({"capabilities": ((8, 9),), "build": BuildOptions(refit=True)}, "refit"),
        (
            {"capabilities": ((8, 9),), "build": BuildOptions(timing_cache=Path("t"))},
            "timing_cache",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=rf"^`{named}`: "):
        EngineOptions(**options)


def test_cards_are_each_named_once_and_in_order() -> None:
    options = EngineOptions(capabilities=((12, 0), (8, 6), (12, 0)))
    assert options.capabilities == ((8, 6), (12, 0))
    wrong: Any = ("86", "120")
    with pytest.raises(UsageError, match=r"`capabilities=.*pairs of numbers"):
        EngineOptions(capabilities=wrong)


def test_what_a_gpu_lacks_is_named_by_the_option_that_asks_for_it() -> None:
    options, ampere = EngineOptions("int8", float8_attention=True), (8, 6)
    with pytest.raises(UsageError, match=r"^`float8_attention`: .*8\.6.*8\.9.*Omit"):
        options.check_gpu(TensorRt(FakeTensorRT(11)), ampere, "NVIDIA A10")
    with pytest.raises(UsageError, match=r"^`float8_attention`: TensorRT 8"):
        options.check_gpu(TensorRt8(FakeTensorRT(8)), (8, 9), "NVIDIA L4")
    with pytest.raises(UsageError, match=r"^`engine_precision=float8`: "):
        EngineOptions("float8").check_gpu(TensorRt(FakeTensorRT(11)), ampere, "NVIDIA A10")
    EngineOptions("int8").check_gpu(TensorRt(FakeTensorRT(11)), ampere, "NVIDIA A10")


def test_a_quantized_product_that_computes_in_16_bits_is_told() -> None:
    graph = EngineGraph(Path("vision.int8.onnx"), (), (), 1.0, products=("a.MatMul", "b.MatMul"))

    def gemm(node: str, weights: str) -> Layer:
        rows, matrix = Port("int8", (-1, 8)), Port(weights, (8, 8))
        return Layer(node, "gemm", (rows,), (matrix,), (), "", (node,))

    built = Inspection((gemm("a.MatMul", "int8"), gemm("b.MatMul", "float16")))
    (doubt,) = graph.doubts(built, "int8")
    assert "1 quantized GEMMs do not compute in 8 bits: b.MatMul" in doubt
    assert graph.doubts(Inspection(built.layers[:1]), "int8") == ()
