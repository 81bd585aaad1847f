"""What machine a benchmark ran on, and how long it may take there."""

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
    """A step would not end before its call does."""


@dataclass(frozen=True)
class Call:
    """A call on a machine that ends it after some time: what is not written by then is lost."""

    seconds: float = math.inf
    saved: Callable[[], object] = lambda: None  # called after each file that is written
    start: float = field(default_factory=time.monotonic)

    def demand(self, seconds: float) -> None:
        """Raise NoTimeLeftError unless a step that takes so long ends in time."""
        left = self.seconds - (time.monotonic() - self.start)
        if left < max(seconds, 1):
            raise NoTimeLeftError("this call has no time left for it: call again")


WHOLE = Call()
"""A time limit that is never reached."""


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
