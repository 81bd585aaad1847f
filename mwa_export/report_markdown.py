"""The result as Markdown that fits a pull request comment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mwa_export.parity_result import DirectionResult, Parity
from mwa_export.report_numbers import cosine, count, p_value, percent, points, share
from mwa_export.report_words import drift, headline

_LISTED = 5  # examples, excluded pictures


def markdown_from_parity(result: Parity) -> str:
    """The verdict, the gates, the figures, and the worst queries folded away."""
    data = result.data
    parts = [
        f"## {'✅' if result.passed else '❌'} {_escape(headline(result))}",
        f"{_escape(result.candidate.name)} against {_escape(result.reference.name)}, on "
        f"{_escape(data.name)}: {data.images:,} images, {data.captions:,} captions.",
        *(f"> ⚠️ {_escape(text)}" for text in _notes(result)),
        _recall_table(result),
        _ranks_table(result),
        _cosine_table(result),
        _stage_table(result),
        _gates(result),
        _examples(result),
        f"<sub>mwa-export {result.version}, {result.created}. Intervals: "
        f"{result.confidence * 100:g} %, "
        f"paired bootstrap over images, {result.resamples:,} resamples, seed {result.seed}.</sub>",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _recall_table(result: Parity) -> str:
    rows = []
    for direction in result.directions:
        for change in direction.recalls:
            n = direction.queries
            rows.append(
                (
                    f"{direction.direction.upper()}@{change.k}",
                    percent(change.reference, n),
                    percent(change.candidate, n),
                    points(change.difference),
                    f"{points(change.low)} to {points(change.high)}",
                    count(change.won),
                    count(change.lost),
                    p_value(change.p_value),
                )
            )
    head = ("recall", "reference", "candidate", "points", f"{result.confidence * 100:g} % interval")
    return _table((*head, "won", "lost", "McNemar p"), rows)


def _ranks_table(result: Parity) -> str:
    def row(direction: DirectionResult) -> tuple[str, ...]:
        (mean, new_mean), (median, new_median) = direction.mean_rank, direction.median_rank
        return (
            direction.direction.upper(),
            f"{mean:.2f} → {new_mean:.2f}",
            f"{median:g} → {new_median:g}",
            f"{direction.changed_ranks:,} of {direction.queries:,}",
            f"{share(direction.overlap)} %",
        )

    head = ("direction", "mean rank", "median rank", "queries of another rank", "same top 10")
    return _table(head, map(row, result.directions))


def _cosine_table(result: Parity) -> str:
    rows = [
        (c.tower, cosine(c.mean), cosine(c.percentile_1), cosine(c.minimum)) for c in result.cosines
    ]
    return _table(("cosine", "mean", "1st percentile", "minimum"), rows)


def _stage_table(result: Parity) -> str:
    rows = [(s.name, drift(s), _escape(s.detail)) for s in result.stages]
    return _table(("stage", "drift", "compared"), rows) if rows else ""


def _gates(result: Parity) -> str:
    failed = [gate for gate in result.gates if not gate.passed]
    if not failed:
        return f"All {len(result.gates)} gates pass." if result.gates else "No gates were set."
    return "\n".join(["Failed gates:", "", *(f"- {_escape(gate.message)}" for gate in failed)])


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
    if not rows:
        return ""
    body = _table(("direction", "query", "rank", "now first"), rows)
    return f"<details><summary>The worst-changed queries</summary>\n\n{body}\n\n</details>"


def _notes(result: Parity) -> Iterable[str]:
    yield from result.warnings
    excluded = result.data.excluded
    if excluded:
        captions = sum(item.captions for item in excluded)
        listed = "; ".join(f"{item.picture} ({item.reason})" for item in excluded[:_LISTED])
        more = f"; and {len(excluded) - _LISTED} more" if len(excluded) > _LISTED else ""
        yield (
            f"{len(excluded)} pictures were left out with their {captions} captions: {listed}{more}"
        )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _escape(text: str) -> str:
    """Captions are data: no table bars, tags, links or mentions of them may take effect."""
    text = " ".join(text.split())
    text = re.sub(r"[\\`*_{}\[\]|#~]", r"\\\g<0>", text.replace("&", "&amp;"))
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
