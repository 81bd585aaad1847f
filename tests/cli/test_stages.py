"""The demo shows a line per stage, steps only with -v, and the remaining time."""

from __future__ import annotations

import time
from functools import partial

import pytest

from mwa_export.cli import console
from mwa_export.cli.demo_cmd import _Stages

SECONDS = {"Draw [images]": 1.0, "Quantize": 3.0}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither -q nor -v, whatever an earlier test ran with."""
    monkeypatch.setattr(console, "_quiet", False)
    monkeypatch.setattr(console, "_verbose", False)


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    with console.steps(partial(_Stages, SECONDS)) as step:
        assert isinstance(step, _Stages)
        step.begin("Draw [images]")
        step("draw 500 images")
        step.begin("Quantize")
        step("search the smoothing", 10)
        step.advance(10)
        step("write the manifest")
    return capsys.readouterr().err.splitlines()


def test_each_stage_is_one_line_when_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys)
    assert [line.rsplit("  ", 1)[0] for line in lines] == list(SECONDS)
    assert all(line.endswith(" s") for line in lines)


def test_verbose_shows_the_steps_of_each_stage_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_verbose", True)
    lines = shown(capsys)
    assert len(lines) == 5
    assert "search the smoothing" in lines[2]


class Line:
    """A status line that remembers what it showed."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def update(self, text: str) -> None:
        self.texts.append(text)


def test_the_time_left_follows_the_pace_of_the_stages_that_are_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rich.console import Console

    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    line, terminal = Line(), Console(width=60, quiet=True)
    stages = _Stages({"A": 10.0, "B": 20.0, "C": 30.0}, terminal, line)
    stages.begin("A")
    assert line.texts[-1].endswith("about 1 min 0 s left")
    now[0] += 20  # twice as slow as expected
    stages.begin("B")
    assert line.texts[-1].endswith("about 1 min 40 s left")
    now[0] += 10
    stages("a step whose name is far too long for a terminal of sixty columns")
    assert line.texts[-1].endswith("about 1 min 30 s left")
    assert len(line.texts[-1]) <= 60 - 2
    now[0] += 1000
    stages("late")
    assert line.texts[-1].endswith("about 1 min 0 s left"), "never less than the later stages"
