"""The comparison with correct embeddings detects every trap of the model, undone on purpose.

A mutant that passes means that the tests would miss this mistake in our code, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import ALL, Case
from exported import difference

from mwa_export import spec
from mwa_export.export.verify import TOLERANCE
from mwa_export.model.load import Model
from mwa_export.towers import extract, merge, onnx_ops
from mwa_export.towers.onnx_ops import OnnxOps

Patch = pytest.MonkeyPatch


def swap_adapters(patch: Patch, case: Case) -> Case:
    patch.setattr(
        extract, "ADAPTER_OF_TOWER", {"vision": "adaptmlp_vision", "text": "adaptmlp_text"}
    )
    return case


def drop_enhancer(patch: Patch, case: Case) -> Case:
    return _with(case, enhancer=False)


def drop_adapters(patch: Patch, case: Case) -> Case:
    return _with(case, adapter=None)


def ignore_scale(patch: Patch, case: Case) -> Case:
    assert case.model.config.adapter is not None
    adapter = replace(case.model.config.adapter, scale=1.0)
    tensors = {n: t for n, t in case.model.tensors.items() if not n.endswith(".scale")}
    return _with(case, tensors=tensors, adapter=adapter)


def shift(tower: str) -> Callable[[Patch, Case], Case]:
    def mutate(patch: Patch, case: Case) -> Case:
        branch = "A" if tower == "vision" else "B"
        name = f"beit3.encoder.embed_positions.{branch}.weight"
        return _with(
            case, tensors={**case.model.tensors, name: case.model.tensors[name].roll(2, 0)}
        )

    return mutate


def skip_norm(suffix: str) -> Callable[[Patch, Case], Case]:
    def mutate(patch: Patch, case: Case) -> Case:
        norm = OnnxOps.norm

        def without(self: OnnxOps, x: str, tensor: str) -> str:
            normalized = norm(self, x, tensor)
            return x if tensor.endswith(suffix) else normalized

        patch.setattr(OnnxOps, "norm", without)
        return case

    return mutate


def other_eps(patch: Patch, case: Case) -> Case:
    patch.setattr(onnx_ops, "LAYERNORM_EPS", 1e-2)
    return case


def tanh_gelu(patch: Patch, case: Case) -> Case:
    def gelu(self: OnnxOps, x: str, name: str) -> str:
        node, number = self._graph.node, self._float
        cubed = node(
            "Mul", [node("Mul", [node("Mul", [x, x], name), x], name), number(0.044715)], name
        )
        inner = node("Mul", [node("Add", [x, cubed], name), number(0.7978845608)], name)
        gate = node("Add", [node("Tanh", [inner], name), number(1.0)], name)
        return node("Mul", [node("Mul", [x, gate], name), number(0.5)], name)

    patch.setattr(OnnxOps, "gelu", gelu)
    return case


def swap_branches(patch: Patch, case: Case) -> Case:
    swapped = {
        name.replace(".A.", ".#.").replace(".B.", ".A.").replace(".#.", ".B."): tensor
        for name, tensor in case.model.tensors.items()
        if "embed_positions" not in name
    }
    return _with(case, tensors={**case.model.tensors, **swapped})


def swap_heads(patch: Patch, case: Case) -> Case:
    patch.setattr(extract, "HEAD_OF_TOWER", {"vision": "language_head", "text": "vision_head"})
    return case


def unmask_padding(patch: Patch, case: Case) -> Case:
    patch.setattr(onnx_ops, "MASKED", 0.0)
    return case


def adapter_reads_normalized_stream(patch: Patch, case: Case) -> Case:
    linear = OnnxOps.linear

    def other(self: OnnxOps, x: str, tensor: str) -> str:
        if tensor.endswith("adapter.down"):
            x = self._graph.node(
                "LayerNormalization",
                [x, self._graph.constant([1.0] * self._width, np.float32, "g")],
                "m",
            )
        return linear(self, x, tensor)

    patch.setattr(OnnxOps, "linear", other)
    return case


def second_token(patch: Patch, case: Case) -> Case:
    def first(self: OnnxOps, x: str, name: str) -> str:
        return self._graph.node(
            "Slice", [x, self._ints([1]), self._ints([2]), self._ints([1])], name
        )

    patch.setattr(OnnxOps, "first_token", first)
    return case


def no_unit_length(patch: Patch, case: Case) -> Case:
    patch.setattr(
        OnnxOps, "unit", lambda self, x: self._graph.node("Squeeze", [x, self._ints([1])], "u")
    )
    return case


def no_attention_scale(patch: Patch, case: Case) -> Case:
    patch.setattr(merge, "fold_attention_scale", lambda weight, bias, _: (weight, bias))
    return case


def apply_sequential(patch: Patch, case: Case) -> Case:
    assert case.model.config.adapter is not None
    return _with(case, adapter=replace(case.model.config.adapter, option="parallel"))


def _with(case: Case, *, tensors: Any = None, **changes: Any) -> Case:
    model = Model(
        replace(case.model.config, **changes), tensors or case.model.tensors, case.model.files, ()
    )
    return replace(case, model=model)


EVERYWHERE = ("own-plain", "golden-beit3_plain")
ADAPTED = ("own-mwa", "golden-mwa_both_enhance")
MUTANTS: dict[str, tuple[Callable[[Patch, Case], Case], tuple[str, ...]]] = {
    "swap the adapter names": (swap_adapters, (*ADAPTED, "golden-mwa_raw_state_dict")),
    "drop the adapters": (
        drop_adapters,
        (
            *ADAPTED,
            "own-text_mode",
            "own-vision_mode",
            "golden-mwa_text_mode",
            "golden-mwa_vision_mode",
            "golden-mwa_ln_out",
        ),
    ),
    "drop the enhancer": (drop_enhancer, (*ADAPTED, "own-vision_mode")),
    "enhancer without its LayerNorm": (skip_norm("enhancer.mid_norm"), ADAPTED),
    "ignore the scale": (ignore_scale, (*ADAPTED, "own-norm_out", "golden-mwa_raw_state_dict")),
    "ignore the learned scale": (
        ignore_scale,
        ("own-norm_in_learned", "golden-mwa_both_ln_in_learnable"),
    ),
    "apply adapters that the reference skips": (
        apply_sequential,
        ("own-sequential", "golden-mwa_sequential"),
    ),
    "adapter reads the normalized stream": (adapter_reads_normalized_stream, ADAPTED),
    "adapter without LayerNorm out": (
        skip_norm("adapter.norm"),
        ("own-norm_out", "golden-mwa_ln_out"),
    ),
    "vision positions off by two": (shift("vision"), EVERYWHERE),
    "text positions off by two": (shift("text"), EVERYWHERE),
    "no LayerNorm before out_proj": (skip_norm("inner_norm"), EVERYWHERE),
    "no LayerNorm before fc2": (skip_norm(".mid_norm"), EVERYWHERE),
    "another LayerNorm eps": (other_eps, EVERYWHERE),
    "approximate GELU": (tanh_gelu, EVERYWHERE),
    "branches swapped": (swap_branches, EVERYWHERE),
    "heads swapped": (swap_heads, EVERYWHERE),
    "padding not masked": (unmask_padding, EVERYWHERE),
    "not token 0": (second_token, EVERYWHERE),
    "no unit length": (no_unit_length, EVERYWHERE),
    "no attention scale": (no_attention_scale, EVERYWHERE),
}
_PAIRS = [(mutant, name) for mutant, (_, names) in MUTANTS.items() for name in names]


@pytest.mark.slow
@pytest.mark.parametrize(("mutant", "name"), _PAIRS)
def test_mutant_is_noticed(mutant: str, name: str, monkeypatch: Patch, tmp_path: Path) -> None:
    case = MUTANTS[mutant][0](monkeypatch, ALL[name]())
    assert difference(case, tmp_path) > TOLERANCE


def test_every_case_is_used_against_some_mutant() -> None:
    assert {name for _, name in _PAIRS} == {n for n in ALL if not n.startswith("shared-")}


def test_the_swap_is_written_down_once() -> None:
    assert spec.ADAPTER_OF_TOWER == {"vision": "adaptmlp_text", "text": "adaptmlp_vision"}
