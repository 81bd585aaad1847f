"""Help, tables and paragraphs in terminals with few columns."""

from __future__ import annotations

import re
import shlex

import click
import pytest
from commands import run

from mwa_export.cli import console
from mwa_export.cli.flags import folded
from mwa_export.cli.main import _COMMANDS, cli

PAGES = ("", *_COMMANDS)


@pytest.mark.parametrize("columns", ["0", "1", "12"])
def test_tables_keep_a_width_that_can_be_read(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert "instructions" in run("doctor").stdout


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("page", PAGES)
def test_help_fits_and_breaks_no_name(
    page: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = run(*page.split(), "--help").stdout
    lines = text.splitlines()
    assert max(map(len, lines)) <= columns
    assert not [line for line in lines if re.search(r"\w-$", line)], "broken at a hyphen"
    assert not {"\N{NON-BREAKING HYPHEN}", "\N{NO-BREAK SPACE}"} & {*text}


@pytest.mark.parametrize("page", _COMMANDS)
def test_every_option_is_shown_once_whatever_its_section(page: str) -> None:
    text = run(page, "--help").stdout
    command = cli.get_command(click.Context(cli), page)
    assert command is not None
    for option in command.params:
        if isinstance(option, click.Option):
            flag = option.opts[0]
            assert len(re.findall(rf"^  {flag}(?:,| [A-Zc[]|  |$)", text, re.M)) == 1, flag


@pytest.mark.parametrize("width", [20, 58, 80])
def test_a_folded_example_is_the_same_command(width: int) -> None:
    command = "  mwa-export search vectors 'a red bus' --image-root photos -k 40 --html found.html"
    lines = folded(command, width).splitlines()
    assert all(line.endswith(" \\") for line in lines[:-1])
    joined = "".join(line.removesuffix("\\") for line in lines)
    assert shlex.split(joined) == shlex.split(command)
    assert folded("  mwa-export demo", width) == "  mwa-export demo"


def test_paragraphs_break_inside_no_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "Run pip install openvino, and see mwa-export " * 6
    for columns in (45, 60, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        console.paragraph(text)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= min(columns, 80)
        assert not any(line.endswith("-") for line in lines)
