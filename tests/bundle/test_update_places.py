"""Bundles can be updated anywhere: current folder, links, mounts, disks that refuse."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import files_below
from updates import FIRST, SECOND, change, content, first, second

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.update import changed_bundle, check_target
from mwa_export.errors import BundleError


def test_current_folder_can_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(first(tmp_path / "bundle").path)
    assert content(change(Path())) == SECOND
    assert Path("a.onnx").read_text() == SECOND["a.onnx"]


def test_link_to_a_release_stays_a_link(tmp_path: Path) -> None:
    first(tmp_path / "release-1")
    (tmp_path / "current").symlink_to("release-1")
    assert content(change(tmp_path / "current")) == SECOND
    assert (tmp_path / "current").is_symlink()
    assert content(Bundle.open(tmp_path / "release-1")) == SECOND


def test_bundle_of_links_is_changed_without_writing_through_them(tmp_path: Path) -> None:
    """Hugging Face's cache and DVC store files as links."""
    path = first(tmp_path / "blobs").path
    for name in files_below(path):
        link = tmp_path / "snapshot" / name
        if (path / name).is_file():
            link.parent.mkdir(exist_ok=True, parents=True)
            link.symlink_to(os.path.relpath(path / name, link.parent))
    assert content(change(tmp_path / "snapshot")) == SECOND
    assert content(Bundle.open(path)) == FIRST


def test_folder_that_leads_out_of_the_bundle_is_refused(tmp_path: Path) -> None:
    base, path = first(tmp_path / "base"), first(tmp_path / "bundle").path
    (path / "engines").rename(tmp_path / "elsewhere")
    (path / "engines").symlink_to(tmp_path / "elsewhere")
    before = files_below(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is linked from outside the bundle"):
        Bundle.open(path)
    with (
        pytest.raises(BundleError, match="leads out of the bundle"),
        changed_bundle(base, path, force=True) as prepared,
    ):
        second(prepared)
    assert files_below(tmp_path / "elsewhere") == before


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Mount a small disk; skip where that needs more rights."""

    def mounted() -> Path:
        path = tmp_path / "mounted"
        path.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small disk needs more rights")
        unmount.append(path)
        return path

    unmount: list[Path] = []
    yield mounted
    for path in unmount:
        subprocess.run(["umount", str(path)], check=True)


def test_mount_point_can_be_filled_and_changed(tmp_path: Path, mount: Callable[[], Path]) -> None:
    base, path = first(tmp_path / "base"), mount()
    with changed_bundle(base, path, force=True) as prepared:
        prepared.write(base.manifest)
    assert content(Bundle.open(path)) == FIRST
    assert content(change(path)) == SECOND


def test_change_that_could_not_be_finished_is_refused(
    tmp_path: Path, mount: Callable[[], Path]
) -> None:
    bundle = first(tmp_path / "bundle")
    mounted = mount()
    shutil.copytree(bundle.path / "engines", mounted, dirs_exist_ok=True)
    subprocess.run(["mount", "--bind", str(mounted), str(bundle.path / "engines")], check=True)
    try:
        assert content(change(bundle.path)) == SECOND, "files are copied onto another disk"
        before = files_below(bundle.path)
        remount = ["mount", "-o", "remount,bind,ro", str(bundle.path / "engines")]
        subprocess.run(remount, check=True)
        with pytest.raises(BundleError, match="engines: cannot be written: the file system is"):
            change(bundle.path)
        assert files_below(bundle.path) == before
    finally:
        subprocess.run(["umount", str(bundle.path / "engines")], check=True)


def test_disk_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, mount: Callable[[], Path]
) -> None:
    base, path = first(tmp_path / "base"), mount()
    shutil.copytree(base.path, path / "bundle")
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
    bundle = Bundle.open(path / "bundle")
    for arguments in ((bundle, None), (base, path / "bundle"), (base, path / "new")):
        with pytest.raises(BundleError, match="read-only"):
            check_target(*arguments, force=True)
