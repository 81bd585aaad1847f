"""What TensorRT says while it works: kept, so that an error can give the reason."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)

_REQUESTED = re.compile(
    r"(?:Requested amount of (?:GPU )?memory \((\d+) bytes\)"
    r"|Requested size was (\d+) bytes"
    r"|insufficient memory on requested size of (\d+))"
)
_OUT_OF_MEMORY = re.compile(r"out ?of ?memory", re.IGNORECASE)
_PREFIX = re.compile(r"^(?:\d+: )?\[[\w./]+::\w+::\d+\] (?:Error Code \d+: )?")


class Messages:
    """The errors of one build or load, and how much memory was asked for in vain."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.requested = 0  # bytes, the largest
        self._out_of_memory = False

    def add(self, text: str, *, error: bool) -> None:
        """Take a message."""
        found = _REQUESTED.search(text)
        if found is not None:
            self.requested = max(self.requested, *(int(n) for n in found.groups() if n))
        if error:
            self._out_of_memory |= _OUT_OF_MEMORY.search(text) is not None
            self.errors.append(_PREFIX.sub("", text.strip()))
            log.debug("TensorRT error: %s", text)
        else:
            log.debug("TensorRT: %s", text)

    @property
    def out_of_memory(self) -> bool:
        """Whether memory was the reason, and not only a way that was left out for it."""
        return self._out_of_memory

    @property
    def reason(self) -> str:
        """The first error, which the others follow from; "" if nothing was said."""
        return self.errors[0].rstrip(". ") if self.errors else ""


def logger_for(trt: Any, messages: Messages) -> trt.ILogger:
    """A logger that fills ``messages`` and shows everything under -v."""

    class Log(trt.ILogger):  # type: ignore[misc]  # only known at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            messages.add(msg, error=int(severity) <= int(trt.Logger.ERROR))

    return Log()
