"""Two runs that would write one folder: the second is refused before it works."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from commands import files_below, refused, run

from mwa_export.cli.options import claim_folder


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize(
    "arguments",
    [
        ("parity", "absent", "--reference", "absent", "--data", "absent"),
        ("bench", "absent", "--peers", "none"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_second_run_for_the_default_folder_is_refused(
    arguments: tuple[str, ...],
    force: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    default = Path(arguments[0])
    with click.Context(click.Command("other")):
        claim_folder(default, marker="report.json", force=False)
        message = refused(*arguments, *force)
    assert message.startswith(f"{default}: is being written by process ")
    assert "absent" in refused(*arguments, *force)  # now it comes as far as its input
    assert files_below(tmp_path) == {}


def test_a_report_leaves_no_lock(files: Path, tmp_path: Path) -> None:
    sides = (files / "bundle", "--reference", files / "bundle", "--data", files / "data")
    done = run(
        "parity", *sides, "-o", tmp_path / "parity", "--no-cache", "-q", "--undecided", "pass"
    )
    assert done.status == 0, done
    assert [path.name for path in tmp_path.iterdir()] == ["parity"]
