"""Links, commands and options in README and docs exist."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path

import click
import pytest
from commands import run
from paths import ROOT

from mwa_export.cli.flags import flags_of
from mwa_export.cli.main import _COMMANDS
from mwa_export.parity import result as parity_result
from mwa_export.towers.steps import STEPS

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *DOCS]
COMMANDS = tuple(_COMMANDS)
OWN = re.compile(
    r"https://(?:github\.com/mwa-export/mwa-export/(?:blob|tree)|"
    r"raw\.githubusercontent\.com/mwa-export/mwa-export)/main/([^\s)\"'>#]+)(#[\w-]+)?"
)
SITE = re.compile(r"https://mwa-export\.github\.io/mwa-export/([^\s)\"'>#]*)")


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def anchors_of(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^(```|~~~).*?^\1", "", text_of(page), flags=re.S | re.M)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.M)
    bare = [re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in bare}


def check_anchor(page: Path, anchor: str) -> None:
    if page.suffix == ".md" and anchor:
        assert anchor.removeprefix("#") in anchors_of(page), f"{page.name}{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_anchors(page: Path) -> None:
    for target, anchor in re.findall(
        r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?", text_of(page)
    ):
        file = (page.parent / target) if target else page
        assert file.exists(), target
        check_anchor(file, anchor)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_our_own_repository_lead_to_files_and_anchors(page: Path) -> None:
    for target, anchor in OWN.findall(text_of(page)):
        assert (ROOT / target).exists(), target
        check_anchor(ROOT / target, anchor)
    for target in SITE.findall(text_of(page)):
        name = target.strip("/")
        assert not name or (ROOT / "docs" / f"{name}.md").exists(), target


def test_readme_reads_the_same_on_a_package_index() -> None:
    text = text_of(README)
    assert re.findall(r"\]\((?!https://)[^)]*\)", text) == [], "links and images are absolute"
    assert len(text.splitlines()) <= 115
    assert len(OWN.findall(text)) >= 10


def commands_in(text: str) -> list[tuple[str, str]]:
    """Every `mwa-export NAME ...` of a page: the name, and the rest of its line or code span."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(r"\bmwa-export ([a-z][\w-]*)\b([^`\n|]*)", joined)
    return [*found, *(("embed", rest) for rest in re.findall(r"\bmwa-embed\b([^`\n|]*)", joined))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_shown_exists(page: Path) -> None:
    text = re.sub(r"^```(?:text|json|console)\n.*?^```", "", text_of(page), flags=re.S | re.M)
    code = re.findall(r"^```[a-z]*\n(.*?)^```|`([^`\n]+)`|^(    .+)$", text, re.S | re.M)
    for part in ("".join(match) for match in code):
        for name, rest in commands_in(part):
            assert name in COMMANDS, f"{page.name}: mwa-export {name}"
            for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", rest):
                known = flags_of(name) | {"--help", "--version"}
                assert option in known, f"{page.name}: mwa-export {name} {option}"


def test_commands_are_found_over_continued_lines() -> None:
    text = "mwa-export parity bundle \\\n    --data x\n`mwa-embed b --images y`"
    assert commands_in(text) == [("parity", " bundle  --data x"), ("embed", " b --images y")]


def test_every_option_of_every_command_has_a_description() -> None:
    """The command reference of the site is made from these."""
    for name in COMMANDS:
        module = __import__(f"mwa_export.cli.{name}_cmd", fromlist=["command"])
        for parameter in module.command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{name} {parameter.name}"


def test_every_merge_step_is_documented() -> None:
    text = text_of(ROOT / "docs" / "merge.md")
    rows = re.findall(r"^\| `([a-z-]+)` \|", text, re.M)
    assert rows == list(STEPS)
    for step in STEPS:
        assert step in run("onnx", "--help").stdout.replace("\n", " ")


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", text_of(README), re.M))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_every_field_of_the_parity_report_is_documented() -> None:
    text = text_of(ROOT / "docs" / "report.md").split("## report.json")[1]
    documented = set(re.findall(r"`([a-z_0-9]+)`", text))
    classes = [item for item in vars(parity_result).values() if dataclasses.is_dataclass(item)]
    fields = {field.name for kind in classes for field in dataclasses.fields(kind)}
    assert fields | {"schema"} <= documented
    assert f"schema {parity_result.SCHEMA}" in text
