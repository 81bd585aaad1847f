"""Files that are not checkpoints, contain code, are damaged or for another task are refused."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import save
from configs import CONFIGS, MWA
from PIL import Image

from mwa_export.model.synthetic import random_tensors, training_args

FFN = "beit3.encoder.layers.1.ffn.A.fc1.weight"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [1, 3, 40, 300, 3000, 0.5, 0.99, -1])
def test_truncated_checkpoint_is_refused(
    kept: float, zipped: bool, tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    path = tmp_path / "cut.pth"
    torch.save(
        {"model": random_tensors(MWA), "args": training_args(MWA)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    message = export_refused(path)
    assert message.startswith(f"{path}: ")
    if kept in (1, 3) and zipped:  # too little to tell what it was
        assert "is not a PyTorch checkpoint" in message
    else:
        assert "truncated: copy it again" in message


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def _jpeg(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, "JPEG")


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")


def _empty_zip(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


def _torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:  # as torch.jit.save lays it out
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"model/{name}", "")


def _whole_module(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


def _tensor(path: Path) -> None:
    torch.save(torch.ones(3), path)


def _nothing(path: Path) -> None:
    torch.save({"model": {}}, path)


def _numbers(path: Path) -> None:
    torch.save({"model": {"weight": 1.0}}, path)


def _no_beit3(path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.ones(2)}, path)


def _integers(path: Path) -> None:
    tensors = random_tensors(MWA)
    save(path, {**tensors, FFN: tensors[FFN].int()})


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (_empty, "is empty. Expected a checkpoint. Copy the file again"),
        (
            _text,
            "is not a PyTorch checkpoint (it starts with b'version '). Pass a file written",
        ),
        (_jpeg, r"is not a PyTorch checkpoint (it starts with b'\xff\xd8\xff"),
        (_zip, "is a zip file that torch.save did not write (it contains word/document.xml)"),
        (_empty_zip, "is not a PyTorch checkpoint"),
        (_torchscript, "is a TorchScript program. Pass a"),
        (
            _whole_module,
            "contains an object made by torch.nn.modules.linear.Linear. Expected a dict",
        ),
        (_tensor, "contains a tensor. Expected a dict with the model's tensors"),
        (_nothing, "has no tensors, only model. Expected a state dict"),
        (_numbers, "has no tensors, only model. Expected a state dict"),
        (_no_beit3, "its tensors (layer1.0.conv1.weight; ...) are not those of a BEiT-3"),
        (_integers, f"{FFN} is torch.int32. Expected float32, float16"),
    ],
)
def test_file_that_is_no_checkpoint_is_named_for_what_it_is(
    write: Callable[[Path], None],
    complaint: str,
    tmp_path: Path,
    export_refused: Callable[..., str],
) -> None:
    path = tmp_path / "checkpoint.pth"
    write(path)
    message = export_refused(path)
    assert message.startswith(f"{path}: ")
    assert complaint in message


def test_real_torchscript_program_is_refused(
    tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch are about to drop it
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)  # type: ignore[no-untyped-call]  # torch
    assert "is a TorchScript program" in export_refused(path)


# --- checkpoints of something else, or damaged ----------------------------------------------------


@pytest.mark.parametrize(
    ("head", "task"),
    [
        ("pooler.dense.weight", "visual question answering (pooler)"),
        ("mlm_head.weight", "captioning or pretraining (mlm_head)"),
        ("head.dense1.weight", "visual reasoning, NLVR2 (head.dense1)"),
        ("fc_norm.weight", "image classification (fc_norm)"),
        ("head.weight", "classification (head)"),
        (None, "no particular task (a pretrained backbone without heads)"),
    ],
)
def test_model_for_another_task_is_named(
    head: str | None, task: str, tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    config = CONFIGS["plain"]
    tensors = {n: t for n, t in random_tensors(config).items() if "_head." not in n}
    if head is not None:
        tensors[head] = torch.ones(4, 4)
        tensors["head.0.weight"] = torch.ones(4, 4)  # VQA has both, the pooler says more
        if head == "mlm_head.weight":
            del tensors["head.0.weight"]
    path = save(tmp_path / "other_task.pth", tensors, config)
    message = export_refused(path)
    assert message.startswith(
        f"{path}: is a BEiT-3 model for {task}. Expected one for image-text retrieval"
    )


def test_missing_extra_and_misshaped_tensors_are_named(
    tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    tensors = random_tensors(MWA)
    del tensors["beit3.encoder.layers.0.self_attn.k_proj.B.bias"]
    tensors["beit3.encoder.relative_position.weight"] = torch.ones(1)
    tensors[FFN] = tensors[FFN][:, :5].clone()
    message = export_refused(save(tmp_path / "odd.pth", tensors))
    assert "1 missing: beit3.encoder.layers.0.self_attn.k_proj.B.bias." in message
    assert "1 unexpected: beit3.encoder.relative_position.weight." in message
    assert f"1 with a wrong shape: {FFN} is 256 x 5, expected 256 x 128." in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [FFN, "beit3.encoder.layers.0.adaptmlp_text.up_proj.bias"])
def test_weight_that_is_not_finite_is_named(
    name: str, value: float, tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    tensors = random_tensors(MWA)
    tensors[name].view(-1)[3:5] = value
    path = save(tmp_path / "diverged.pth", tensors)
    assert export_refused(path).startswith(f"{path}: {name} has 2 of ")


def test_sharded_checkpoint_without_weights_names_the_tool(
    tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    tensors = {name: torch.empty(0) for name in random_tensors(MWA)}
    message = export_refused(save(tmp_path / "zero3.pth", tensors))
    assert "ZeRO-3" in message
    assert "zero_to_fp32.py" in message


def test_model_split_over_ranks_is_refused(
    tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    tag = tmp_path / "checkpoint-29"
    tag.mkdir()
    (tmp_path / "latest").write_text(tag.name)
    for rank in range(2):
        torch.save({"module": random_tensors(MWA)}, tag / f"mp_rank_{rank:02}_model_states.pt")
    message = export_refused(tmp_path)
    assert "split over 2 tensor-parallel ranks (mp_rank_01_model_states.pt" in message
