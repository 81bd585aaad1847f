"""Multiply-accumulates agree by hand, by formula, and in the written graph."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
from configs import CONFIGS

from mwa_export.bench.section import merged_plan, unmerged_plan
from mwa_export.bundle.manifest import Export, Manifest
from mwa_export.model.synthetic import beit3_config, random_tensors
from mwa_export.spec import AdapterConfig, ModelConfig, Tower
from mwa_export.towers.export import onnx_from_tower
from mwa_export.towers.extract import tower_from_model
from mwa_export.towers.macs import count_macs
from mwa_export.towers.merge import merge_tower
from mwa_export.towers.steps import STEPS


def manifest(config: ModelConfig, merges: tuple[str, ...] = tuple(STEPS)) -> Manifest:
    return Manifest("id", config, {}, (), None, Export("0", (), (), merges, {}))


def macs_of_graph(path: Path, sizes: dict[str, int]) -> int:
    """Counted in the file itself, after shape inference with these sizes."""
    model = onnx.load(path)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True, strict_mode=True)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    total = 0
    for node in inferred.graph.node:
        assert node.op_type not in ("Gemm", "Einsum")
        out = shapes[node.output[0]]
        if node.op_type == "MatMul":
            assert 0 not in out
            total += math.prod(out) * shapes[node.input[0]][-1]
        elif node.op_type == "Conv":
            total += math.prod(out) * math.prod(shapes[node.input[1]][1:])
    return total


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_count_is_what_the_written_graph_multiplies(
    config: ModelConfig, tower: Tower, merged: bool, tmp_path: Path
) -> None:
    steps = tuple(STEPS) if merged else ()
    plan, tensors = tower_from_model(config, random_tensors(config), tower)
    path = tmp_path / "graph.onnx"
    onnx_from_tower(*merge_tower(plan, tensors, steps), path)
    plan = merged_plan(manifest(config), tower) if merged else unmerged_plan(config, tower)
    found = count_macs(plan, 3, 11 if tower == "text" else None)
    assert found == macs_of_graph(path, {"batch": 3, "length": 11})


def test_small_model_by_hand() -> None:
    # 17 tokens of width 128, 2 layers, FFN 256, one head of 64 per 64.
    tokens, width, hidden = 17, 128, 256
    layer = 4 * tokens * width * width + 2 * tokens * tokens * width + 2 * tokens * width * hidden
    patches = 16 * width * 3 * 8 * 8
    head = width * width
    assert count_macs(unmerged_plan(CONFIGS["plain"], "vision"), 1) == 2 * layer + patches + head


def test_base_by_formula() -> None:
    adapter = AdapterConfig("both", 64, "in", 0.6, "parallel")
    plan = unmerged_plan(beit3_config("base", adapter=adapter), "vision")
    t, d, f, r = 197, 768, 3072, 64
    block = t * (4 * d * d + 2 * d * f + 2 * d * r) + 2 * t * t * d
    assert count_macs(plan, 8) == 8 * (12 * block + 196 * d * 3 * 16 * 16 + d * d)


def test_merging_saves_all_but_one_token_of_the_last_block() -> None:
    plain = CONFIGS["plain"]
    full = count_macs(unmerged_plan(plain, "vision"), 1)
    merged = count_macs(merged_plan(manifest(plain), "vision"), 1)
    tokens, width, hidden, heads = 17, 128, 256, 2
    saved = (tokens - 1) * (2 * width * width + 2 * width * hidden)  # q and out, and the FFN
    saved += 2 * tokens * width * width + 2 * tokens * tokens * width  # keys, values, attention
    spent = 2 * width * width + 2 * heads * tokens * width  # of one query, head by head
    assert full - merged == saved - spent


def test_count_is_linear_in_the_batch_and_grows_with_the_text() -> None:
    plan = merged_plan(manifest(CONFIGS["mwa"]), "text")
    assert count_macs(plan, 5, 20) == 5 * count_macs(plan, 1, 20)
    assert count_macs(plan, 1, 40) > 2 * (count_macs(plan, 1, 20) - count_macs(plan, 1, 1))


def test_merge_steps_come_from_the_manifest() -> None:
    kept = tuple(step for step in STEPS if step != "last-token")
    plain = CONFIGS["plain"]
    without = count_macs(merged_plan(manifest(plain, kept), "vision"), 1)
    assert without == count_macs(unmerged_plan(plain, "vision"), 1)


def test_adapters_that_are_never_applied_are_not_counted() -> None:
    sequential, plain = CONFIGS["sequential"], CONFIGS["plain"]
    assert count_macs(unmerged_plan(sequential, "text"), 1, 9) == count_macs(
        unmerged_plan(plain, "text"), 1, 9
    )
