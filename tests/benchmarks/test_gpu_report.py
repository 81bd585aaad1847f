"""The table of benchmarks/gpu.py: targets, figures, and merged results of several calls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu
import gpu_report
import pytest

from mwa_export.errors import UsageError


def timings(**milliseconds: float) -> dict[str, Any]:
    return {
        shape: {"milliseconds": [ms], "called": [ms], "rows_per_second": 1000 / ms}
        for shape, ms in ((k.removeprefix("b"), v) for k, v in milliseconds.items())
    }


def result(**changes: Any) -> dict[str, Any]:
    """A result with every measurement, in which every target is just reached."""
    macs = {"vision": {"32": 32 * 10**9, "128": 128 * 10**9}, "text": {}}
    half = {"shapes": timings(b32=1.0, b128=1.0)}
    small = {"shapes": timings(b32=1 / 1.4, b128=1 / 1.5)}
    compiled = {"shapes": timings(b32=1.3, b128=1.3)}
    peak = {"bfloat16": {"operations_per_second": 2 * 128e9 / 1e-3 / 0.55, "shape": [1, 1, 1]}}
    change = {"TR@1": -0.2, "IR@1": 0.1, "TR@5": -3.0}
    values: dict[str, Any] = {
        "trt": {"float16": half, "int8": small, "float8": small},
        "plain": half,
        "torch": {"torch.compile float16": compiled},
        "peak": peak,
        "change": change,
    } | changes
    if "trt" not in changes:
        values["trt"]["plain-float16"] = values["plain"]
    cosine = {"vision": 0.9999, "text": 0.9998}
    return {
        "base": {
            "meta": {"macs": macs},
            "trt": {
                "gpu": "NVIDIA H100",
                "towers": {"vision": values["trt"]},
                "left_out": {"text int8": "why"},
            },
            "torch": {
                "gpu": "NVIDIA H100",
                "towers": {"vision": values["torch"]},
                "peak": values["peak"],
            },
            "parity": {"float16": {"cosine": cosine}},
        },
        "demo": {
            "meta": {"macs": macs},
            "parity": {
                p: {"cosine": cosine, "recall_change": values["change"]}
                for p in ("float16", "int8")
            },
        },
    }


def judged(**changes: Any) -> list[bool | None]:
    return [target.reached for target in gpu_report.targets(result(**changes))]


def test_targets_that_are_just_reached_are_reached() -> None:
    assert judged() == [True] * 7


@pytest.mark.parametrize(
    ("changes", "which", "verdict"),
    [
        ({"torch": {"torch.compile float16": {"shapes": timings(b128=1.29)}}}, 1, False),
        ({"torch": {}}, 1, None),
        ({"peak": {}}, 0, None),
        ({"plain": {"shapes": timings(b128=0.99)}}, 2, False),
        ({"trt": {"float16": {"shapes": timings(b32=1.0, b128=1.0)}}}, 2, None),
        ({"trt": {"float16": {"shapes": timings(b32=1.0, b128=1.0)}}}, 3, None),
        ({"trt": {"float16": {"shapes": timings(b32=1.0, b128=1.0)}}}, 4, None),
        ({"change": {"TR@1": -0.21, "IR@1": 0.0}}, 5, False),
        ({"change": {"TR@1": 0.0, "IR@1": -0.3}}, 6, False),
    ],
)
def test_targets_that_are_missed_or_not_measured_say_so(
    changes: dict[str, Any], which: int, verdict: bool | None
) -> None:
    assert judged(**changes)[which] is verdict


def test_int8_is_judged_by_its_worst_batch() -> None:
    half = {"shapes": timings(b32=1.0, b128=1.0)}
    small = {"shapes": timings(b32=1 / 1.2, b128=1 / 2.0)}
    assert judged(trt={"float16": half, "int8": small})[3] is False


def test_nothing_measured_is_nothing_claimed() -> None:
    assert [t.reached for t in gpu_report.targets({})] == [None] * 7


def test_the_table_shows_every_figure_and_what_was_left_out() -> None:
    table = gpu_report.table(result())
    assert "of the bf16 GEMM rate | >= 55 % | 55%, 128,000 pictures/s | yes |" in table
    assert "| vision | 128 | TensorRT float16 | 1.000 | 1,000 | 55% |" in table
    assert "| vision | 32 | torch.compile float16 | 1.300 |" in table
    assert "Left out: text int8: why" in table
    assert "| float16 | 0.99990 | 0.99980 | TR@1 -0.20" in table


def test_a_precision_whose_other_tower_failed_shows_the_first() -> None:
    found = result()
    found["base"]["parity"]["int8"] = {"cosine": {"vision": 0.998}}
    assert "| int8 | 0.99800 |  |  |" in gpu_report.table(found)


def test_results_of_several_calls_are_one() -> None:
    first, second = result(), result(trt={"int8": {"shapes": timings(b32=0.5)}})
    del first["base"]["torch"], first["demo"], second["base"]["parity"]
    second["base"]["trt"]["left_out"] = {}
    whole = gpu_report.merged([first, second])
    vision = whole["base"]["trt"]["towers"]["vision"]
    assert set(vision) == {"float16", "int8", "float8", "plain-float16"}
    assert vision["int8"]["shapes"]["32"]["milliseconds"] == [0.5], "the later one counts"
    assert vision["int8"]["shapes"]["128"] == timings(b128=1 / 1.5)["128"]
    assert whole["base"]["trt"]["left_out"] == {}, "a later call may have what was left out"
    assert set(whole["base"]) == {"meta", "trt", "torch", "parity"}
    assert set(whole) == {"base", "demo"}


def test_what_came_back_is_written_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second = result(), result()
    del first["base"]["torch"], second["base"]["trt"]
    for number, models in enumerate((first, second)):
        whole = {"command": f"call {number}", "machine": {"python": "3.12"}, "models": models}
        (tmp_path / f"{number}.json").write_text(json.dumps(whole))
    words = ["--merge", str(tmp_path / "0.json"), str(tmp_path / "1.json")]
    words += ["--work", str(tmp_path / "none"), "--out-folder", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--stages", "report", *words])
    gpu.main()
    written = json.loads((tmp_path / "results" / "h100.json").read_text())
    assert written["calls"] == ["call 0", "call 1"]
    assert written["machine"] == {"python": "3.12"}
    assert "1.30 x | yes" in (tmp_path / "results" / "h100.md").read_text()


def test_results_of_other_gpus_or_graphs_are_not_mixed() -> None:
    other = result()
    other["base"]["torch"]["gpu"] = other["base"]["trt"]["gpu"] = "NVIDIA H200"
    with pytest.raises(UsageError, match="H100, NVIDIA H200"):
        gpu_report.merged([result(), other])
    again = result()
    again["base"]["meta"] = {"macs": {}}
    with pytest.raises(UsageError, match=r"base: .*different graphs"):
        gpu_report.merged([result(), again])
