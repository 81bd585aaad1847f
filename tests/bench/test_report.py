"""Content of the benchmark's files."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench_samples import BROKEN, OURS, PEER, figure, sample
from paths import ROOT

from mwa_export.bench import result as bench_result
from mwa_export.bench.chart import svg_from_bench
from mwa_export.bench.report import (
    markdown_from_bench,
    method,
    skipped_lines,
    table_of,
)
from mwa_export.bench.result import SCHEMA, Bench
from mwa_export.bench.write import write_bench
from mwa_export.errors import BundleError
from mwa_export.report.numbers import DASH

DOCS = ROOT / "docs" / "bench.md"
SVG = "{http://www.w3.org/2000/svg}"


def test_json_round_trip_keeps_every_field() -> None:
    result = sample()
    finite = replace(
        result.sections[0], figures=tuple(f for f in result.sections[0].figures if f.name != BROKEN)
    )
    result = replace(result, sections=(finite, result.sections[1]))
    text = json.dumps(result.to_json())
    assert json.loads(text)["schema"] == SCHEMA
    assert Bench.from_json(_without_schema(json.loads(text))) == result


def test_files_are_written_together_and_parse(tmp_path: Path) -> None:
    page = write_bench(sample(), tmp_path / "out")
    assert page == tmp_path / "out" / "bench.html"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["bench.html", "bench.json", "bench.md", "bench.svg"]
    read = json.loads((tmp_path / "out" / "bench.json").read_text())
    broken = read["sections"][0]["figures"][1]
    assert broken["name"] == BROKEN
    assert broken["cosine"] is None  # NaN, which JSON does not have
    ElementTree.parse(tmp_path / "out" / "bench.svg")


def test_existing_folder_is_replaced_only_with_force(tmp_path: Path) -> None:
    write_bench(sample(), tmp_path / "out")
    with pytest.raises(BundleError, match="exists"):
        write_bench(sample(), tmp_path / "out")
    write_bench(sample(), tmp_path / "out", force=True)


def test_table_has_the_fastest_first_and_shows_a_broken_peer() -> None:
    head, *rows = table_of(sample().sections[0])
    assert head[0] == "contender"
    assert head[7] == "peak"
    assert [row[0] for row in rows] == [OURS, BROKEN, PEER]
    assert rows[0][1:6] == ("16.2", "4.70x", "262.7", "425.5", "45")
    assert rows[0][7:] == ("61%", "0.9991")
    assert rows[1][7:] == (DASH, DASH)
    assert rows[2][8] == "1"


def test_without_cosines_the_baseline_has_none_either() -> None:
    section = sample().sections[0]
    plain = replace(section, figures=(figure(PEER, "peer", 1.0), figure(OURS, "ours", 2.0)))
    assert {row[8] for row in table_of(plain)[1:]} == {DASH}


def test_without_a_peak_there_is_no_column_and_no_word_of_it() -> None:
    text = sample().sections[1]
    head, *rows = table_of(text)
    assert "peak" not in head
    assert {len(row) for row in rows} == {len(head)}
    assert "Peak is" in "".join(method(sample()))
    assert "Peak is" not in "".join(method(replace(sample(), sections=(text,))))


def test_skipped_contenders_are_told_once_with_their_reason() -> None:
    lines = skipped_lines(sample())
    assert lines[0] == "NNCF int8 on OpenVINO: nncf cannot be imported"
    assert lines[1].endswith("row (text 1)")
    page = markdown_from_bench(sample())
    assert page.count("nncf cannot be imported") == 1
    assert "\\<texts\\> of \\`1\\` \\| row" in page


def test_page_names_baseline_window_peak_and_method() -> None:
    page = markdown_from_bench(sample())
    for text in (
        "Baseline: PyTorch eager float32. In each round, every contender embeds 8 images",
        "13.2 tokens on average",
        "float32 200 GOP/s (OpenVINO, 1576 x 768 x 3072)",
        "Each of 15 rounds",
        "pad every caption to 64 tokens",
        "A CPU, 2 cores, 2 threads; avx2",
    ):
        assert text in page, text


def test_noise_and_a_busy_machine_are_admitted() -> None:
    result = sample()
    quiet = "\n".join(method(result))
    assert "noise" not in quiet
    assert "busy" not in quiet
    result = replace(
        result,
        settings=replace(result.settings, real=False),
        machine=replace(result.machine, load=1.9),
    )
    told = "\n".join(method(result))
    assert "calibrated with noise" in told
    assert "The machine was busy: in the minute before, the load average was 1.9" in told


def test_chart_has_a_bar_per_contender_as_long_as_its_ratio() -> None:
    root = ElementTree.fromstring(svg_from_bench(sample()))
    bars = [r for r in root.iter(f"{SVG}rect") if r.get("class") in ("ours", "peer")]
    assert [bar.get("class") for bar in bars] == ["peer", "peer", "ours", "peer", "ours"]
    widths = [float(bar.get("width", 0)) for bar in bars[:3]]
    assert widths[2] / widths[0] == pytest.approx(4.7, rel=0.01)
    assert widths[1] / widths[0] == pytest.approx(2.0, rel=0.01)
    texts = ["".join(t.itertext()) for t in root.iter(f"{SVG}text")]
    assert "vision tower, batch of 8: images per second" in texts
    assert "4.70x, 16.2/s" in texts
    assert "prefers-color-scheme: dark" in svg_from_bench(sample())


def test_nothing_in_the_chart_leaves_it() -> None:
    root = ElementTree.fromstring(svg_from_bench(sample()))
    width, height = (float(v) for v in root.get("viewBox", "").split()[2:])
    for rect in root.iter(f"{SVG}rect"):
        right = float(rect.get("x", 0)) + float(rect.get("width", 0))
        assert right <= width
        assert float(rect.get("y", 0)) + float(rect.get("height", 0)) <= height
    for text in root.iter(f"{SVG}text"):
        # 7 pixels a character are more than the font takes at these sizes.
        length, x = 7 * len("".join(text.itertext())), float(text.get("x", 0))
        ends = {"start": (x, x + length), "end": (x - length, x)}
        left, right = ends.get(text.get("text-anchor", ""), (x, x))
        assert left >= 0, "".join(text.itertext())
        assert right <= width, "".join(text.itertext())


def test_every_field_of_the_benchmark_is_documented() -> None:
    text = DOCS.read_text(encoding="utf-8").split("## bench.json")[1]
    documented = set(re.findall(r"`([a-z_0-9]+)`", text))
    classes = [item for item in vars(bench_result).values() if dataclasses.is_dataclass(item)]
    fields = {field.name for kind in classes for field in dataclasses.fields(kind)}
    assert fields | {"schema"} <= documented
    assert f"schema {SCHEMA}" in text


def _without_schema(data: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in data.items() if name != "schema"}
