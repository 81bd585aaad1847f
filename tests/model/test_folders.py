"""Folders with shards, DeepSpeed and Hugging Face files are read; ambiguous ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_layouts import Tensors, deepspeed_tag, shards
from configs import MWA

from mwa_export.errors import AdapterError, CheckpointError
from mwa_export.model.checkpoint import read_checkpoint
from mwa_export.model.synthetic import random_tensors


def _damaged_shards(folder: Path, change: Callable[[Path, dict[str, Any]], None]) -> Path:
    tensors = {f"beit3.{n}.weight": torch.ones(2) for n in range(6)}
    index = shards(folder, tensors) / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    change(folder, data)
    index.write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda folder, _: (folder / "model-00001-of-00003.safetensors").unlink(),
            "names model-00001-of-00003.safetensors, which is missing. Copy all 3 shards",
        ),
        (
            lambda _, data: data["weight_map"].update(x="../../x.safetensors"),
            "names the file '../../x.safetensors'. Expected names of files next to the index",
        ),
        (
            lambda _, data: data["weight_map"].update(x="model-00001-of-00003.safetensors"),
            "lacks x, which model.safetensors.index.json lists",
        ),
        (lambda _, data: data.clear(), "has no `weight_map`"),
    ],
)
def test_shards_that_are_not_whole_are_refused(
    change: Callable[[Path, dict[str, Any]], None], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read_checkpoint(_damaged_shards(tmp_path, change))


def _distributed(folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"x")
    (folder / "__0_0.distcp").write_bytes(b"x")


def _zero_3(folder: Path) -> None:
    (folder / "global_step7").mkdir()
    (folder / "latest").write_text("global_step7")
    (folder / "global_step7" / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"x")


def _peft(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def _two_tags(folder: Path) -> None:
    for tag in ("step1", "step2"):
        (folder / tag).mkdir()
        (folder / tag / "mp_rank_00_model_states.pt").write_bytes(b"x")


def _output_folder(folder: Path) -> None:
    (folder / "checkpoint-29.pth").write_bytes(b"x")


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (_distributed, "torch.distributed.checkpoint.format_utils dcp_to_torch"),
        (_zero_3, "python zero_to_fp32.py"),
        (_peft, "LoRA"),
        (_two_tags, r"2 DeepSpeed checkpoints, but no file `latest`.*step1, .*step2"),
        (_output_folder, "Pass a file in it: checkpoint-29.pth"),
    ],
)
def test_folder_that_cannot_be_read_says_what_it_is_and_what_to_do(
    write: Callable[[Path], None], complaint: str, tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises((CheckpointError, AdapterError), match=complaint):
        read_checkpoint(tmp_path)


def test_single_deepspeed_tag_needs_no_latest(tmp_path: Path) -> None:
    tensors: Tensors = random_tensors(MWA)
    deepspeed_tag(tmp_path, tensors)
    found = read_checkpoint(tmp_path).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("latest", "complaint"),
    [
        (None, "is a folder without a checkpoint"),
        ("gone", "gone/mp_rank_00_model_states.pt is not a file"),
        ("/nowhere", "/nowhere/mp_rank_00_model_states.pt is not a file"),
    ],
)
def test_folder_without_a_model_says_which_file_is_expected(
    latest: str | None, complaint: str, tmp_path: Path
) -> None:
    if latest is not None:
        (tmp_path / "latest").write_text(latest)
    with pytest.raises(CheckpointError, match=complaint):
        read_checkpoint(tmp_path)
