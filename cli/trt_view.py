"""Output of `mwa-export trt`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mwa_export.cli import console
from mwa_export.spec import TOWERS

if TYPE_CHECKING:
    from mwa_export.engines.best import Best, Candidate
    from mwa_export.engines.build import EnginesBuilt


def show(done: EnginesBuilt) -> None:
    """Print the engines and the graphs they were built from."""
    for engine in done.engines:
        size = (done.bundle.path / engine.file).stat().st_size / 1e6
        state = (
            f"built in {engine.seconds:.0f} s"
            if engine.file in done.built
            else "was there already; --rebuild builds it anew"
        )
        console.say(f"  {engine.file}  {size:.0f} MB, {state}")
    for graph in done.graphs:
        console.say(
            f"  {graph.path.name}: least cosine with the reference {graph.cosine:.5f} on ONNX "
            f"Runtime, {len(graph.float32)} nodes in float32"
        )
        if graph.advice is not None:
            console.say(f"  {graph.path.name}: {graph.advice}")
    for speed in done.speeds:
        console.say(f"  {speed.sentence}")
    console.say(f"  TensorRT {done.engines[0].tensorrt} on {done.device.name}")


def show_best(done: Best) -> None:
    """Print what was measured of each precision, and which one was kept."""
    base = next((c for c in done.candidates if c.precision == "float16" and c.speed), None)
    console.table(
        [_row(candidate, base, done.winner) for candidate in done.candidates],
        ["precision", "vision ms", "text ms", "/ float16", "recall drop", "verdict"],
        title=_title(done.winner),
    )
    for candidate in done.candidates:
        if candidate.problem is not None:
            console.say(f"  {candidate.precision}: {candidate.problem}")
    if done.winner.recall is None:
        console.say("  recall was not measured: no --data")
    console.say(
        f"  TensorRT {next(iter(done.winner.engines.values())).tensorrt} on {done.device.name}"
    )


def _title(winner: Candidate) -> str:
    shapes = []
    for tower, compared in winner.speed.items():
        timing = compared.timing
        tokens = f" of {timing.length} tokens" if timing.length else ""
        shapes.append(f"{tower} {timing.batch} rows{tokens}")
    return f"Run times on the device without copies: {', '.join(shapes)}"


def _row(candidate: Candidate, base: Candidate | None, winner: Candidate) -> list[str]:
    times = [
        f"{candidate.speed[tower].timing.median_ms:.2f}" if tower in candidate.speed else ""
        for tower in TOWERS
    ]
    ratio = ""
    if base is not None and candidate.speed:
        ratio = f"{base.milliseconds / candidate.milliseconds:.2f}x"
    drop = "" if candidate.recall is None else f"{max(0.0, candidate.recall.drop):.2f}"
    passed = "passes, slower" if candidate.problem is None else "no"
    return [candidate.precision, *times, ratio, drop, "kept" if candidate is winner else passed]
