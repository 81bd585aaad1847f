"""Whatever goes wrong: one clear message, the right exit status, and not a file left behind."""

from __future__ import annotations

import argparse
import datetime
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from commands import files_below, refused, run, spm_model
from configs import BACKBONE, CONFIGS, MWA
from PIL import Image
from torch import Tensor

from mwa_export import merge
from mwa_export.adapters import split
from mwa_export.checkpoint import read_checkpoint
from mwa_export.config import ModelConfig
from mwa_export.files import new_file, new_folder
from mwa_export.forward import TowerPlan
from mwa_export.model import ModelSource, load_model
from mwa_export.synthetic import random_tensors, training_args

Tensors = dict[str, Tensor]
MWA_EXPORT = str(Path(sys.executable).with_name("mwa-export"))
FFN = "beit3.encoder.layers.1.ffn.A.fc1.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where bundles go; empty, so that everything a run leaves is seen."""
    path = tmp_path / "out"
    path.mkdir()
    return path


@pytest.fixture
def export_refused(folder: Path) -> Callable[..., str]:
    """Run an export that must fail and leave nothing; returns its message."""

    def export(*arguments: object, status: int = 2) -> str:
        before = files_below(folder)
        message = refused("onnx", *arguments, "-o", folder / "bundle", status=status)
        assert files_below(folder) == before
        return message

    return export


def _save(path: Path, tensors: Tensors, config: ModelConfig = MWA, **more: Any) -> Path:
    torch.save({"model": tensors, "args": training_args(config), **more}, path)
    return path


# --- files that are no checkpoint -----------------------------------------------------------------


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
        assert "cut short: copy it again" in message


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
    _save(path, {**tensors, FFN: tensors[FFN].int()})


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (_empty, "is empty. Expected a checkpoint: copy it again"),
        (
            _text,
            "is not a PyTorch checkpoint (it starts with b'version '). Expected a file written",
        ),
        (_jpeg, r"is not a PyTorch checkpoint (it starts with b'\xff\xd8\xff"),
        (_zip, "is a zip file, but not one of torch.save (it holds word/document.xml)"),
        (_empty_zip, "is not a PyTorch checkpoint"),
        (_torchscript, "is a TorchScript program. Expected a checkpoint"),
        (_whole_module, "a pickled object of type torch.nn.modules.linear.Linear"),
        (_tensor, "holds a Tensor. Expected a dict with the model's tensors"),
        (_nothing, "the model entry holds no tensors"),
        (_numbers, "'weight' is a float, not a tensor. Expected a state dict"),
        (_no_beit3, "its tensors (layer1.0.conv1.weight; ...) are not those of a BEiT-3"),
        (_integers, f"{FFN} is torch.int32. Expected floating point"),
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
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)  # type: ignore[no-untyped-call]
    assert "is a TorchScript program" in export_refused(path)


# --- code in pickles ------------------------------------------------------------------------------


