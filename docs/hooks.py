"""MkDocs hooks: pages made from the README, SECURITY.md, the commands and the public API.

A page asks for generated text by a comment: `<!-- include README.md -->`, `<!-- commands -->`,
`<!-- api -->` or `<!-- exceptions -->`. On GitHub, where no hook runs, the page keeps its own text.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

import mwa_export
from mwa_export.cli.main import _COMMANDS, _STATUSES, cli

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/mwa-export/mwa-export/blob/main/"
RAW = "https://raw.githubusercontent.com/mwa-export/mwa-export/main/"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the comments of a page by what they ask for, and make its links work on the site."""
    if found := re.search(r"<!-- include (\S+) -->", markdown):
        markdown = (ROOT / found[1]).read_text(encoding="utf-8")
        relative = r"\]\((?!https?:|mailto:|#)(?:\./)?([^)\s]+)\)"
        markdown = re.sub(relative, rf"]({REPOSITORY}\1)", markdown)
    for marker, make in (("commands", _commands), ("api", _api), ("exceptions", _exceptions)):
        comment = f"<!-- {marker} -->"
        if comment in markdown:
            markdown = markdown.replace(comment, make())
    markdown = markdown.replace("```python gpu", "```python")  # a mark for the tests
    return _links(markdown)


def _links(markdown: str) -> str:
    """Lead links to pages of the site there, and links to other files to the repository."""

    def own(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        inside = (ROOT / "docs" / path).exists()
        return f"{path}{anchor}" if inside else match[0]

    def outside(match: re.Match[str]) -> str:
        return f"]({REPOSITORY}{match[1]}" if (ROOT / match[1]).exists() else match[0]

    address = "(?:" + "|".join(re.escape(base + "docs/") for base in (REPOSITORY, RAW)) + ")"
    markdown = re.sub(address + r"([\w./-]+)(#[\w-]+)?", own, markdown)
    return re.sub(r"\]\(\.\./([\w./-]+)", outside, markdown)


def _commands() -> str:
    parts = [_command(["mwa-export", name], *_loaded(name)) for name in _COMMANDS]
    same = "The same command as [`mwa-export embed`](#mwa-export-embed), with the same options.\n"
    parts.append(f"## mwa-embed\n\n{same}")
    return f"{_overview()}\n\n" + "\n\n".join(parts)


def _loaded(name: str) -> tuple[click.Command, click.Context]:
    """A command, and a context with the settings that the group hands down."""
    group = click.Context(cli, info_name="mwa-export", **cli.context_settings)
    command = cli.get_command(group, name)
    assert command is not None
    return command, click.Context(command, parent=group, info_name=name)


def _overview() -> str:
    rows = [f"| [`{name}`](#mwa-export-{name}) | {text} |" for name, text in _COMMANDS.items()]
    return "\n".join(["| command | purpose |", "| --- | --- |", *rows, "", *_statuses()])


def _statuses() -> list[str]:
    return [
        "| exit status | meaning |",
        "| ---: | --- |",
        *(f"| {n} | {m} |" for n, m in _STATUSES),
    ]


def _command(names: list[str], command: click.Command, context: click.Context) -> str:
    title = " ".join(names)
    usage = command.collect_usage_pieces(context)
    parts = [f"## {title}", _prose(command.help or "")]
    parts.append("```text\n" + " ".join([title, *usage]) + "\n```")
    parts.append(_options(command, context))
    if command.epilog:
        parts.append(_epilog(command.epilog))
    return "\n\n".join(part for part in parts if part)


def _prose(text: str) -> str:
    """Click's help text as Markdown: `\\b` paragraphs keep their lines."""
    blocks = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text).split("\f")[0]):
        if block.startswith("\b"):
            blocks.append("```text\n" + block.removeprefix("\b").strip("\n") + "\n```")
        else:
            blocks.append(" ".join(block.split()))
    return "\n\n".join(blocks)


def _epilog(text: str) -> str:
    """Examples as a code block, and anything else as prose."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = [line for line in block.splitlines() if line.strip() != "\b"]
        if not lines:
            continue
        head, code = lines[0].strip(), inspect.cleandoc("\n".join(["", *lines[1:]])).strip("\n")
        if head.startswith("Example"):
            blocks.append(f"**{head}**\n\n```shell\n{code}\n```")
        else:
            blocks.append(_prose(block.replace("\b", "").strip("\n")))
    return "\n\n".join(blocks)


def _options(command: click.Command, context: click.Context) -> str:
    rows = ["| option | description |", "| --- | --- |"]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1]:  # the usage shows arguments without a description
            rows.append(f"| `{record[0].strip()}` | {_escaped(record[1])} |")
    return "\n".join(rows)


def _escaped(text: str) -> str:
    """Help text for a table cell: one line, with the characters that Markdown would take."""
    return re.sub(r"([<*_\[|])", r"\\\1", " ".join(text.split()))


def _api() -> str:
    names = [name for name in mwa_export.__all__ if name != "__version__"]
    functions = [name for name in names if name[0].islower()]
    classes = [name for name in names if not name[0].islower()]
    parts = ["## Functions", *map(_object, functions), "## Classes", *map(_object, classes)]
    return "\n\n".join(parts)


def _object(name: str) -> str:
    module = mwa_export._WHERE[name]
    folder = module if module.startswith("calib.") else f"mwa_export.{module}"
    options = [f"heading: mwa_export.{name}"]
    if name.endswith("Options"):  # the signature has the fields
        options.append("members: false")
    return f"::: {folder}.{name}\n    options:\n" + "\n".join(f"      {o}" for o in options)


def _exceptions() -> str:
    """All exceptions, the base first."""
    errors = importlib.import_module("mwa_export.errors")
    rows = ["| exception | base | raised for |", "| --- | --- | --- |"]
    for name, kind in vars(errors).items():
        if (
            isinstance(kind, type)
            and issubclass(kind, Exception)
            and kind.__module__ == errors.__name__
        ):
            text = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
            bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
            rows.append(f"| `{name}` | {bases} | {_escaped(text)} |")
    return "\n".join(rows)
