"""Unusable output paths, full disks and interrupted runs leave nothing half-written."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from commands import files_below, refused, run
from torch import Tensor

from mwa_export.bundle.bundle import Bundle
from mwa_export.errors import BundleError
from mwa_export.export import export as module
from mwa_export.files import new_file, new_folder
from mwa_export.towers import merge
from mwa_export.towers.forward import TowerPlan

MWA_EXPORT = str(Path(sys.executable).with_name("mwa-export"))


def _old_bundle(folder: Path) -> dict[str, bytes]:
    (folder / "bundle").mkdir()
    (folder / "bundle" / "manifest.json").write_text(
        '{"files": {"vision.onnx": {}, "engines/old.engine": {}}}'
    )
    (folder / "bundle" / "vision.onnx").write_bytes(b"old")
    return files_below(folder)


def test_existing_bundle_is_replaced_only_by_force_and_only_by_a_whole_one(
    checkpoint: Path, tmp_path: Path, folder: Path, export_refused: Callable[..., str]
) -> None:
    _old_bundle(folder)
    message = export_refused(checkpoint)
    assert message == (
        f"{folder / 'bundle'}: already exists. Choose another folder, or "
        "pass --force to replace it."
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


def test_folder_one_stands_in_can_be_the_bundle(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _old_bundle(folder)
    (folder / "bundle" / "notes.txt").write_text("precious")
    monkeypatch.chdir(folder / "bundle")
    before = files_below(folder)
    message = refused("onnx", checkpoint, "-o", "..", "--force")
    assert "was not made by this command" in message
    assert files_below(folder) == before
    assert run("onnx", checkpoint, "-o", ".", "--force").status == 0
    assert Bundle.open(".").manifest.towers == ("vision", "text")
    assert Path("notes.txt").read_text() == "precious"


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


@pytest.mark.parametrize("exchange", [True, False])
def test_old_folder_stays_when_the_new_one_cannot_take_its_place(
    exchange: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _old_bundle(folder)
    rename = Path.rename

    def fail_for_the_new_one(self: Path, target: Path) -> Path:
        if target.name == "bundle" and not self.name.endswith(".old"):
            code = errno.ENOTEMPTY if not exchange and not failed else errno.EDQUOT
            failed.append(code)
            raise OSError(code, os.strerror(code))
        return rename(self, target)

    failed: list[int] = []
    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    monkeypatch.delattr(ctypes, "CDLL")
    with (
        pytest.raises(BundleError, match="disk quota"),
        new_folder(folder / "bundle", marker="manifest.json", force=True),
    ):
        pass
    assert files_below(folder) == before
    assert len(failed) == 2 - exchange


def test_folder_that_appeared_meanwhile_is_not_replaced(folder: Path) -> None:
    changes = ExitStack()
    changes.enter_context(new_folder(folder / "bundle", marker="manifest.json"))
    _old_bundle(folder)
    with pytest.raises(BundleError, match="exists"):
        changes.close()
    assert (folder / "bundle" / "vision.onnx").read_bytes() == b"old"
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "no space left on the device. Free some space, or write elsewhere."),
        (errno.EDQUOT, "the disk quota is used up. Free some space, or write elsewhere."),
        (errno.EROFS, "the file system is read-only. Write elsewhere."),
        (errno.EACCES, "no permission to write here. Write elsewhere."),
        (errno.EFBIG, "the file is too large for the file system or a limit of this shell."),
    ],
)
@pytest.mark.parametrize("step", [(Path, "mkdir"), (module, "onnx_from_tower")])
def test_disk_that_refuses_is_explained(
    step: tuple[Any, str],
    code: int,
    reason: str,
    checkpoint: Path,
    folder: Path,
    export_refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*step, refuse)
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
    message = refused("onnx", checkpoint, "-o", tiny_disk, "--force")
    assert message.startswith(f"{tiny_disk}: cannot be written: no space left")
    assert files_below(tiny_disk) == {}


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
            f"{out}: cannot be written: a part of this path is a file, not a folder. "
            "Choose another path."
        )


def test_name_that_is_too_long_is_refused(checkpoint: Path, folder: Path) -> None:
    for length in (250, 300):
        message = refused("onnx", checkpoint, "-o", folder / ("b" * length))
        assert message.endswith("cannot be written: the name is too long. Choose a shorter one.")
    assert files_below(folder) == {}


def test_file_appears_whole_or_not_at_all(folder: Path) -> None:
    path = folder / "new" / "file"
    with pytest.raises(FileNotFoundError), new_file(path) as partial:
        partial.write_bytes(b"half" + (folder / "gone").read_bytes())
    assert files_below(folder) == {"new": b""}
    with new_file(path) as partial:
        partial.write_bytes(b"whole")
    assert files_below(folder) == {"new": b"", "new/file": b"whole"}


@pytest.mark.slow
def test_installed_command_reports_the_same_way(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "gone.pth"
    done = subprocess.run(
        [MWA_EXPORT, "onnx", str(path), "-o", str(folder / "bundle"), "-q"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {path}: no such file or folder. Pass a checkpoint.\n"
    assert files_below(folder) == {}


# --- runs that end early, and graphs that are wrong -----------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal_", "status", "old"), [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, True)]
)
def test_interrupted_run_leaves_nothing_behind(
    signal_: signal.Signals, status: int, old: bool, checkpoint: Path, folder: Path
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
    while not [*folder.glob(".bundle.*"), *folder.glob("bundle/.pending")]:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal_)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
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

    monkeypatch.setattr(module, "merge_tower", merge_one_tower_wrongly)
    message = export_refused(checkpoint, "--force", status=1)
    assert message.startswith(f"the exported {tower} tower differs from the PyTorch reference: ")
    assert "at most 2e-05. Nothing was written" in message
