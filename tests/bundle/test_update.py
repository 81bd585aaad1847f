"""Bundles are changed in place: nothing of others is lost, and a death leaves old or new."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from commands import files_below
from configs import CONFIGS
from deaths import deaths
from manifests import EXPORT

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import (
    CONFORMANCE,
    LOCK,
    MANIFEST,
    PENDING,
    Graph,
    Manifest,
    preprocessing_of,
    write_manifest,
)
from mwa_export.bundle.update import Change, changed_bundle, check_target
from mwa_export.errors import BundleError, OutputBusyError
from mwa_export.spec import text_spec

MODEL = CONFIGS["plain"]


def manifest(*graphs: str) -> Manifest:
    """A manifest whose text graphs have these files."""
    spec = text_spec(MODEL.backbone)
    described = tuple(Graph(file, spec, "float32", "onnx", 17) for file in graphs)
    return Manifest("0" * 64, MODEL, preprocessing_of(MODEL.backbone), described, None, EXPORT)


def first(folder: Path) -> Bundle:
    """A bundle with a graph and its weights, one in a folder, and vectors."""
    (folder / "engines").mkdir(parents=True)
    for name in ("a.onnx", "a.onnx.data", "b.onnx", "engines/one", CONFORMANCE):
        (folder / name).write_text(f"old {name}")
    write_manifest(folder, manifest("a.onnx", "b.onnx"))
    return Bundle.open(folder)


def second(change: Change) -> None:
    """Other weights under the same names, one graph less, and a new file in a new folder."""
    change.drop("b.onnx")
    for name in ("a.onnx", "a.onnx.data", "engines/two", "new/file"):
        (change.folder / name).parent.mkdir(exist_ok=True)
        (change.folder / name).write_text(f"new {name}, longer")
    change.write(manifest("a.onnx"))


SECOND = {
    **{
        name: f"new {name}, longer" for name in ("a.onnx", "a.onnx.data", "engines/two", "new/file")
    },
    **{name: f"old {name}" for name in ("engines/one", CONFORMANCE)},
}
FIRST = {
    name: f"old {name}" for name in ("a.onnx", "a.onnx.data", "b.onnx", "engines/one", CONFORMANCE)
}


def content(bundle: Bundle) -> dict[str, str]:
    """What a reader gets, by name. A graph's weights are beside it."""
    for graph in bundle.manifest.graphs:
        path, _graph = bundle.graph("text", dialect=graph.dialect)
        for name in bundle.manifest.files_of(graph.file):
            assert (path.parent / name).read_text() == bundle.file(name).read_text()
    return {name: bundle.file(name).read_text() for name in bundle.manifest.files}


def change(path: Path) -> Bundle:
    with changed_bundle(Bundle.open(path)) as prepared:
        second(prepared)
    return Bundle.open(path)


def test_changed_bundle_has_the_new_files_and_those_that_were_kept(tmp_path: Path) -> None:
    first(tmp_path / "bundle")
    assert content(change(tmp_path / "bundle")) == SECOND
    named = {path for path in files_below(tmp_path / "bundle") if "." in path or "/" in path}
    assert named - {MANIFEST} == SECOND.keys()


@pytest.mark.slow
def test_a_death_leaves_the_old_bundle_or_the_new_one_and_the_next_change_clears_up(
    tmp_path: Path,
) -> None:
    first(tmp_path / "disk" / "bundle")
    (tmp_path / "disk" / "bundle" / "notes.txt").write_text("mine")
    with deaths(tmp_path / "disk", tmp_path / "states") as found:
        change(tmp_path / "disk" / "bundle")
    assert len(found.states) > 30
    seen = []
    for state in found.states:
        path = state / "bundle"
        seen.append(content(Bundle.open(path)))
        assert seen[-1] in (FIRST, SECOND), found.calls[len(seen) - 1]
        assert content(change(path)) == SECOND
        assert (path / "notes.txt").read_text() == "mine"
        assert set(os.listdir(path)) == {
            *(MANIFEST, CONFORMANCE, "notes.txt", "a.onnx", "a.onnx.data", "engines", "new")
        }
    assert (seen[0], seen[-1]) == (FIRST, SECOND)
    assert sum(one != other for one, other in pairwise(seen)) == 1


def test_a_death_while_a_bundle_is_made_leaves_none_or_all_of_it(tmp_path: Path) -> None:
    base = first(tmp_path / "base")
    (tmp_path / "disk").mkdir()
    with (
        deaths(tmp_path / "disk", tmp_path / "states") as found,
        changed_bundle(base, tmp_path / "disk" / "bundle") as prepared,
    ):
        second(prepared)
    outcomes = set()
    for state in found.states:
        if (state / "bundle").exists():
            assert content(Bundle.open(state / "bundle")) == SECOND
        outcomes.add((state / "bundle").exists())
        with changed_bundle(base, state / "bundle", force=True) as prepared:
            second(prepared)
        assert os.listdir(state) == ["bundle"], "what the death left is gone"
    assert outcomes == {False, True}


def test_other_files_are_kept_even_under_names_that_the_change_needs(tmp_path: Path) -> None:
    path = first(tmp_path / "bundle").path
    (path / "new").mkdir()
    for name in (".gitignore", "new/file", "engines/mine"):
        (path / name).write_text("mine")
    change(path)
    assert (path / ".gitignore").read_text() == (path / "engines/mine").read_text() == "mine"
    assert (path / "new/file").read_text() == SECOND["new/file"]
    assert [p.read_text() for p in path.glob("new/file.*.old")] == ["mine"]


