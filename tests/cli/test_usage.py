"""What a command says about its own use."""

from __future__ import annotations

import pytest
from commands import refused, run

from mwa_export.cli.main import _COMMANDS


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_shows_no_range_that_has_no_bounds(command: str) -> None:
    assert "None" not in run(command, "--help").stdout


def test_inspect_takes_a_bundle_too() -> None:
    assert "[CHECKPOINT|BUNDLE]" in run("inspect", "--help").stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "missing"), [(["bundle"], "Missing -o OUT"), (["-o", "out"], "Missing BUNDLE")]
)
def test_embed_names_the_one_that_is_missing(arguments: list[str], missing: str) -> None:
    status, _, stderr = run("embed", *arguments)
    assert status == 2
    assert f"Error: {missing}." in stderr


def test_a_part_of_no_machines_is_refused_without_an_impossible_range() -> None:
    message = refused("embed", "bundle", "--texts", "a.txt", "-o", "out", "--shard", "1/0")
    assert "N to be at least 1" in message
