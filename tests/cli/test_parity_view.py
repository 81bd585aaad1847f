"""The terminal view starts with the verdict, fits 80 columns, and shows texts unchanged."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest
from parity_samples import identical_parity, sample_parity, undecided_parity, without_gates

from mwa_export.cli.parity_view import fail_unless_passed, show, show_overview
from mwa_export.data.test_set import Excluded
from mwa_export.errors import MwaExportError, ParityError, UndecidedError
from mwa_export.parity.reports.words import headline
from mwa_export.parity.result import Parity
from mwa_export.report.numbers import cosine, estimate, percent, points

sample = cache(sample_parity)
MARKUP = "[red]x[/red] [link=https://evil.example]y[/link] [/]"


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns and no colours."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def shown(result: Parity, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What goes to stdout and to stderr."""
    capsys.readouterr()
    show(result)
    found = capsys.readouterr()
    return found.out, found.err


def words(text: str) -> str:
    """The text without the way it is laid out."""
    return " ".join(text.split())


@pytest.mark.parametrize(
    "result",
    [
        sample(1000),
        sample(1000, damaged=False),
        identical_parity(100),
        without_gates(sample(60)),
    ],
)
def test_verdict_comes_first(result: Parity, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(result, capsys)
    assert out.strip().splitlines()[0] == headline(result)


@pytest.mark.parametrize("queries", [3, 1000, 25_000])
def test_every_recall_figure_is_shown(queries: int, capsys: pytest.CaptureFixture[str]) -> None:
    result = sample(queries, seed=5)
    lines = [line.split() for line in shown(result, capsys)[0].splitlines()]
    for d in result.directions:
        for r in d.recalls:
            estimated, counted = [
                x for x in lines if x and x[0] == f"{d.direction.upper()}@{r.k}" and len(x) > 6
            ]
            bounds = [points(r.smoothed_low), "to", points(r.smoothed_high)]
            assert estimated[1:] == [
                estimate(r.smoothed.value),
                *bounds,
                percent(r.reference, d.queries),
                percent(r.float32, d.queries),
                percent(r.candidate, d.queries),
            ]
            bounds = [points(r.low), "to", points(r.high)]
            won = [f"{r.won:,}", f"{r.lost:,}"]
            assert counted[1:7] == [points(r.difference), *bounds, *won], "nothing is folded"


def test_cosines_stages_and_layers_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    result = sample(1000)
    out = words(shown(result, capsys)[0])
    for c in result.cosines:
        figures = cosine(c.mean), cosine(c.percentile_1), cosine(c.minimum)
        assert " ".join((c.tower, *figures)) in out
    assert all(f" {stage.name} " in out for stage in result.stages)
    assert all(f" {layer.layer} " in out for layer in result.layers)


@pytest.mark.parametrize("damaged", [True, False])
def test_lines_fit_80_columns(damaged: bool, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(sample(1000, damaged=damaged), capsys)
    assert max(len(line) for line in out.splitlines()) <= 80


def test_tables_fit_80_columns_with_25_000_queries(capsys: pytest.CaptureFixture[str]) -> None:
    result = sample(25_000)
    stages = tuple(replace(s, detail="w" * 300) for s in result.stages)
    out, _ = shown(replace(result, stages=stages), capsys)
    assert max(len(line) for line in out.splitlines()) <= 80
    assert out.count("w") >= 300 * len(stages), "folded, not cut"


def test_overview_of_several_candidates_fits_80_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = {
        "onnxruntime-float32": identical_parity(1000),
        "openvino-bfloat16": undecided_parity(1000),
        "onnxruntime-int8": sample(1000),
    }
    show_overview(results)
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 80
    for name, result in results.items():
        (line,) = [line for line in out.splitlines() if line.startswith(f" {name} ")]
        assert result.verdict in line
    with pytest.raises(ParityError) as caught:
        fail_unless_passed(results, None)
    for name, result in results.items():
        assert (name in str(caught.value)) == (result.verdict != "passes")


def test_warnings_and_excluded_pictures_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    result = sample(1000)
    out, err = shown(result, capsys)
    first = result.data.excluded[0]
    for text in (*result.warnings, f"{first.picture} ({first.reason})", "with 10 captions"):
        assert text in err
        assert text not in out
    assert all(line.startswith("warning: ") for line in err.splitlines())


def hostile(text: str) -> Parity:
    """Every text from outside is that one."""
    result = sample(60)
    return replace(
        result,
        reference=replace(result.reference, name=text),
        candidate=replace(result.candidate, name=text),
        data=replace(result.data, name=text, excluded=(Excluded(text, text, 5),)),
        stages=tuple(replace(stage, detail=text) for stage in result.stages),
        warnings=(text,),
    )


def test_markup_is_shown_literally(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = shown(hostile(MARKUP), capsys)
    assert f"{MARKUP} against {MARKUP}\n{MARKUP}: 12 images" in out
    assert out.count("[red]x[/red]") >= 3 + len(sample(60).stages)
    assert f"warning: {MARKUP}\n" in err
    assert f"the first: {MARKUP} ({MARKUP})" in err


@pytest.mark.parametrize("text", ["caf\udce9.jpg", "\x1b[2Jgone\x07", "a\rwarning: none", "\0"])
def test_names_neither_stop_nor_steer_the_terminal(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = shown(hostile(text), capsys)
    assert not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", out + err)
    assert "\N{REPLACEMENT CHARACTER}" in out
    assert "\N{REPLACEMENT CHARACTER}" in err


@pytest.mark.parametrize(
    ("result", "error"), [(sample(1000), ParityError), (undecided_parity(1000), UndecidedError)]
)
def test_error_names_every_gate_that_does_not_pass(
    result: Parity, error: type[MwaExportError]
) -> None:
    with pytest.raises(error) as caught:
        fail_unless_passed({"": result}, None)
    message = str(caught.value)
    assert caught.value.exit_status == (1 if error is ParityError else 3)
    for gate in result.gates:
        name = gate.name.removesuffix(" change")
        assert (name in message) == (gate.verdict != "passes")
    assert ".;" not in message
    assert ".." not in message


def test_undecided_counts_as_what_was_asked() -> None:
    with pytest.raises(ParityError):
        fail_unless_passed({"": undecided_parity(1000)}, "fail")
    fail_unless_passed({"": undecided_parity(1000)}, "pass")


@pytest.mark.parametrize(
    "result",
    [
        sample(25_000, damaged=False),
        identical_parity(100),
        without_gates(sample(60)),
    ],
)
def test_passing_raises_nothing(result: Parity) -> None:
    fail_unless_passed({"": result}, None)
