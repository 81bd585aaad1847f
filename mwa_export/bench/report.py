"""The benchmark as Markdown, and its tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mwa_export.bench.chart import by_speed, heading, rate
from mwa_export.bench.result import Bench, Figure, Section
from mwa_export.report.numbers import DASH
from mwa_export.report.text import markdown_table, printable

_PEAK_MEANS = " Peak is GOP/s relative to the fastest GEMM of that precision in the same round."
_BUSY = 0.3  # load per core from which the report warns
_HEAD = ("contender", "rows/s", "speed", "p50 ms", "p99 ms", "calls", "GOP/s", "peak", "cosine")
_PEAK = _HEAD.index("peak")


def markdown_from_bench(result: Bench) -> str:
    """Return machine, method, a table per section, and what did not run."""
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    parts = [
        f"# Embedding speed: {_escape(result.model)}",
        f"{_escape(machine.cpu)}, {machine.cores} cores, {machine.threads} threads; "
        f"{' '.join(machine.instruction_sets) or 'instruction sets unknown'}; "
        f"{_escape(machine.system)}. {_escape(versions)}.",
        "![Speed of every contender](bench.svg)",
        *(_section(section) for section in result.sections),
        *(["## Not measured", _list(skipped)] if (skipped := skipped_lines(result)) else []),
        "## Method",
        _list(method(result)),
        f"<sub>mwa-export {result.version}, {result.created}, "
        f"embedding space {result.space_id[:16]}</sub>",
    ]
    return "\n\n".join(parts) + "\n"


def table_of(section: Section) -> list[tuple[str, ...]]:
    """Table of a section: the head, then a row per contender, fastest first.

    The column "peak" is left out if no peak was measured.
    """
    rows = [_HEAD, *(_row(figure, section) for figure in reversed(by_speed(section)))]
    return rows if section.peaks else [row[:_PEAK] + row[_PEAK + 1 :] for row in rows]


def peak_sentence(section: Section) -> str:
    """Describe the GEMM peak of this machine; empty if it was not measured."""
    if not section.peaks:
        return ""
    listed = ", ".join(
        f"{peak.precision} {peak.gops:,.0f} GOP/s ({peak.tool}, {' x '.join(map(str, peak.shape))})"
        for peak in section.peaks
    )
    return f"Peak of this machine, measured in the same rounds: {listed}."


def window_sentence(section: Section) -> str:
    """Describe one round of a section."""
    if section.mean_length is None:
        return f"In each round, every contender embeds {section.window} images."
    return (
        f"In each round, every contender embeds {section.window} captions, with "
        f"{section.mean_length:.1f} tokens on average."
    )


def method(result: Bench) -> list[str]:
    """Describe how the figures were measured."""
    settings = result.settings
    peaks = any(section.peaks for section in result.sections)
    lines = [
        f"Each of {settings.rounds} rounds runs every contender once, in shuffled order "
        f"(seed {settings.seed}). Before that, every contender runs each input shape once untimed.",
        "Speed is the median over the rounds of the ratio to the baseline in the same round. "
        "rows/s is the median over the rounds, and describes only this machine at this time.",
        "p50 and p99 are times of single calls with one batch. Times start at uint8 pixels or "
        "token ids and end at embeddings in memory. They include scaling, sorting and padding, but "
        "not decoding and tokenizing.",
        "ORT is ONNX Runtime. GOP/s counts a multiply-accumulate in a contender's GEMMs as two "
        "operations, including padding. Merged graphs need fewer operations, so compare speed, not "
        f"GOP/s.{_PEAK_MEANS if peaks else ''}",
        f"Images: {settings.pictures}. Captions: {settings.captions}.",
        f"Peers pad every caption to {settings.max_length} tokens, as the reference does. "
        "mwa-export sorts the captions of a round by length and pads each batch to its longest "
        "caption.",
    ]
    machine = result.machine
    if machine.load is not None and machine.load > _BUSY * machine.cores:
        lines.append(
            f"The machine was busy: in the minute before, the load average was {machine.load:g} on "
            f"{machine.cores} cores, which slows PyTorch most. Run again when it is idle."
        )
    if not settings.real:
        lines.append(
            "Some inputs are random. Quantized peers were calibrated with noise, so only their "
            "speed is meaningful, and no cosines are reported."
        )
    return lines


def skipped_lines(result: Bench) -> list[str]:
    """List what did not run and why; sections with the same reason are merged."""
    where: dict[tuple[str, str], list[str]] = {}
    for section in result.sections:
        for item in section.skipped:
            places = where.setdefault((item.name, item.reason), [])
            places.append(f"{section.tower} {section.batch}")
    everywhere = len(result.sections)
    return [
        f"{name}: {reason}" + ("" if len(places) == everywhere else f" ({', '.join(places)})")
        for (name, reason), places in where.items()
    ]


def _section(section: Section) -> str:
    head, *rows = table_of(section)
    lines = [
        f"## {heading(section)}",
        f"Baseline: {_escape(section.baseline)}. {window_sentence(section)} "
        f"{peak_sentence(section)}".rstrip(),
        markdown_table(head, [[_escape(cell) for cell in row] for row in rows]),
    ]
    return "\n\n".join(lines)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _row(figure: Figure, section: Section) -> tuple[str, ...]:
    share = DASH if figure.peak_share is None else f"{100 * figure.peak_share:.0f}%"
    has_cosines = any(other.cosine is not None for other in section.figures)
    return (
        figure.name,
        rate(figure),
        f"{figure.ratio:.2f}x",
        f"{figure.p50_ms:,.1f}",
        f"{figure.p99_ms:,.1f}",
        f"{figure.calls}",
        f"{figure.gops:,.0f}",
        share,
        "1" if section.baseline == figure.name and has_cosines else _cosine(figure.cosine),
    )


def _cosine(value: float | None) -> str:
    """Format a cosine with four digits; `parity` measures the loss of recall."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.4f}"


def _escape(text: str) -> str:
    for character in "\\`*_<>|[]":
        text = text.replace(character, f"\\{character}")
    return printable(" ".join(text.split()))
