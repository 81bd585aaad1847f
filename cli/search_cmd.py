"""`mwa-export search`: search the vectors that `embed` wrote by a text or an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mwa_export.cli import console
from mwa_export.cli.flags import PATH, Command, Whole, refuse
from mwa_export.cli.options import runtime_options

if TYPE_CHECKING:
    from mwa_export.search.result import Found

_EXAMPLES = """\b
Examples:
  mwa-export search vectors "a red bus"
  mwa-export search vectors "a red bus" -k 40 --html found.html
  mwa-export search vectors --image query.jpg --json
  mwa-export search vectors --image query.jpg --in texts --bundle bundle
"""


@click.command(cls=Command, epilog=_EXAMPLES)
@click.argument("output", type=PATH)
@click.argument("text", required=False)
@click.option("--image", type=PATH, help="Search by this image instead of a text.")
@click.option("-k", type=Whole(min=1), default=5, help="Number of rows to find.")
@click.option(
    "--in",
    "where",
    type=click.Choice(["images", "texts"]),
    help="Rows to search. Default: images, or texts if there are no images.",
)
@click.option(
    "--bundle",
    type=PATH,
    help="Bundle that embeds the query. Default: the one that OUTPUT was made with.",
)
@runtime_options()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--html", type=PATH, help="Write a page with the images found.")
@click.option(
    "--pictures",
    type=PATH,
    help="With --html: folder of the images, if they have moved.",
)
@click.option(
    "--open", "open_page", is_flag=True, help="With --html: open the page in the browser."
)
@console.verbosity
def command(
    output: Path,
    text: str | None,
    image: Path | None,
    where: str | None,
    as_json: bool,
    html: Path | None,
    open_page: bool,
    **how: Any,
) -> None:
    """Find the rows most similar to TEXT or an image in OUTPUT, a folder that `embed` wrote.

    Every row is compared, so the result is exact. If OUTPUT is unfinished, the rows written so far
    are searched, and a warning says what is missing.
    """
    from mwa_export.search.page import check_page, write_page
    from mwa_export.search.run import Query, open_output, search_output

    query = Query(text, image)
    if html is None:
        refuse(["pictures", "open_page"], "requires --html.")
    else:
        check_page(html)
    part = open_output(output, where)
    with console.steps() as step:
        step(f"search {part.where}", part.entry.taken)
        found = search_output(part, query, on_rows=step.advance, **how)
    console.warn(*found.warnings)
    if html is not None:
        write_page(found, html)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        _show(found)
    if html is not None:
        console.say(f"page: {html}")
        if open_page:
            console.open_in_browser(html)
    else:
        sought = ("--", text) if (text or "").startswith("-") else (text,)
        asked = sought if image is None else ("--image", image)
        console.next_step("search", output, "--html", "found.html", "--open", *asked)


def _show(found: Found) -> None:
    """Print the rows found as a table, with the columns that were carried along."""
    from mwa_export.report.numbers import counted
    from mwa_export.report.text import printable

    searched = counted(found.searched, found.where.removesuffix("s"))
    console.say(f"the best {counted(len(found.hits), 'row')} of {searched}")
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
    """Format a carried value in one line."""
    line = " ".join(str("" if value is None else value).split())
    return line if len(line) <= 80 else line[:77] + "..."
