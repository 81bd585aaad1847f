"""`mwa-export search`: look into the vectors that `embed` wrote, by a text or a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mwa_export.cli import console
from mwa_export.cli.options import runtime_options
from mwa_export.cli.values import PATH, Whole, refuse

if TYPE_CHECKING:
    from mwa_export.search.result import Found

_EXAMPLES = """\b
Examples:
  mwa-export search vectors "a red bus"
  mwa-export search vectors "a red bus" -k 40 --html found.html
  mwa-export search vectors --image query.jpg --json
  mwa-export search vectors --image query.jpg --in texts --bundle bundle
"""


@click.command(epilog=_EXAMPLES)
@click.argument("output", type=PATH)
@click.argument("text", required=False)
@click.option("--image", type=PATH, help="Search by this picture instead of a text.")
@click.option("-k", type=Whole(min=1), default=5, help="Number of rows to find.")
@click.option(
    "--in",
    "where",
    type=click.Choice(["images", "texts"]),
    help="What to search; default: images, or texts where there are only texts.",
)
@click.option(
    "--bundle", type=PATH, help="Embeds the query; default: the bundle that OUTPUT was made with."
)
@runtime_options()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--html", type=PATH, help="Write a contact sheet: one page with the pictures found.")
@click.option(
    "--pictures",
    type=PATH,
    help="For --html: the folder that the pictures' ids are relative to, if they have moved.",
)
@console.verbosity
def command(
    output: Path,
    text: str | None,
    image: Path | None,
    where: str | None,
    as_json: bool,
    html: Path | None,
    **how: Any,
) -> None:
    """Find the rows of OUTPUT, a folder that `embed` wrote, that are most like TEXT or a picture.

    Every row is compared, so the result is exact. An unfinished OUTPUT is searched as far as it
    goes, with a warning about what is missing.
    """
    from mwa_export.search.page import check_page, write_page
    from mwa_export.search.run import Query, open_output, search_output

    query = Query(text, image)
    if html is None:
        refuse(["pictures"], "belongs to --html, which was not given.")
    else:
        check_page(html)
    part = open_output(output, where)
    with console.steps() as step:
        step(f"search {part.where}", part.entry.taken)
        found = search_output(part, query, on_rows=step.advance, **how)
    console.warn(*found.warnings)
    if html is not None:
        write_page(found, html)
        console.say(f"contact sheet: {html}")
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        _show(found)


def _show(found: Found) -> None:
    """The rows found as a table, with as many columns as were carried along."""
    from mwa_export.report.numbers import counted
    from mwa_export.report.text import printable

    searched = counted(found.searched, found.where.removesuffix("s"))
    console.say(f"the {counted(len(found.hits), 'best row')} of {searched}")
    if not found.hits:
        return
    names = list(found.hits[0].columns)
    rows = [
        [
            str(hit.rank),
            f"{hit.score:.4f}",
            printable(hit.id),
            *(printable(_cell(hit.columns.get(name))) for name in names),
        ]
        for hit in found.hits
    ]
    console.table(rows, ["", "score", "id", *map(printable, names)])


def _cell(value: object) -> str:
    """A carried value in one line."""
    line = " ".join(str("" if value is None else value).split())
    return line if len(line) <= 80 else line[:77] + "..."
