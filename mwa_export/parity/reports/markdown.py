"""The result as Markdown that fits a pull request comment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mwa_export.metrics.verdict import Verdict
from mwa_export.parity.reports import tables
from mwa_export.parity.reports.facts import cost_sentence, facts
from mwa_export.parity.reports.words import by_change, headline, left_out, margin_sentence
from mwa_export.parity.result import Example, Parity
from mwa_export.report.numbers import counted
from mwa_export.report.table import Table
from mwa_export.report.text import printable

MARKS: dict[Verdict, str] = {"passes": "✅", "fails": "❌", "undecided": "❔"}
_LISTED = 5  # excluded pictures
_EXAMPLES = 3  # that lost most, and that gained most
_LONGEST = 200  # characters of a text, so that all of them fit a comment of 65,536
_LONGEST_NOTE = 1000
# What Markdown acts on. The names of recall figures match first: they are no mentions.
_ACTIVE = re.compile(
    r"(?P<figure>(?<!\S)[TI]R@\d+(?!\S))|(?P<scheme>:)(?=//)|(?P<www>www)(?=\.)|[@#&<>\\`*_{}\[\]|~]",
    re.IGNORECASE,
)
_BREAK = "&#8203;"  # of no width; an escaped "@" alone is a mention all the same


def markdown_from_parity(result: Parity) -> str:
    """The verdict, the gates, the figures, and the worst queries folded away."""
    data, mark = result.data, MARKS[result.verdict] if result.gates else "❔"
    parts = [
        f"## {mark} {_escape(headline(result))}",
        f"{_escape(result.candidate.name)} against {_escape(result.reference.name)}, on "
        f"{_escape(data.name)}: {counted(data.images, 'image')}, "
        f"{counted(data.captions, 'caption')}.",
        *(f"> ⚠️ {_escape(text, _LONGEST_NOTE)}" for text in _notes(result)),
        _facts(result),
        _table(tables.recall_table(result)),
        _gates(result),
        _table(tables.flips_table(result)),
        _table(tables.cost_table(result)),
        cost_sentence(result) if result.costs else "",
        _table(tables.ranks_table(result)),
        " ".join(_escape(margin_sentence(d)) for d in result.directions),
        _table(tables.cosine_table(result)),
        _table(tables.stage_table(result)),
        _examples("The queries that lost most", result.examples),
        _examples("The queries that gained most", result.improved),
        f"<sub>mwa-export {result.version}, {result.created}. Intervals: "
        f"{result.confidence * 100:g}%, over images.</sub>",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(result: Parity) -> str:
    lines = [f"- {_escape(f.name)}: {f.value} ({_escape(f.detail)})" for f in facts(result)]
    return "\n".join(lines)


def _gates(result: Parity) -> str:
    left = [gate for gate in result.gates if gate.verdict != "passes"]
    if not left:
        return f"All {len(result.gates)} gates pass." if result.gates else "No gates were set."
    lines = [f"- {MARKS[gate.verdict]} {_escape(gate.message)}" for gate in left]
    return "\n".join(["Gates that do not pass:", "", *lines])


def _examples(title: str, examples: Sequence[Example]) -> str:
    rows = [
        (
            e.direction.upper(),
            e.picture if e.direction == "tr" else e.caption,
            f"{e.rank_before} → {e.rank_after}",
            e.winner_caption if e.direction == "tr" else e.winner_picture,
        )
        for e in by_change(examples)[:_EXAMPLES]
    ]
    body = _table(Table.of("", ("Direction", "Query", "Rank", "First instead"), rows))
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>" if body else ""


def _notes(result: Parity) -> Iterable[str]:
    yield from result.warnings
    excluded = result.data.excluded
    if excluded:
        listed = "; ".join(f"{item.picture} ({item.reason})" for item in excluded[:_LISTED])
        more = f"; and {len(excluded) - _LISTED} more" if len(excluded) > _LISTED else ""
        yield f"{left_out(result)}: {listed}{more}"


def _table(table: Table) -> str:
    """A table with its cells escaped, or nothing if it has no rows."""
    rows = [[_escape(cell) for cell in row] for row in table.rows]
    return replace(table, rows=rows).markdown()


def _escape(text: str, longest: int = _LONGEST) -> str:
    """Captions are data: no table bars, tags, links or mentions of them may take effect."""
    text = printable(" ".join(text.split()))
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return _ACTIVE.sub(_inert, text)


def _inert(match: re.Match[str]) -> str:
    found = match[0]
    if match["figure"]:
        return found
    if match["scheme"] or match["www"] or found == "@":
        return found + _BREAK
    if found == "#":
        return "\\#" + _BREAK
    return {"&": "&amp;", "<": "&lt;", ">": "&gt;"}.get(found, f"\\{found}")
