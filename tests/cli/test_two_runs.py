"""Report folders: defaults do not collide, and a second run for one name is handled."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import pytest
from commands import files_below, refused, run

from mwa_export.cli.options import claim_folder, output_folder

MARKER = "report.json"
COMMANDS = (
    ("parity", "absent", "--reference", "absent", "--data", "absent"),
    ("bench", "absent", "--peers", "none"),
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def default(of: str, *, force: bool = False) -> str:
    """The folder that a report about ``of`` goes to."""
    with click.Context(click.Command("parity")):
        return str(output_folder(None, Path(of), "parity", marker=MARKER, force=force))


def report(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / MARKER).write_text("{}")


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_a_second_run_for_one_folder_is_refused(
    arguments: tuple[str, ...], force: tuple[str, ...], here: Path
) -> None:
    with click.Context(click.Command("other")):
        claim_folder(Path("out"), marker=MARKER, force=False)
        message = refused(*arguments, "-o", "out", *force)
    assert message.startswith("out: is being written by process ")
    assert "absent" in refused(*arguments, "-o", "out", *force)  # as far as its input
    assert files_below(here) == {}


def test_two_bundles_and_two_runs_have_reports_of_their_own(here: Path) -> None:
    assert default("models/a/") == "a-parity"
    report(here / "a-parity")
    assert default("b") == "b-parity"
    assert default("models/a") == "a-parity-2"
    report(here / "a-parity-2")
    assert default("a") == "a-parity-3"


def test_a_run_that_works_at_the_same_time_takes_the_next_name(here: Path) -> None:
    with click.Context(click.Command("other")):
        claim_folder(Path("a-parity"), marker=MARKER, force=False)
        assert default("a") == "a-parity-2"
        with pytest.raises(Exception, match="is being written by process"):
            default("a", force=True)


def test_force_replaces_the_first_report_and_nothing_else(here: Path) -> None:
    report(here / "a-parity")
    assert default("a", force=True) == "a-parity"
    (here / "b-parity").mkdir()
    (here / "b-parity" / "precious.txt").write_text("mine")
    with pytest.raises(Exception, match="b-parity"):
        default("b", force=True)


def test_no_default_lies_inside_a_bundle(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "bundle" / "engines").mkdir(parents=True)
    (here / "bundle" / "manifest.json").write_text("{}")
    for folder in ("bundle", "bundle/engines"):
        monkeypatch.chdir(here / folder)
        assert os.path.realpath(default(str(here / "bundle"))) == str(here / "bundle-parity")
    monkeypatch.chdir(here / "bundle")
    assert Path(default(".")).resolve() == here / "bundle-parity"


def test_parity_twice_leaves_two_reports_and_no_lock(files: Path, here: Path) -> None:
    sides = (files / "bundle", "--reference", files / "bundle", "--data", files / "data")
    for name in ("bundle-parity", "bundle-parity-2"):
        done = run("parity", *sides, "--no-cache", "-q", "--undecided", "pass")
        assert done.status == 0, done
        assert done.stdout.splitlines()[-1] == str(Path(name, "report.html"))
    assert sorted(path.name for path in here.iterdir()) == ["bundle-parity", "bundle-parity-2"]
    found = json.loads((here / "bundle-parity" / MARKER).read_text())
    assert found["candidate"]["source"] == str(files / "bundle")