class _Touch:
    """Unpickling it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["top", "args", "model", "safetensors name"])
def test_code_in_a_checkpoint_is_not_run(
    place: str, zipped: bool, tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    marker = tmp_path / "marker"
    data: dict[str, Any] = {"model": random_tensors(MWA), "args": training_args(MWA)}
    if place == "args":
        data["args"] = argparse.Namespace(note=_Touch(marker))
    elif place == "model":
        data["model"]["surprise"] = _Touch(marker)
    else:
        data["note"] = _Touch(marker)
    path = tmp_path / ("evil.safetensors" if place == "safetensors name" else "evil.pth")
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    message = export_refused(path)
    assert not marker.exists()
    if place == "safetensors name":
        assert "is not a whole safetensors file" in message
    else:
        assert f"holds a pickled object of type {os.system.__module__}.system" in message
        assert "Nothing was run" in message
        assert "--trust-pickle" in message


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_trusted_pickle_may_hold_any_type(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "dated.pth"
    data = {"model": random_tensors(MWA), "args": training_args(MWA)}
    data["date"] = datetime.date(2024, 2, 29)
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    assert "of type datetime.date" in refused("inspect", path)
    assert run("inspect", path, "--trust-pickle").status == 0


def test_trusted_type_that_is_not_installed_here_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("their_training")
    monkeypatch.setitem(sys.modules, "their_training", module)
    kind = type("Settings", (), {"__module__": "their_training"})
    monkeypatch.setattr(module, "Settings", kind, raising=False)
    path = _save(tmp_path / "theirs.pth", random_tensors(MWA), settings=kind())
    monkeypatch.delattr(module, "Settings")
    assert "cannot be imported here" in refused("inspect", path, "--trust-pickle")
    monkeypatch.delitem(sys.modules, "their_training")
    message = refused("inspect", path, "--trust-pickle")
    assert "cannot be imported here (No module named 'their_training')" in message


# --- checkpoints of something else, or damaged ----------------------------------------------------


@pytest.mark.parametrize(
    ("head", "task"),
    [
        ("pooler.dense.weight", "visual question answering (pooler)"),
        ("mlm_head.weight", "captioning or pretraining (mlm_head)"),
        ("head.dense1.weight", "visual reasoning, NLVR2 (head.dense1)"),
        ("fc_norm.weight", "image classification (fc_norm)"),
        ("head.weight", "classification (head)"),
        (None, "no task (a pretrained backbone without heads)"),
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
    path = _save(tmp_path / "other_task.pth", tensors, config)
    message = export_refused(path)
    assert message.startswith(f"{path}: is a BEiT-3 for {task}. Supported: image-text retrieval")


def test_missing_extra_and_misshaped_tensors_are_named(
    tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    tensors = random_tensors(MWA)
    del tensors["beit3.encoder.layers.0.self_attn.k_proj.B.bias"]
    tensors["beit3.encoder.relative_position.weight"] = torch.ones(1)
    tensors[FFN] = tensors[FFN][:, :5].clone()
    message = export_refused(_save(tmp_path / "odd.pth", tensors))
    assert "1 missing: beit3.encoder.layers.0.self_attn.k_proj.B.bias." in message
    assert "1 unexpected: beit3.encoder.relative_position.weight." in message
    assert f"1 of another shape: {FFN} is 256 x 5, expected 256 x 128." in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [FFN, "beit3.encoder.layers.0.adaptmlp_text.up_proj.bias"])
def test_weight_that_is_not_finite_is_named(
    name: str, value: float, tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    tensors = random_tensors(MWA)
    tensors[name].view(-1)[3:5] = value
    path = _save(tmp_path / "diverged.pth", tensors)
    assert export_refused(path).startswith(
        f"{path}: {name} has 2 values that are not finite (NaN or infinite) of "
        f"{tensors[name].numel()}."
    )


def test_sharded_checkpoint_without_weights_names_the_tool(
    tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    tensors = {name: torch.empty(0) for name in random_tensors(MWA)}
    message = export_refused(_save(tmp_path / "zero3.pth", tensors))
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


# --- adapters, sizes, tokenizers, options ---------------------------------------------------------


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A base, and an adapter that was split from it."""
    config = CONFIGS["plain"]
    model = load_model(ModelSource(checkpoint))
    shared = {n: model.tensors.get(n, t) for n, t in random_tensors(config, 1).items()}
    base, out = _save(tmp_path / "base.pth", shared, config), tmp_path / "adapter.safetensors"
    split(model.tensors, model.config, read_checkpoint(base), out)
    return base, out


