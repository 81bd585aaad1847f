"""What machine a benchmark ran on."""

from __future__ import annotations

import platform
import shlex
import sys
from pathlib import Path


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def command_line() -> str:
    """The command that is running, to be kept with its results.

    Of absolute paths only the last part: the folders above mean nothing on another machine.
    """
    script, *words = sys.argv
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *map(_portable, words)])


def _portable(word: str) -> str:
    option, equals, value = word.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else word
