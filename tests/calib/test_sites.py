"""Quantization sites of every kind of model, and the tensors that absorb scales there."""

from __future__ import annotations

from pathlib import Path

import pytest
from calib_files import float_graph
from configs import CONFIGS

from mwa_export.calib.sites import NormFold, ReluFold, find_sites
from mwa_export.spec import Tower


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_every_block_gemm_over_all_tokens_is_in_exactly_one_site(
    name: str, tower: Tower, tmp_path: Path
) -> None:
    graph = float_graph(name, tower, tmp_path)
    sites = find_sites(graph)
    linears = [linear for site in sites for linear in site.linears]
    assert len(set(linears)) == len(linears)
    assert len({site.tensor for site in sites}) == len(sites)
    first = {
        node.input[1].removesuffix(".weight")
        for node in graph.nodes
        if node.op_type == "MatMul"
        and node.input[1].startswith("blocks.0.")
        and node.input[1] in graph.tensors
    }
    assert {linear for linear in linears if linear.startswith("blocks.0.")} == first
    for site in sites:
        shapes = [graph.tensors[f"{linear}.weight"].shape for linear in site.linears]
        assert {shape[0] for shape in shapes} == {site.width}
        assert site.macs == sum(rows * columns for rows, columns in shapes)
        assert sum(fold.width for fold in site.folds) in (0, site.width)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_attention_reads_a_norm_and_the_end_of_the_ffn_a_norm_beside_a_relu(
    tower: Tower, tmp_path: Path
) -> None:
    sites = {site.name: site for site in find_sites(float_graph("mwa", tower, tmp_path))}
    assert isinstance(sites["blocks.0.qkv"].folds[0], NormFold)
    kinds = [type(fold) for fold in sites["blocks.0.fc2_up"].folds]
    assert kinds == [NormFold, ReluFold]
    relu = sites["blocks.0.fc2_up"].folds[1]
    assert isinstance(relu, ReluFold)
    assert (relu.linear, relu.start, relu.width) == ("blocks.0.adapter.down", 0, 16)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_single_query_of_the_last_block_is_no_site(tower: Tower, tmp_path: Path) -> None:
    names = {site.name for site in find_sites(float_graph("plain", tower, tmp_path))}
    assert not any(name.startswith("blocks.1.fc") for name in names)