def test_adapter_of_another_base_is_refused(
    adapter: tuple[Path, Path], tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    config = CONFIGS["plain"]
    other = _save(tmp_path / "other.pth", random_tensors(config, 2), config)
    message = export_refused("--base", other, "--adapter", adapter[1])
    assert message.startswith(f"{adapter[1]}: was split from another base. {other} ")


def test_adapter_of_another_width_is_refused(
    adapter: tuple[Path, Path], tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    wide = ModelConfig(replace(BACKBONE, embed_dim=192))
    other = _save(tmp_path / "wide.pth", random_tensors(wide), wide)
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
    assert message == (
        "which model? Expected either one checkpoint, or both --base BASE and --adapter ADAPTER."
    )


def test_moving_average_that_is_not_there_is_refused(
    checkpoint: Path, export_refused: Callable[..., str]
) -> None:
    assert export_refused(checkpoint, "--ema") == (
        f"{checkpoint}: has no `model_ema`, only model, optimizer, epoch, args. Leave --ema out."
    )


def test_unknown_merge_step_lists_the_ones_there_are(
    checkpoint: Path, export_refused: Callable[..., str]
) -> None:
    message = export_refused(checkpoint, "--no-merge", "qkv", "--no-merge", "norms")
    assert message.startswith("no merge step is called 'norms'. Expected: qkv, layernorm, ")


def test_image_size_that_is_no_multiple_of_the_patch_is_refused(
    checkpoint: Path, export_refused: Callable[..., str]
) -> None:
    message = export_refused(checkpoint, "--image-size", 33)
    assert "image size 33 is no multiple of the patch size 8. Nearest that works: 32" in message


def test_tokenizer_that_is_larger_than_the_vocabulary_is_refused(
    checkpoint: Path, tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    spm = tmp_path / "large.spm"
    spm.write_bytes(spm_model(100))
    assert export_refused(checkpoint, "--tokenizer", spm) == (
        f"{spm}: has 102 ids (100 pieces and 2 more), and the checkpoint's vocabulary has 90 rows. "
        "Expected 102 to 230 rows. Give the tokenizer this checkpoint was trained with."
    )


def test_tokenizer_that_is_smaller_than_the_vocabulary_is_refused(
    write_checkpoint: Callable[..., Path], tmp_path: Path, export_refused: Callable[..., str]
) -> None:
    spm = tmp_path / "small.spm"
    spm.write_bytes(spm_model(60))
    checkpoint = write_checkpoint(ModelConfig(replace(BACKBONE, vocab_size=300)))
    message = export_refused(checkpoint, "--tokenizer", spm)
    assert message.startswith(f"{spm}: has 62 ids (60 pieces and 2 more), and the checkpoint's")
    assert "vocabulary has 300 rows. Expected 62 to 190 rows." in message


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read (No such file or directory). Expected a SentencePiece model (.spm)"),
        (b"", "not a SentencePiece model"),
        (b"\xff\xd8\xff\xe0 no model", "not a SentencePiece model"),
        (b"{}", "not a SentencePiece model"),
        (spm_model(60)[:500], "not a SentencePiece model"),
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
    assert "cannot be read (Is a directory)" in export_refused(checkpoint, "--tokenizer", tmp_path)


# --- where the bundle goes ------------------------------------------------------------------------


def _old_bundle(folder: Path) -> dict[str, bytes]:
    (folder / "bundle").mkdir()
    (folder / "bundle" / "manifest.json").write_text("{}")
    (folder / "bundle" / "vision.onnx").write_bytes(b"old")
    return files_below(folder)


def test_existing_bundle_is_replaced_only_by_force_and_only_by_a_whole_one(
    checkpoint: Path, tmp_path: Path, folder: Path, export_refused: Callable[..., str]
) -> None:
    _old_bundle(folder)
    message = export_refused(checkpoint)
    assert message == (
        f"{folder / 'bundle'}: exists already. Choose another folder, or replace it: --force"
    )
    (tmp_path / "bad.pth").write_bytes(b"bad")
    export_refused(tmp_path / "bad.pth", "--force")
    outcome = run("onnx", checkpoint, "-o", folder / "bundle", "--force")
    assert outcome.status == 0, outcome
    assert outcome.stdout == f"{folder / 'bundle'}\n"
    assert files_below(folder).keys() == {
        "bundle",
        *(f"bundle/{name}" for name in ("manifest.json", "vision.onnx", "text.onnx")),
        "bundle/conformance.npz",
    }
    assert (folder / "bundle/vision.onnx").read_bytes() != b"old"


def test_force_does_not_delete_what_is_no_bundle(
    checkpoint: Path, folder: Path, export_refused: Callable[..., str]
) -> None:
    (folder / "bundle").mkdir()
    (folder / "bundle" / "holiday.jpg").write_bytes(b"precious")
    message = export_refused(checkpoint, "--force")
    assert "was not made by this command (manifest.json is missing)" in message


def test_force_does_not_delete_a_file(
    checkpoint: Path, folder: Path, export_refused: Callable[..., str]
) -> None:
    (folder / "bundle").write_bytes(b"precious")
    assert "was not made by this command" in export_refused(checkpoint, "--force")


@pytest.mark.parametrize("name", [".", ".."])
def test_folder_one_stands_in_is_not_replaced(
    name: str, checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _old_bundle(folder)
    monkeypatch.chdir(folder / "bundle")
    before = files_below(folder)
    message = refused("onnx", checkpoint, "-o", name, "--force")
    assert "holds the current folder, so it cannot be replaced" in message
    assert files_below(folder) == before


def test_empty_folder_may_be_filled_by_force(folder: Path) -> None:
    with new_folder(folder, marker="manifest.json", force=True) as partial:
        (partial / "manifest.json").write_text("{}")
    assert files_below(folder) == {"manifest.json": b"{}"}


def test_link_to_a_bundle_is_replaced_and_not_followed(folder: Path) -> None:
    old = _old_bundle(folder)
    (folder / "link").symlink_to("bundle")
    with new_folder(folder / "link", marker="manifest.json", force=True) as partial:
        (partial / "manifest.json").write_text("new")
    assert not (folder / "link").is_symlink()
    assert files_below(folder) == {**old, "link": b"", "link/manifest.json": b"new"}


def test_old_bundle_comes_back_when_the_new_one_cannot_be_renamed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _old_bundle(folder)
    rename = Path.replace

    def fail_for_the_new_one(self: Path, target: Path) -> Path:
        if target.name == "bundle" and not self.name.endswith(".old"):
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fail_for_the_new_one)
    with (
        pytest.raises(Exception, match="disk quota"),
        new_folder(folder / "bundle", marker="manifest.json", force=True),
    ):
        pass
    assert files_below(folder) == before


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "no space left on the device. Free some, or write elsewhere."),
        (errno.EDQUOT, "the disk quota is used up. Free some, or write elsewhere."),
        (errno.EROFS, "the file system is read-only. Write elsewhere."),
        (errno.EACCES, "no permission to write here. Write elsewhere."),
        (errno.EFBIG, "the file system or a limit of this shell allows no file of this size."),
    ],
)
@pytest.mark.parametrize("step", ["tempfile.mkdtemp", "mwa_export.export.onnx_from_tower"])
def test_disk_that_refuses_is_explained(
    step: str,
    code: int,
    reason: str,
    checkpoint: Path,
    folder: Path,
    export_refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(step, refuse)
    assert export_refused(checkpoint) == f"{folder / 'bundle'}: cannot be written: {reason}"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for half a megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs more rights")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_full_disk_leaves_nothing_behind(
    tiny_disk: Path, checkpoint: Path, adapter: tuple[Path, Path]
) -> None:
    message = refused("onnx", checkpoint, "-o", tiny_disk / "bundle")
    assert "no space left on the device" in message
    out = tiny_disk / "adapter.safetensors"
    message = refused("split", checkpoint, "--base", adapter[0], "-o", out)
    assert message.startswith(f"{out}: cannot be written")
    assert files_below(tiny_disk) == {}
    assert "is a mount point" in refused("onnx", checkpoint, "-o", tiny_disk, "--force")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_refused(
    checkpoint: Path, folder: Path, export_refused: Callable[..., str]
) -> None:
    folder.chmod(0o500)
    assert "no permission to write here" in export_refused(checkpoint)
    folder.chmod(0o700)


