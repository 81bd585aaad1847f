"""What `quantize` prints: what was chosen, what it costs, what it gains, what stayed and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mwa_export.cli import console

if TYPE_CHECKING:
    from mwa_export.calib.quantize import Quantized

_SHOWN = 8  # kept layers; tradeoff.json has all


def show(done: Quantized) -> None:
    """Print the result on stdout."""
    quantization = done.bundle.manifest.quantization
    assert quantization is not None
    console.table(_layers(done), title="Layers in INT8")
    if done.measured:
        held = quantization["held_back"]
        title = (
            f"Against float32 on ONNX Runtime, on {held['pictures']:,} held-back pictures with "
            f"{held['captions']:,} captions"
        )
        header = ("", "worst recall drop", "budget", "cosine", "speed: vision", "text")
        console.table([_row(entry, quantization) for entry in done.measured], header, title=title)
    if done.result is not None and done.result.kept:
        click.echo("Kept in high precision:")
        for kept in done.result.kept[:_SHOWN]:
            click.echo(f"  {kept.site.tower} {kept.site.name}: {kept.reason}")
        if len(done.result.kept) > _SHOWN:
            click.echo(f"  and {len(done.result.kept) - _SHOWN} more, see tradeoff.json")


def _layers(done: Quantized) -> list[tuple[str, str]]:
    kept = (done.bundle.manifest.quantization or {})["kept"]
    rows = []
    for tower in ("vision", "text"):
        total = sum(site.tower == tower for site in done.calibration.sites)
        rows.append((f"{tower} tower", f"{total - len(kept[tower])} of {total}"))
    return rows


def _row(entry: dict[str, Any], quantization: dict[str, Any]) -> tuple[str, ...]:
    drop, cosines = entry["recall_drop"], entry["mean_cosine"]
    verdict = "passes" if entry["passed"] else "FAILS"
    return (
        f"{_RUNTIMES[entry['runtime']]} {entry['precision']}",
        f"{drop:+.2f} points" if drop else "none",
        f"{verdict} {quantization['max_recall_drop']:g}",
        f"{min(cosines.values()):.5f}",
        f"{entry['speedup']['vision']:.2f} x",
        f"{entry['speedup']['text']:.2f} x",
    )


_RUNTIMES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
