"""README and docs stay true: links lead somewhere, commands and options exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from commands import run
from paths import ROOT

from mwa_export.cli.main import _COMMANDS
from mwa_export.parity import result as parity_result
from mwa_export.towers.steps import STEPS

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = tuple(_COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_command_and_option_in_the_docs_exists() -> None:
    known = {name: run(name, "--help").stdout for name in COMMANDS}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"mwa-export ([a-z]+)", text):
            assert name in COMMANDS, f"{page.name}: {name}"
        for line in re.findall(
            r"^\s*(?:\| `)?mwa-export ((?:onnx|inspect|split|demo|parity|bench) .*)$", text, re.M
        ):
            name = line.split()[0]
            for option in re.findall(r"--[a-z-]+", line):
                assert option in known[name], f"{page.name}: {name} {option}"


def test_every_merge_step_is_documented() -> None:
    text = (ROOT / "docs" / "merge.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \|", text, re.M)
    assert rows == list(STEPS)
    for step in STEPS:
        assert step in run("onnx", "--help").stdout.replace("\n", " ")


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:`|    )make ([a-z]+)", (ROOT / "README.md").read_text()))
    assert named
    assert named <= targets


def test_every_field_of_the_parity_report_is_documented() -> None:
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8").split("## report.json")[1]
    documented = set(re.findall(r"`([a-z_0-9]+)`", text))
    classes = [item for item in vars(parity_result).values() if dataclasses.is_dataclass(item)]
    fields = {field.name for kind in classes for field in dataclasses.fields(kind)}
    assert fields | {"schema"} <= documented
    assert f"schema {parity_result.SCHEMA}" in text