def test_bundle_below_a_file_is_refused(checkpoint: Path) -> None:
    for out in (checkpoint / "bundle", checkpoint / "deep" / "bundle"):
        message = refused("onnx", checkpoint, "-o", out)
        assert message == (
            f"{out}: cannot be written: a part of this path is a file, not a folder."
        )


def test_name_that_is_too_long_is_refused(checkpoint: Path, folder: Path) -> None:
    for length in (250, 300):
        message = refused("onnx", checkpoint, "-o", folder / ("b" * length))
        assert message.endswith("cannot be written: the name is too long.")
    assert files_below(folder) == {}


def test_file_appears_whole_or_not_at_all(folder: Path) -> None:
    path = folder / "new" / "file"
    with pytest.raises(FileNotFoundError), new_file(path) as partial:
        partial.write_bytes(b"half" + (folder / "gone").read_bytes())
    assert files_below(folder) == {"new": b""}
    with new_file(path) as partial:
        partial.write_bytes(b"whole")
    assert files_below(folder) == {"new": b"", "new/file": b"whole"}


def test_installed_command_reports_the_same_way(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "gone.pth"
    done = subprocess.run(
        [MWA_EXPORT, "onnx", str(path), "-o", str(folder / "bundle"), "-q"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {path}: no such file or folder. Expected a checkpoint.\n"
    assert files_below(folder) == {}


# --- runs that end early, and graphs that are wrong -----------------------------------------------


@pytest.mark.parametrize(("signal_", "old"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_interrupted_run_leaves_nothing_behind(
    signal_: signal.Signals, old: bool, checkpoint: Path, folder: Path
) -> None:
    before = _old_bundle(folder) if old else {}
    process = subprocess.Popen(
        [MWA_EXPORT, "onnx", str(checkpoint), "-o", str(folder / "bundle"), "--force"],
        stderr=subprocess.PIPE,
        text=True,
        # Where pytest runs in the background, SIGINT may be ignored and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob(".bundle.*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal_)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted; nothing was left half-written"
    assert "Traceback" not in stderr
    assert files_below(folder) == before


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_graph_that_computes_something_else_is_never_written(
    tower: str,
    checkpoint: Path,
    folder: Path,
    export_refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _old_bundle(folder)
    fold, merge_tower = merge.fold_norm, merge.merge_tower

    def slightly_wrong(*arguments: Any) -> tuple[Tensor, Tensor]:
        weight, bias = fold(*arguments)
        return weight * 1.001, bias

    def merge_one_tower_wrongly(plan: TowerPlan, *arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            if plan.tower == tower:
                patch.setattr(merge, "fold_norm", slightly_wrong)
            return merge_tower(plan, *arguments)

    monkeypatch.setattr("mwa_export.export.merge_tower", merge_one_tower_wrongly)
    message = export_refused(checkpoint, "--force", status=1)
    assert message.startswith(f"the exported {tower} tower differs from the PyTorch reference: ")
    assert "allowed 2e-05. Nothing was written" in message
