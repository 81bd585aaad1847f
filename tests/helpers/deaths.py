"""Simulate a crash of a process: copy a folder before every call that changes it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass
class Deaths:
    """The folder as it was before each call."""

    folder: Path
    into: Path
    states: list[Path] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def add(self, call: str) -> None:
        global _watching
        _watching = None  # copying is not watched
        state = self.into / f"{len(self.states):04d}"
        shutil.copytree(self.folder, state, symlinks=True)
        self.states.append(state)
        self.calls.append(call)
        _watching = self


_watching: Deaths | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching is None:
        return
    if event in _CHANGES or (event == "open" and int(arguments[2] or 0) & _WRITES):
        paths = [os.fsdecode(a) for a in arguments if isinstance(a, str | bytes | os.PathLike)]
        # Names relative to an open folder, as rmtree has them, are counted as well.
        if any(str(_watching.folder) in path or "/" not in path for path in paths):
            _watching.add(f"{event} {' '.join(paths)}")


@contextmanager
def deaths(folder: Path, into: Path) -> Iterator[Deaths]:
    """Watch a folder while the block runs. An audit hook sees the calls of Python's own code."""
    global _watching, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    sync, found = os.fsync, Deaths(folder, into)

    def fsync(fd: Any) -> None:
        if _watching is not None:
            _watching.add(f"fsync {fd}")
        sync(fd)

    os.fsync = fsync
    _watching = found
    try:
        yield found
    finally:
        _watching = None
        os.fsync = sync
    found.add("end")
    _watching = None
