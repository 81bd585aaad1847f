"""The chart of the demo fits narrow plain terminals and is truthful."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

from parity_samples import sample_parity

from mwa_export.demo.chart import chart
from mwa_export.parity.result import Cost, Parity

sample = cache(sample_parity)
MS = {"reference": (4.0, 2.0), "float32": (2.0, 2.0), "candidate": (1.0, 2.0)}


def result(**costs: tuple[float | None, float | None]) -> Parity:
    sides = [
        Cost(side, {"float32": 8_000_000}.get(side, 4_000_000), *(costs | {})[side])  # type: ignore[arg-type]
        for side in MS
        if side in costs
    ]
    return replace(sample(1000), costs=tuple(sides))


def test_no_line_is_wider_than_sixty_columns_or_needs_more_than_ascii_and_a_minus() -> None:
    lines = chart(result(**MS))
    assert max(map(len, lines)) <= 60
    assert "".join(lines).replace("\N{MINUS SIGN}", "-").isascii()
    assert not any(line != line.rstrip() for line in lines)


def test_bars_are_as_long_as_the_numbers_are_large() -> None:
    lines = chart(result(**MS))
    speed = lines[lines.index("Images per second") + 1 :][:3]
    assert [line.count("#") for line in speed] == [6, 12, 24]
    assert [re.findall(r"[\d,.]+x?$", line)[0] for line in speed] == ["250", "2.00x", "4.00x"]
    size = lines[lines.index("Size in MB") + 1 :][:2]
    assert [line.count("#") for line in size] == [24, 12]
    assert size[1].endswith("0.50x")


def test_a_side_that_was_not_timed_has_no_bar() -> None:
    lines = chart(result(**MS | {"reference": (None, None)}))
    assert not any("PyTorch" in line for line in lines)
    assert "Images per second" in lines


def test_every_recall_figure_has_its_interval_on_the_axis() -> None:
    parity = result(**MS)
    lines = [line for line in chart(parity) if re.match(r"  [TI]R@", line)]
    changes = [change for d in parity.directions for change in d.recalls]
    assert len(lines) == len(changes) == 6
    for line, change in zip(lines, changes, strict=True):
        axis = line[8:33]
        assert axis.count("*") == 1
        zero, estimate = 12, axis.index("*")
        if abs(change.smoothed.value) > 0.5:
            assert (estimate > zero) == (change.smoothed.value > 0)
        ends = [place for place, mark in enumerate(axis) if mark in "-*"]
        assert min(ends) <= estimate <= max(ends)


def test_a_change_beyond_the_usual_axis_stays_on_it() -> None:
    (tr, ir) = sample(1000).directions
    first = replace(tr.recalls[0], smoothed_low=-40.0, smoothed_high=3.0)
    moved = replace(tr, recalls=(first, *tr.recalls[1:]))
    lines = chart(replace(result(**MS), directions=(moved, ir)))
    assert max(map(len, lines)) <= 60
    assert next(line for line in lines if line.startswith("  TR@1"))[8] == "-"
