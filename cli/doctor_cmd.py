"""`mwa-export doctor`: what this machine can run, and what to install."""

from __future__ import annotations

import json
import shutil
import textwrap
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

import click

from mwa_export.cli import console
from mwa_export.cli.flags import Command
from mwa_export.optional import installed

if TYPE_CHECKING:
    from mwa_export.runtimes.doctor import Advice, Doctor, Part


@click.command(
    cls=Command, epilog="\b\nExamples:\n  mwa-export doctor\n  mwa-export doctor --json\n"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@console.verbosity
def command(as_json: bool) -> None:
    """Show what this machine can run: processor, GPU, optional packages, and what to install."""
    from mwa_export.runtimes.doctor import advice, examine

    found = examine()
    given = advice(found)
    if as_json:
        data = {**found.to_json(), "advice": [asdict(entry) for entry in given]}
        click.echo(json.dumps(data, indent=2))
        return
    _show_machine(found)
    _show_packages(found)
    for entry in given:
        _show_advice(entry)
    if all(installed(module) for module in ("torch", "onnx", "torchscale")):
        console.next_step("demo")
    else:
        console.next_step(
            "embed", "BUNDLE", "--images", "FOLDER", "--format", "npy", "-o", "vectors"
        )


def _show_machine(found: Doctor) -> None:
    from mwa_export.runtimes.options import LABELS

    sets = found.instruction_sets
    runtimes = [LABELS[name] for name in found.int8]
    auto = f"on {' or '.join(runtimes)}, if its recall passed" if runtimes else "not on this CPU"
    rows = [
        ("mwa-export", f"{found.version}, Python {found.python}, {found.system}"),
        ("processor", f"{found.cpu}, {found.cores} cores that this process may use"),
        ("instructions", "unknown" if sets is None else " ".join(sets) or "none that matter here"),
        ("INT8", _INT8[found.fast_int8]),
        ("INT8 with auto", auto),
        ("bfloat16", _BFLOAT16[found.fast_bfloat16]),
        ("GPU", found.gpu or "none found"),
        ("ONNX Runtime", _onnx_runtime(found)),
    ]
    console.table(rows, title="This machine")


def _onnx_runtime(found: Doctor) -> str:
    if found.onnxruntime is None:
        return "not installed"
    return f"{found.onnxruntime}, {'with' if found.cuda else 'without'} CUDA"


def _show_packages(found: Doctor) -> None:
    """Print the optional packages below the line that installs them, which is never wrapped."""
    click.echo("Optional packages")
    for command, parts in groupby(found.parts, key=lambda part: part.install):
        click.echo(f"\n{command}")
        for line in _lines(list(parts)):
            click.echo(f"  {line}")
    click.echo()


def _lines(parts: list[Part]) -> list[str]:
    """One package per line: name, version and what it is for, which is wrapped to the terminal."""
    name = max(len(part.package) for part in parts) + 2
    version = max(len(part.version or _NONE) for part in parts) + 2
    room = max(_columns() - name - version - 2, _NARROWEST)
    lines = []
    for part in parts:
        first, *rest = textwrap.wrap(part.what, room, break_long_words=False)
        lines.append(f"{part.package:{name}}{part.version or _NONE:{version}}{first}")
        lines += [" " * (name + version) + more for more in rest]
    return lines


def _show_advice(entry: Advice) -> None:
    click.echo(textwrap.fill(entry.text, _columns(), break_long_words=False))
    for command in entry.commands:
        click.echo(f"  {command}")


def _columns() -> int:
    """Columns of the terminal; 80 at most, so that text stays easy to read."""
    return max(40, min(80, shutil.get_terminal_size().columns))


_NONE = "not installed"
_NARROWEST = 12  # columns of what a package is for
_INT8 = {
    True: "fast: this CPU has instructions for it",
    False: "no instructions for it on this CPU",
    None: "unknown: this system does not list its instructions",
}
_BFLOAT16 = {**_INT8, False: "no instructions for it on this CPU: slower than float32"}
