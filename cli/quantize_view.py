"""Output of `quantize`: layers in INT8, recall and speed, and why layers were kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mwa_export.cli import console

if TYPE_CHECKING:
    from mwa_export.bundle.quantization import Measured
    from mwa_export.calib.quantize import Quantized

_SHOWN = 8  # kept layers; tradeoff.json has all


def show(done: Quantized) -> None:
    """Print the result on stdout."""
    found = done.quantization
    console.table(_layers(done), title="Layers in INT8")
    if found.measured and found.held_back is not None:
        title = (
            f"Against float32 on ONNX Runtime, on {found.held_back.pictures:,} held-back pictures "
            f"with {found.held_back.captions:,} captions"
        )
        header = ("", "worst recall drop", "budget", "cosine", "speed: vision", "text")
        rows = [_row(entry, found.max_recall_drop) for entry in found.measured]
        console.table(rows, header, title=title)
    if done.result is not None and done.result.kept:
        click.echo("Kept in high precision:")
        for kept in done.result.kept[:_SHOWN]:
            click.echo(f"  {kept.site.tower} {kept.site.name}: {kept.reason}")
        if len(done.result.kept) > _SHOWN:
            click.echo(f"  and {len(done.result.kept) - _SHOWN} more, see tradeoff.json")


def _layers(done: Quantized) -> list[tuple[str, str]]:
    rows = []
    for tower, kept in done.quantization.kept.items():
        total = sum(site.tower == tower for site in done.calibration.sites)
        rows.append((f"{tower} tower", f"{total - len(kept)} of {total}"))
    return rows


def _row(entry: Measured, budget: float) -> tuple[str, ...]:
    verdict = "passes" if entry.passed else "FAILS"
    return (
        f"{_RUNTIMES[entry.runtime]} {entry.precision}",
        f"{entry.recall_drop:+.2f} points" if entry.recall_drop else "none",
        f"{verdict} {budget:g}",
        f"{min(entry.mean_cosine.values()):.5f}",
        f"{entry.speedup['vision']:.2f}x",
        f"{entry.speedup['text']:.2f}x",
    )


_RUNTIMES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
