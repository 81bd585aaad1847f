"""The counts of `benchmarks/trt_kernels.py`, and its lower bound."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trt_kernels import Block, Kernel, ideal_block, ideal_last_block, kernels_of, table, traffic

from mwa_export.trt.layers import Layer, Port


def layer(*nodes: str, kind: str = "kgen", inputs: int = 1) -> Layer:
    """A kernel that reads some matrices of 10 x 4 and writes one in 8 bits."""
    matrix, weights = Port("float16", (10, 4)), Port("float16", (4, 4))
    read = (*(matrix for _ in range(inputs)), Port(None, (3,)))  # an index
    return Layer("__myl_Add_myl0_7", kind, read, (weights,), (Port("int8", (10, 4)),), "", nodes)


def test_activations_are_counted_and_weights_and_indices_are_not() -> None:
    (kernel,) = kernels_of([layer("blocks.1.norm", inputs=2)], 1, tokens=10)
    assert kernel == Kernel("Add", 2 * 4 * 2, 4)


def test_a_kernel_for_two_blocks_belongs_to_the_later_one() -> None:
    layers = [layer("blocks.0.fc2.MatMul", "blocks.1.attn_norm"), layer("image.Cast")]
    assert [len(kernels_of(layers, block, 10)) for block in (0, 1, 2)] == [0, 1, 0]


def test_a_gemm_is_called_after_its_product() -> None:
    (kernel,) = kernels_of([layer("blocks.1.k.MatMul", "blocks.1.k.Add", kind="gemm")], 1, 10)
    assert kernel.name == "blocks.1.k.MatMul"


def test_ideal_block_of_16_bits_moves_36_widths_and_the_adapter() -> None:
    moved = traffic(ideal_block(768, 3072, 64, False, 2))
    assert moved == 2 * (36 * 768 + 4 * 64)
    assert traffic(ideal_block(768, 3072, 64, True, 2)) == moved + 2 * (1 + 4 + 8 + 4 + 1 + 1) * 768


def test_only_what_is_multiplied_in_8_bits_has_one_byte() -> None:
    wide, narrow = (ideal_block(100, 400, 0, False, q) for q in (2, 1))
    # norm, GEMM; inner norm, GEMM; norm, GEMM; GELU, GEMM
    assert traffic(wide) - traffic(narrow) == 6 * 100 + 2 * 400
    more = ideal_block(100, 400, 0, True, 1)
    assert more[8].written == narrow[8].written + 100, "the stream, and the enhancer's input"


def test_of_the_last_block_only_keys_and_values_are_of_every_token() -> None:
    sizes = (100, 400, 16, True)
    many = traffic(ideal_last_block(*sizes, tokens=10**9))
    assert many == pytest.approx(2 * 100 * 7)
    one = traffic(ideal_last_block(*sizes, tokens=1))
    whole = traffic(ideal_block(*sizes, 2))
    assert one == whole + 2 * 100, "q reads the norm once more"


def test_table_shows_both_forms_and_the_ratio_to_the_bound() -> None:
    old = Block("m", "int8", "middle", "before", 100, (Kernel("a", 100, 50), Kernel("b", 50, 50)))
    new = replace(old, form="after", kernels=old.kernels[:1])
    (row,) = table([old, new]).splitlines()[2:]
    assert "| 2 → 1 |" in row
    assert row.endswith("| 2.50 → 1.50 |")
