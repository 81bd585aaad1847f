"""The form for TensorRT computes the same function, without operations it cannot fuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from configs import CONFIGS
from typed_towers import embed, tower

from mwa_export.graphs.apart import without_concatenations
from mwa_export.graphs.edit import FloatGraph
from mwa_export.graphs.typed import to_float16
from mwa_export.towers.engine_form import engine_form, keys_and_values

KINDS = ("vision", "pixels", "text")


def operators(graph: FloatGraph, part: str) -> list[str]:
    return [node.op_type for node in graph.nodes if part in node.name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_same_embeddings_for_every_model(name: str, kind: str, tmp_path: Path) -> None:
    model = tower(name, kind)
    exact = embed(model, kind, tmp_path)
    formed = engine_form(FloatGraph.of(tower(name, kind))).whole()
    onnx.checker.check_model(formed, full_check=True)
    assert np.allclose(embed(formed, kind, tmp_path), exact, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_in_a_tower_that_was_not_merged(kind: str) -> None:
    graph = FloatGraph.of(tower("mwa", kind, merged=False))
    assert keys_and_values(graph) is graph
    same = without_concatenations(graph)
    assert [n.name for n in same.nodes] == [n.name for n in graph.nodes]


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_not_concatenated_and_the_last_query_meets_keys(kind: str) -> None:
    before = FloatGraph.of(tower("mwa", kind))
    after = engine_form(before)
    assert operators(before, "fc2_up.Concat") == ["Concat"] * 2
    assert not operators(after, "fc2_up.Concat")
    assert not any(name.endswith(("key_heads", "value_heads")) for name in after.tensors)
    last = f"blocks.{CONFIGS['mwa'].backbone.layers - 1}"
    width = CONFIGS["mwa"].backbone.embed_dim
    assert after.tensors[f"{last}.k.weight"].shape == (width, width)
    # Heads of 64, as in every other block: that is what fused attention is made for.
    first, single = (after.tensors[n.input[1]].tolist() for n in reshapes(after, last))
    assert first == single == [0, 0, width // 64, 64]


def reshapes(graph: FloatGraph, last: str) -> list[onnx.NodeProto]:
    """The reshapes of the queries of the first block and the last."""
    names = ("blocks.0.attn.Reshape", f"{last}.attn.q.Reshape")
    return [node for name in names for node in graph.nodes if node.name == name]


@pytest.mark.parametrize("kind", KINDS)
def test_the_form_can_be_typed_down(kind: str, tmp_path: Path) -> None:
    graph = engine_form(FloatGraph.of(tower("norm_in_learned", kind)))
    typed = to_float16(graph.whole(), opset=19).model
    exact = embed(tower("norm_in_learned", kind), kind, tmp_path)
    found = embed(typed, kind, tmp_path)
    assert float((found * exact).sum(-1).min()) > 0.9999


def test_terms_of_a_product_that_is_too_large_stay_in_float32_with_it() -> None:
    """Nobody measures them: the graph that is measured has one product."""
    graph = engine_form(FloatGraph.of(tower("mwa", "text")))
    kept = to_float16(graph.whole(), opset=19, ranges={"blocks.0.fc2_up.MatMul": 1e6}).kept
    assert {"blocks.0.fc2_up.0.MatMul", "blocks.0.fc2_up.1.MatMul"} <= set(kept)
    assert "blocks.1.fc2_up.0.MatMul" not in kept
