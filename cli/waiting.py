"""Signs of life while heavy packages load: a spinner on a terminal, elsewhere one line."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from typing import Any

_HEAVY = {  # packages that take a second or more to import on a cold start
    "faiss": "FAISS",
    "onnx": "ONNX",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "polygraphy": "Polygraphy",
    "pyarrow": "Arrow",
    "ray": "Ray",
    "tensorrt": "TensorRT",
    "tensorrt_rtx_bindings": "TensorRT-RTX",
    "torch": "PyTorch",
}
_SECONDS = 0.1  # between two frames
_CLEAR = "\r\x1b[2K"
_STDERR = 2


class _Waiting(MetaPathFinder):
    """Shows what is loading from the first heavy import until the command writes anything.

    It sits on ``sys.meta_path`` and finds nothing. The first frame is written before the import
    begins, because extension modules hold the interpreter's lock while they load.
    """

    def __init__(self) -> None:
        self._active = False
        self._frames = "|/-\\"
        self._terminal = False
        self._text = ""
        self._said = False
        self._shown = 0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def begin(self, *, terminal: bool, unicode: bool) -> None:
        """Watch imports from now on."""
        self._active, self._terminal, self._text = True, terminal, ""
        self._said = False
        self._frames = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏" if unicode else "|/-\\"
        self._over.clear()
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        # importlib.util.find_spec() asks too, and loads nothing.
        if name in _HEAVY and sys._getframe(2).f_code.co_name != "find_spec":
            self.show(f"loading {_HEAVY[name]}")

    def show(self, text: str, *, after: float = 0.0) -> None:
        """Show that the command works. Does nothing after the first output.

        ``after``: seconds to wait for output before a line is printed, without a terminal.
        """
        with self._lock:
            if not self._active:
                return
            first, self._text = not self._text, text
            if self._terminal:
                self._draw()
            elif not after:
                self._say()
        if first and (self._terminal or after):
            work = self._turn if self._terminal else partial(self._print, after)
            threading.Thread(target=work, daemon=True).start()

    def end(self) -> None:
        """Remove the spinner: output follows, or the command is over."""
        if not self._active:
            return
        with self._lock:
            self._active = False
            self._over.set()
            if self._terminal and self._text:
                _write(_CLEAR)
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def _turn(self) -> None:
        while not self._over.wait(_SECONDS):
            with self._lock:
                if self._active:
                    self._draw()

    def _print(self, after: float) -> None:
        if not self._over.wait(after):
            with self._lock:
                if self._active:
                    self._say()

    def _say(self) -> None:
        if not self._said:
            self._said = True
            _write(f"{self._text} ...\n")

    def _draw(self) -> None:
        frame = self._frames[self._shown % len(self._frames)]
        self._shown += 1
        _write(f"{_CLEAR}{frame} {self._text}")


def _write(text: str) -> None:
    """Write to stderr itself: what goes through ``sys.stderr`` ends the spinner."""
    try:
        os.write(_STDERR, text.encode(getattr(sys.stderr, "encoding", None) or "ascii", "replace"))
    except OSError:
        waiting._active = False  # nobody reads; the first message finds out


waiting = _Waiting()


def begin(arguments: Sequence[str]) -> None:
    """Watch imports, unless -q is among the arguments or stderr is not a stream of this process."""
    if any(re.fullmatch(r"-v*q[vq]*|--quiet", argument) for argument in arguments):
        return
    encoding = (getattr(sys.stderr, "encoding", None) or "").lower()
    terminal = sys.stderr.isatty() and os.environ.get("TERM") not in (None, "", "dumb")
    waiting.begin(terminal=terminal, unicode=encoding.startswith("utf"))
