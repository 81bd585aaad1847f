"""`mwa-export demo`: the full pipeline on the shipped model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mwa_export.cli import console
from mwa_export.cli.flags import PATH, Command
from mwa_export.cli.options import open_option, output_folder
from mwa_export.cli.waiting import waiting
from mwa_export.progress import ignore_step

if TYPE_CHECKING:
    from mwa_export.demo.run import DemoResult

_EXAMPLES = """\b
Examples:
  mwa-export demo
  mwa-export demo -o demo --force --open
"""


@click.command(cls=Command, epilog=_EXAMPLES)
@click.option(
    "-o",
    "--out",
    type=PATH,
    help="Folder to create. Default: demo, or demo-2 and so on if that exists.",
)
@click.option("--force", is_flag=True, help="Replace the folder if it exists.")
@open_option
@console.verbosity
def command(out: Path | None, force: bool, open_page: bool) -> None:
    """Run the full pipeline on a small trained model that ships with the package.

    It draws 500 images with 2,500 captions, merges the adapters of a tiny BEiT-3, exports it to
    ONNX, quantizes it to INT8, and checks recall against PyTorch. It needs no download and takes
    about a minute on 2 CPU cores. Use -v to see every step and all tables of the report.
    """
    from mwa_export.cli.parity_view import fail_unless_passed, show, show_headline
    from mwa_export.optional import check_installed

    check_installed("torch", "onnx", "torchscale")
    from mwa_export.demo.chart import chart
    from mwa_export.demo.run import MARKER, SECONDS, quantize_demo, run_demo

    out = output_folder(out, Path("demo"), "", marker=MARKER, force=force)
    minutes = max(1, round(sum(SECONDS.values()) / 60))
    console.say(f"The demo takes about {minutes} min on 2 CPU cores.")
    with console.steps(partial(_Stages, SECONDS)) as step:
        begin = step.begin if isinstance(step, _Stages) else ignore_step
        result = run_demo(out, quantize_demo, force=force, on_stage=begin, progress=step)
    if console.is_verbose():
        show(result.parity)
    else:
        show_headline(result.parity)
    click.echo()
    for line in chart(result.parity):
        click.echo(line)
    click.echo()
    _explain(result)
    bundle = result.folder / "bundle"
    click.echo(f"bundle: {bundle}")
    console.show_page(result.report, open_it=open_page, label="report: ")
    images = result.folder / "data" / "images"
    fail_unless_passed({"": result.parity}, None)
    console.next_embed(bundle, images, result.folder.with_name("vectors"))


def _explain(result: DemoResult) -> None:
    """Explain the figures above."""
    reference = result.parity.direction("tr").recalls[0].reference
    console.paragraph(
        "Sanity check: with the adapters dropped, TR@1 would be "
        f"{result.without_adapters.tr[1]:.1f}% instead of {reference:.1f}%, so this test would "
        "catch it."
    )
    if result.slow_int8:
        console.paragraph(
            "This CPU has no INT8 instructions (VNNI or dot product), so INT8 gains less speed "
            "here than elsewhere. Its sums are exact all the same."
        )


class _Stages(console.Steps):
    """Stages on a terminal: one line for each when it is done; their steps only with -v."""

    def __init__(self, seconds: Mapping[str, float], terminal: Any, status: Any) -> None:
        super().__init__(terminal, status)
        self._seconds = seconds
        self._began = time.perf_counter()
        self._stage, self._stage_start = "", 0.0
        self._expected = self._passed = 0.0  # in the stages that are done

    def begin(self, stage: str) -> None:
        """End the running stage and begin this one."""
        self.finish()
        self._stage, self._stage_start = stage, time.perf_counter()
        self._update("")

    def __call__(self, text: str, total: int | None = None) -> None:
        if console.is_verbose():
            super().__call__(text, total)
        else:
            self._update(f": {text}")

    def advance(self, rows: int) -> None:
        if console.is_verbose():
            super().advance(rows)

    def finish(self) -> None:
        if console.is_verbose():
            super().finish()
        if self._stage:
            seconds = time.perf_counter() - self._stage_start
            self._expected += self._seconds[self._stage]
            self._passed += seconds
            self._console.print(
                f"{console.escape(self._stage)}  [dim]{seconds:.1f} s[/dim]", soft_wrap=True
            )
            self._stage = ""

    def _update(self, detail: str) -> None:
        waiting.show(self._stage)
        now = time.perf_counter()
        pace = self._passed / self._expected if self._expected > 3 else 1.0
        here = max(0.0, pace * self._seconds[self._stage] - (now - self._stage_start))
        later = pace * (sum(self._seconds.values()) - self._expected - self._seconds[self._stage])
        line = f"{self._stage}{console.printable(detail)}"
        left = f"about {console.clock(here + later)} left"
        room = max(10, self._console.width - len(left) - 6)
        self._status.update(
            f"{console.escape(line if len(line) <= room else line[: room - 3] + '...')}, {left}"
        )
