"""What machine a benchmark ran on."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Sequence
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


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command that is running, to be kept with its results: from the project's folder, and of
    absolute paths only the last part, since the folders above mean nothing on another machine.

    Args:
        arguments: script and what follows; ``sys.argv`` if not given.
    """
    script, *rest = sys.argv if arguments is None else arguments
    words = [Path(word).name if Path(word).is_absolute() else word for word in rest]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *words])
