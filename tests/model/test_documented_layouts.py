"""Every layout in the first table of docs/checkpoints.md can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from configs import MWA
from paths import ROOT
from safetensors.torch import save_file
from torch import Tensor

from mwa_export.model.synthetic import random_tensors, training_args
from mwa_export.spec import tower_of

Tensors = dict[str, Tensor]
ARGS = training_args(MWA)


def _saved(saved: object, name: str = "a.pth", **options: Any) -> Callable[[Path], list[object]]:
    def write(folder: Path) -> list[object]:
        torch.save(saved, folder / name, **options)
        return [folder / name]

    return write


def _hugging_face(folder: Path) -> list[object]:
    torch.save(TENSORS, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(vars(ARGS)))
    return [folder]


def _deepspeed(folder: Path) -> list[object]:
    (folder / "step-7").mkdir()
    file = folder / "step-7" / "mp_rank_00_model_states.pt"
    torch.save({"module": TENSORS, "args": ARGS}, file)
    return [folder]


def _safetensors(folder: Path) -> list[object]:
    save_file(TENSORS, folder / "weights.bin", {"args": json.dumps(vars(ARGS))})
    return [folder / "weights.bin"]


def _with(*options: object, write: Callable[[Path], list[object]]) -> Callable[..., list[object]]:
    return lambda folder: [*write(folder), *options]


TENSORS = random_tensors(MWA)
_CALLED = {f"model.{name}": tensor for name, tensor in TENSORS.items()}
_WRAPPED = {f"_orig_mod.module.{name}": tensor for name, tensor in TENSORS.items()}
WRITERS: dict[str, Callable[[Path], list[object]]] = {
    "training script": _saved({"model": TENSORS, "args": vars(ARGS), "epoch": 3}),
    "Lightning": _saved({"state_dict": _CALLED, "hyper_parameters": vars(ARGS)}),
    "moving average": _with(
        "--ema", write=_saved({"model": {}, "model_ema": {"module": TENSORS}, "args": ARGS})
    ),
    "any other entry": _with(
        "--model-key",
        "net",
        "--model-prefix",
        "x.",
        write=_saved({"net": {f"x.{n}": t for n, t in TENSORS.items()}, "args": ARGS}),
    ),
    "raw state dict": _with(
        "--ffn-option", "parallel", "--adapter-scale", "0.6", write=_saved(TENSORS)
    ),
    "wrappers": _saved({"model": _WRAPPED, "args": ARGS}),
    "torch.save": _saved(
        {"model": TENSORS, "args": ARGS},
        pickle_protocol=4,
        _use_new_zipfile_serialization=False,
    ),
    "safetensors": _safetensors,
    "Hugging Face": _hugging_face,
    "DeepSpeed": _deepspeed,
    "any precision": _saved({"model": {n: t.bfloat16() for n, t in TENSORS.items()}, "args": ARGS}),
    "one tower": _saved(
        {"model": {n: t for n, t in TENSORS.items() if tower_of(n) != "text"}, "args": ARGS}
    ),
}


def documented() -> list[str]:
    """The first column of the table."""
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    table = text[text.index("| layout |") :].split("\n\n")[0]
    return [
        found[1] for line in table.splitlines()[2:] if (found := re.match(r"\| (.*?) \|", line))
    ]


@pytest.mark.parametrize("layout", documented())
def test_documented_layout_is_read(layout: str, tmp_path: Path) -> None:
    outcome = run("inspect", *WRITERS[layout](tmp_path))
    assert outcome.status == 0, outcome.stderr
    assert "2 layers, width 128, 2 heads" in outcome.stdout


def test_every_writer_is_documented() -> None:
    assert documented() == list(WRITERS)
