"""In-place updates keep other files, and a crash leaves the old bundle or the new one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
from commands import files_below
from deaths import deaths
from updates import FIRST, SECOND, change, content, first, second

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import (
    CONFORMANCE,
    LOCK,
    MANIFEST,
    PENDING,
    write_manifest,
)
from mwa_export.bundle.update import changed_bundle
from mwa_export.errors import BundleError, OutputBusyError


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


def test_failed_change_leaves_nothing(tmp_path: Path) -> None:
    bundle = first(tmp_path / "bundle")
    before = files_below(bundle.path)
    with pytest.raises(FileNotFoundError), changed_bundle(bundle) as prepared:
        (prepared.folder / "half").write_bytes(b"half" + (tmp_path / "gone").read_bytes())
    assert files_below(bundle.path) == before
