"""Mismatched adapters, sizes, tokenizers and options are refused with clear messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from commands import files_below, refused, save, spm_model
from configs import BACKBONE, CONFIGS

from mwa_export.model.synthetic import random_tensors
from mwa_export.spec import ModelConfig


def test_adapter_of_another_base_is_refused(
    adapter: tuple[Path, Path], tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    config = CONFIGS["plain"]
    other = save(tmp_path / "other.pth", random_tensors(config, 2), config)
    message = export_refused("--base", other, "--adapter", adapter[1])
    assert message.startswith(f"{adapter[1]}: was split from another base. {other} ")


def test_adapter_of_another_width_is_refused(
    adapter: tuple[Path, Path], tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    wide = ModelConfig(replace(BACKBONE, embed_dim=192))
    other = save(tmp_path / "wide.pth", random_tensors(wide), wide)
    message = export_refused("--base", other, "--adapter", adapter[1])
    assert message.startswith(f"{adapter[1]}: was trained for width 128")
    assert f"{other} has width 192" in message


@pytest.mark.parametrize(
    "arguments",
    [[], ["CKPT", "--base", "CKPT"], ["CKPT", "--adapter", "CKPT"], ["--base", "CKPT"]],
)
def test_model_must_be_one_checkpoint_or_a_pair(
    arguments: list[str], checkpoint: Path, export_refused: Callable[..., str]
) -> None:
    message = export_refused(*(str(checkpoint) if a == "CKPT" else a for a in arguments))
    assert message == ("pass either one checkpoint, or both --base BASE and --adapter ADAPTER.")


def test_moving_average_that_is_not_there_is_refused(
    checkpoint: Path, export_refused: Callable[..., str]
) -> None:
    assert export_refused(checkpoint, "--ema") == (
        f"{checkpoint}: has no moving average (model_ema or similar), only model, optimizer, "
        "epoch, args. Leave --ema out, or name its entry with --model-key."
    )


def test_unknown_merge_step_lists_the_ones_there_are(
    checkpoint: Path, export_refused: Callable[..., str]
) -> None:
    message = export_refused(checkpoint, "--no-merge", "qkv", "--no-merge", "norms")
    assert message.startswith("unknown merge step 'norms'. Expected one of: qkv, layernorm, ")


def test_image_size_that_is_no_multiple_of_the_patch_is_refused(
    checkpoint: Path, export_refused: Callable[..., str]
) -> None:
    message = export_refused(checkpoint, "--image-size", 33)
    assert "image size 33 is not a multiple of the patch size 8. Use 32" in message


def test_tokenizer_that_is_larger_than_the_vocabulary_is_refused(
    checkpoint: Path, tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    spm = tmp_path / "large.spm"
    spm.write_bytes(spm_model(100))
    assert export_refused(checkpoint, "--tokenizer", spm) == (
        f"{spm}: has 102 ids (100 pieces and 2 more), but the checkpoint's vocabulary has 90 rows. "
        "Expected 102 to 230 rows. Pass the tokenizer that training used."
    )


def test_tokenizer_that_is_smaller_than_the_vocabulary_is_refused(
    write_checkpoint: Callable[..., Path], tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    spm = tmp_path / "small.spm"
    spm.write_bytes(spm_model(60))
    checkpoint = write_checkpoint(ModelConfig(replace(BACKBONE, vocab_size=300)))
    message = export_refused(checkpoint, "--tokenizer", spm)
    assert message.startswith(f"{spm}: has 62 ids (60 pieces and 2 more), but the checkpoint's")
    assert "vocabulary has 300 rows. Expected 62 to 190 rows." in message


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read (No such file or directory). Expected a SentencePiece model (.spm)"),
        (b"", "is not a SentencePiece model"),
        (b"\xff\xd8\xff\xe0 no model", "is not a SentencePiece model"),
        (b"{}", "is not a SentencePiece model"),
        (spm_model(60)[:500], "is not a SentencePiece model"),
    ],
)
def test_tokenizer_file_that_is_no_sentencepiece_model_is_refused(
    content: bytes | None, complaint: str, checkpoint: Path, tmp_path: Path, folder: Path
) -> None:
    spm = tmp_path / "beit3.spm"
    if content is not None:
        spm.write_bytes(content)
    message = refused("onnx", checkpoint, "--tokenizer", spm, "-o", folder / "bundle")
    assert message.startswith(f"{spm}: {complaint}")
    assert files_below(folder) == {}


def test_tokenizer_folder_is_refused(
    checkpoint: Path, tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    assert "is not a file. Expected a SentencePiece model" in export_refused(
        checkpoint, "--tokenizer", tmp_path
    )