def test_folder_under_the_name_of_a_file_is_kept_under_another(tmp_path: Path) -> None:
    path = first(tmp_path / "bundle").path
    for name in ("engines/two", "new/file"):
        (path / name / "deep").mkdir(parents=True)
    assert content(change(path)) == SECOND
    assert len([*path.glob("engines/two.*.old/deep"), *path.glob("new/file.*.old/deep")]) == 2


def test_files_of_another_bundle_that_is_replaced_are_removed(tmp_path: Path) -> None:
    base = first(tmp_path / "base")
    other = first(tmp_path / "other").path
    (other / "extra").write_text("of the other")
    write_manifest(other, Bundle.open(other).manifest)
    (other / "notes.txt").write_text("mine")
    with changed_bundle(base, other, force=True) as prepared:
        second(prepared)
    assert content(Bundle.open(other)) == SECOND
    assert not (other / "extra").exists()
    assert (other / "notes.txt").read_text() == "mine"
    assert content(Bundle.open(base.path)) == FIRST


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


def test_only_one_process_changes_a_bundle_at_a_time(tmp_path: Path) -> None:
    bundle = first(tmp_path / "bundle")
    code = """
        import sys
        from pathlib import Path
        from mwa_export.bundle.bundle import Bundle
        from mwa_export.bundle.update import changed_bundle

        with changed_bundle(Bundle.open(sys.argv[1])):
            print("held", flush=True)
            sys.stdin.readline()
            raise KeyboardInterrupt
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(bundle.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputBusyError, match=f"process {other.pid}"), changed_bundle(bundle):
            pass
        assert content(Bundle.open(bundle.path)) == FIRST
        other.communicate("go\n")
    assert content(change(bundle.path)) == SECOND
    assert not (bundle.path / LOCK).exists()


def test_change_of_a_bundle_that_another_has_changed_is_refused(tmp_path: Path) -> None:
    bundle = first(tmp_path / "bundle")
    change(bundle.path)
    with (
        pytest.raises(BundleError, match="was changed since it was opened"),
        changed_bundle(bundle),
    ):
        pass
    assert content(Bundle.open(bundle.path)) == SECOND


def test_copy_shares_no_file_with_its_source(tmp_path: Path) -> None:
    base = first(tmp_path / "base")
    with changed_bundle(base, tmp_path / "copy") as prepared:
        prepared.write(base.manifest)
    for name in base.manifest.files:
        assert not (base.path / name).samefile(tmp_path / "copy" / name)


def test_file_that_changed_after_it_was_opened_is_not_copied(tmp_path: Path) -> None:
    base = first(tmp_path / "base")
    (base.path / "a.onnx").write_text("else")
    with (
        pytest.raises(BundleError, match="is not the file"),
        changed_bundle(base, tmp_path / "copy") as prepared,
    ):
        prepared.write(base.manifest)
    assert not (tmp_path / "copy").exists()


def test_leftovers_of_a_hostile_bundle_remove_nothing_of_others(tmp_path: Path) -> None:
    path = first(tmp_path / "bundle").path
    (tmp_path / "victim").write_text("mine")
    (path / "out").symlink_to(tmp_path)
    (path / PENDING).mkdir()
    (path / PENDING / "manifest.json.old").write_text(
        '{"files": {"../victim": 1, "out/victim": 2, "/etc/hostname": 3, "x": []}}'
    )
    assert content(change(path)) == SECOND
    assert (tmp_path / "victim").read_text() == "mine"


def test_pending_files_of_others_content_are_not_read(tmp_path: Path) -> None:
    bundle = first(tmp_path / "bundle")
    (bundle.path / PENDING).mkdir()
    (bundle.path / PENDING / "a.onnx").write_text("old a.onnx")
    (bundle.path / "a.onnx").write_text("bad a.onnx")
    assert Bundle.open(bundle.path).file("a.onnx").parent.name == PENDING
    (bundle.path / PENDING / "a.onnx").write_text("bad a.onnx")
    with pytest.raises(BundleError, match="is not the file"):
        Bundle.open(bundle.path)


def test_failed_change_leaves_nothing(tmp_path: Path) -> None:
    bundle = first(tmp_path / "bundle")
    before = files_below(bundle.path)
    with pytest.raises(FileNotFoundError), changed_bundle(bundle) as prepared:
        (prepared.folder / "half").write_bytes(b"half" + (tmp_path / "gone").read_bytes())
    assert files_below(bundle.path) == before


def test_manifest_is_read_again_if_a_change_comes_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = first(tmp_path / "bundle")
    check = Bundle.file
    changed: list[str] = []

    def file(self: Bundle, name: str) -> Path:
        if not changed:
            changed.append(name)
            change(bundle.path)
        return check(self, name)

    monkeypatch.setattr(Bundle, "file", file)
    assert content(Bundle.open(bundle.path)) == SECOND


def test_files_are_checked_where_they_are_loaded(tmp_path: Path) -> None:
    bundle = first(tmp_path / "bundle")
    os.utime(bundle.path / "a.onnx")
    assert bundle.graph("text")[0].name == "a.onnx", "only touched"
    (bundle.path / "a.onnx.data").write_text("Old a.onnx.data")
    with pytest.raises(BundleError, match=r"a\.onnx\.data: is not the file"):
        bundle.graph("text")


def test_readers_are_not_turned_away_by_changes(tmp_path: Path) -> None:
    base = first(tmp_path / "base")
    path = first(tmp_path / "bundle").path
    ended = threading.Event()

    def read() -> int:
        count = 0
        while not ended.is_set():
            assert Bundle.open(path).manifest.files.keys() in (FIRST.keys(), SECOND.keys())
            count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for _ in range(10):
            change(path)
            with changed_bundle(base, path, force=True) as prepared:
                prepared.write(base.manifest)
        ended.set()
        assert reader.result() > 10
