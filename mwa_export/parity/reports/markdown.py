"""The result as Markdown that fits a pull request comment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mwa_export.metrics.verdict import Verdict
from mwa_export.parity.reports.words import (
    COSINE_HEAD,
    cosine_rows,
    drift,
    figures,
    has_float32,
    headline,
    left_out,
    margin_sentence,
    rank_cells,
    recall_cells,
)
from mwa_export.parity.result import Parity
from mwa_export.report.numbers import count, counted, p_value, percent
from mwa_export.report.text import markdown_table, printable

MARKS: dict[Verdict, str] = {"passes": "✅", "fails": "❌", "undecided": "❔"}
_LISTED = 5  # examples, excluded pictures
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
        _recall_table(result),
        _ranks_table(result),
        " ".join(_escape(margin_sentence(d)) for d in result.directions),
        _table(COSINE_HEAD, cosine_rows(result)),
        _table(
            ("stage", "drift", "compared"),
            [(s.name, drift(s), _escape(s.detail)) for s in result.stages],
        ),
        _gates(result),
        _examples(result),
        f"<sub>mwa-export {result.version}, {result.created}. Intervals: "
        f"{result.confidence * 100:g}%, from "
        "margins, over images.</sub>",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _recall_table(result: Parity) -> str:
    exact = has_float32(result)
    rows = []
    for name, n, change in figures(result):
        reference, *others = recall_cells(change, n)
        float32 = [percent(change.float32, n)] if exact else []
        changed = (count(change.won), count(change.lost), p_value(change.p_value))
        rows.append((name, reference, *float32, *others, *changed))
    head: tuple[str, ...] = ("recall", "reference")
    head += ("candidate's float32", "candidate") if exact else ("candidate",)
    interval = f"{result.confidence * 100:g}% interval"
    head = (*head, "points by flips", "points by margins", interval)
    return _table((*head, "won", "lost", "McNemar p"), rows)


def _ranks_table(result: Parity) -> str:
    head = ("direction", "mean rank", "median rank", "queries of another rank", "same top 10")
    return _table(head, [rank_cells(direction, "→") for direction in result.directions])


def _gates(result: Parity) -> str:
    left = [gate for gate in result.gates if gate.verdict != "passes"]
    if not left:
        return f"All {len(result.gates)} gates pass." if result.gates else "No gates were set."
    lines = [f"- {MARKS[gate.verdict]} {_escape(gate.message)}" for gate in left]
    return "\n".join(["Gates that do not pass:", "", *lines])


def _examples(result: Parity) -> str:
    rows = [
        (
            e.direction.upper(),
            _escape(e.picture if e.direction == "tr" else e.caption),
            f"{e.rank_before} → {e.rank_after}",
            _escape(e.winner_caption if e.direction == "tr" else e.winner_picture),
        )
        for e in sorted(result.examples, key=lambda e: -e.rank_after / e.rank_before)[:_LISTED]
    ]
    body = _table(("direction", "query", "rank", "now first"), rows)
    if not body:
        return ""
    return f"<details><summary>The worst-changed queries</summary>\n\n{body}\n\n</details>"


def _notes(result: Parity) -> Iterable[str]:
    yield from result.warnings
    excluded = result.data.excluded
    if excluded:
        listed = "; ".join(f"{item.picture} ({item.reason})" for item in excluded[:_LISTED])
        more = f"; and {len(excluded) - _LISTED} more" if len(excluded) > _LISTED else ""
        yield f"{left_out(result)}: {listed}{more}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, or nothing if it has no rows."""
    rows = list(rows)
    return markdown_table(head, rows) if rows else ""


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
