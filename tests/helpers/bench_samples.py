"""Made-up benchmark results for tests of reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mwa_export.bench.result import (
    Bench,
    Figure,
    Kind,
    Machine,
    Peak,
    Section,
    Settings,
    Skipped,
)

PEER, OURS, BROKEN = "PyTorch eager float32", "mwa-export, OpenVINO int8", "ORT quantize_static"


def figure(name: str, kind: Kind, ratio: float, **changes: Any) -> Figure:
    base = Figure(
        name=name,
        kind=kind,
        runtime="torch",
        precision="float32",
        rows_per_second=3.456 * ratio,
        ratio=ratio,
        ratio_low=ratio * 0.9,
        ratio_high=ratio * 1.1,
        p50_ms=1234.5 / ratio,
        p99_ms=2000.0 / ratio,
        calls=45,
        gops=120.0,
        peak_share=0.61,
        cosine=None,
        cosine_rows=0,
    )
    return replace(base, **changes)


def sample() -> Bench:
    """Two sections; in the second a contender is missing."""
    vision = Section(
        tower="vision",
        batch=8,
        window=8,
        mean_length=None,
        baseline=PEER,
        figures=(
            figure(PEER, "peer", 1.0),
            figure(BROKEN, "peer", 2.0, cosine=float("nan"), cosine_rows=64, peak_share=None),
            figure(OURS, "ours", 4.7, cosine=0.99912, cosine_rows=64),
        ),
        skipped=(Skipped("NNCF int8 on OpenVINO", "peer", "nncf cannot be imported"),),
        peaks=(Peak("float32", 200.4, "OpenVINO", (1576, 768, 3072)),),
    )
    skipped = (*vision.skipped, Skipped(BROKEN, "peer", "fails on <texts> of `1` | row"))
    text = replace(
        vision,
        tower="text",
        batch=1,
        mean_length=13.24,
        figures=(vision.figures[0], vision.figures[2]),
        skipped=skipped,
        peaks=(),
    )
    return Bench(
        model="BEiT-3, width 768",
        space_id="0123456789abcdef0123",
        machine=Machine("A CPU", 2, 2, ("avx2",), "Linux x86_64", 0.1, {"python": "3.11"}),
        settings=Settings(15, 0, "40 pictures", "random ids", 64, True),
        sections=(vision, text),
        created="2026-01-02T03:04:05+00:00",
        version="1.2.3",
    )
