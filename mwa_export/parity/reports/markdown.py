"""The parity report as Markdown that fits into a pull request comment."""

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
_LISTED = 5  # excluded images
_EXAMPLES = 3  # of the largest losses, and of the largest gains
_LONGEST = 200  # characters of a text, so that the report stays below 65,536
_LONGEST_NOTE = 1000
# Markdown syntax. Names of recall figures match first, because "TR@1" is not a mention.
_ACTIVE = re.compile(
    r"(?P<figure>(?<!\S)[TI]R@\d+(?!\S))|(?P<scheme>:)(?=//)|(?P<www>www)(?=\.)|[@#&<>\\`*_{}\[\]|~]",
    re.IGNORECASE,
)
_BREAK = "&#8203;"  # zero-width space; an escaped "@" would still be a mention


def markdown_from_parity(result: Parity) -> str:
    """Return the verdict, gates and figures, and the most changed queries in folded sections."""
    data, mark = result.data, MARKS[result.verdict] if result.gates else "❔"
    parts = [
        f"## {mark} {_escape(headline(result))}",
        f"{_escape(result.candidate.name)}, reference: {_escape(result.reference.name)}, on "
        f"{_escape(data.name)}: {counted(data.images, 'image')}, "
        f"{counted(data.captions, 'caption')}.",
        *(f"> ⚠️ {_escape(text, _LONGEST_NOTE)}" for text in _notes(result)),
        _facts(result),
        _table(tables.recall_table(result)),
        _gates(result),
        f"Plain count of queries:\n\n{_table(tables.flips_table(result))}",
        _table(tables.cost_table(result)),
        cost_sentence(result) if result.costs else "",
        _table(tables.ranks_table(result)),
        " ".join(_escape(margin_sentence(d)) for d in result.directions),
        _table(tables.cosine_table(result)),
        _table(tables.stage_table(result)),
        _examples("Largest losses of rank", result.examples),
        _examples("Largest gains of rank", result.improved),
        f"<sub>mwa-export {result.version}, {result.created}. Intervals: "
        f"{result.confidence * 100:g}% confidence, images as the sampled unit.</sub>",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(result: Parity) -> str:
    lines = [f"- {_escape(f.name)}: {f.value} ({_escape(f.detail)})" for f in facts(result)]
    return "\n".join(lines)


def _gates(result: Parity) -> str:
    left = [gate for gate in result.gates if gate.verdict != "passes"]
    if not left:
        return f"All {len(result.gates)} gates pass." if result.gates else "No gate was set."
    lines = [f"- {MARKS[gate.verdict]} {_escape(gate.message)}" for gate in left]
    return "\n".join(["Gates that did not pass:", "", *lines])


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
    body = _table(Table.of("", ("Direction", "Query", "Rank", "Wrong answer ranked first"), rows))
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>" if body else ""


def _notes(result: Parity) -> Iterable[str]:
    yield from result.warnings
    excluded = result.data.excluded
    if excluded:
        listed = "; ".join(f"{item.picture} ({item.reason})" for item in excluded[:_LISTED])
        more = f"; and {len(excluded) - _LISTED} more" if len(excluded) > _LISTED else ""
        yield f"{left_out(result)}: {listed}{more}"


def _table(table: Table) -> str:
    """Return the table with escaped cells, or an empty string if it has no rows."""
    rows = [[_escape(cell) for cell in row] for row in table.rows]
    return replace(table, rows=rows).markdown()


def _escape(text: str, longest: int = _LONGEST) -> str:
    """Escape data such as captions, so that no table bar, tag, link or mention takes effect."""
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
