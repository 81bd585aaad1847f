"""The machine and the command of a benchmark, and time limits of calls."""

from __future__ import annotations

import math
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


class NoTimeLeftError(Exception):
    """A step would not finish within the call's time limit."""


@dataclass(frozen=True)
class Call:
    """A call with a time limit, after which anything unsaved is lost."""

    seconds: float = math.inf
    saved: Callable[[], object] = lambda: None  # called after each file is written
    start: float = field(default_factory=time.monotonic)

    def demand(self, seconds: float) -> None:
        """Raise NoTimeLeftError unless ``seconds`` are left for a step."""
        left = self.seconds - (time.monotonic() - self.start)
        if left < max(seconds, 1):
            raise NoTimeLeftError("this call has no time left for it: call again")


WHOLE = Call()
"""A time limit that is never reached."""


def cpu_name() -> str:
    """Return the processor's name, as far as the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def command_line() -> str:
    """Return the running command, to record with its results.

    Absolute paths are reduced to their last part: parent folders mean nothing on other machines.
    """
    script, *words = sys.argv
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *map(_portable, words)])


def _portable(word: str) -> str:
    option, equals, value = word.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else word
