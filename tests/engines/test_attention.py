"""Float8 attention quantizes all four factors of a block from measured ranges, nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from calib_files import cosine, embed, float_graph
from typed_towers import value_types

from mwa_export.calib.weights import float8_scale
from mwa_export.engines.attention import float8_attention
from mwa_export.graphs.edit import FloatGraph
from mwa_export.graphs.typed import to_float16
from mwa_export.spec import Tower
from mwa_export.towers.engine_form import engine_form

RANGES = dict.fromkeys(
    ("blocks.0.attn.Transpose", "blocks.0.attn.Transpose.2", "blocks.0.attn.Transpose.3"), 3.0
)


def typed(tower: Tower, folder: Path) -> FloatGraph:
    graph = engine_form(float_graph("mwa", tower, folder))
    return FloatGraph.of(to_float16(graph.whole(), opset=19).model)


def test_both_products_of_a_block_read_float8(tmp_path: Path) -> None:
    before = typed("vision", tmp_path)
    after, blocks = float8_attention(before, RANGES)
    assert blocks == 1, "the single query of the last block has no measured keys"
    kinds = value_types(after.whole())
    products = [
        n for n in after.nodes if n.name.startswith("blocks.0.attn.") and "MatMul" in n.name
    ]
    assert len(products) == 2
    for product in products:
        for value in product.input:
            pair = after.producer(value)
            assert pair is not None
            assert pair.op_type == "DequantizeLinear"
            assert kinds[pair.input[0]] == onnx.TensorProto.FLOAT8E4M3FN
    quantized = [n.name for n in after.nodes if n.op_type == "QuantizeLinear"]
    assert len(quantized) == 4
    others = {n.name: n for n in before.nodes if n.name not in {p.name for p in products}}
    assert all(n == others[n.name] for n in after.nodes if n.name in others)


def test_scales_leave_room_for_twice_what_was_measured(tmp_path: Path) -> None:
    after, _blocks = float8_attention(typed("vision", tmp_path), RANGES)
    assert after.tensors["blocks.0.attn.Transpose.scale"] == np.float16(float8_scale(6.0))
    assert after.tensors["blocks.0.attn.Softmax.scale"] == np.float16(float8_scale(1.0))


def test_it_computes_nearly_the_same(tmp_path: Path) -> None:
    before = typed("vision", tmp_path)
    after, _blocks = float8_attention(before, RANGES)
    same = cosine(embed(before, "vision", tmp_path), embed(after, "vision", tmp_path))
    assert 0.99 < same < 0.9999999


def test_a_block_without_ranges_is_left_as_it_is(tmp_path: Path) -> None:
    unchanged(typed("vision", tmp_path), {"blocks.0.attn.Transpose": 3.0})


def test_attention_with_a_mask_is_left_as_it_is(tmp_path: Path) -> None:
    unchanged(typed("text", tmp_path), RANGES)


def unchanged(before: FloatGraph, ranges: dict[str, float]) -> None:
    after, blocks = float8_attention(before, ranges)
    assert blocks == 0
    assert [n.name for n in after.nodes] == [n.name for n in before.nodes]
