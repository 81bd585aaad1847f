"""Messages of TensorRT, kept so that an error can give the reason."""

from __future__ import annotations

import logging
import re

log = logging.getLogger(__name__)

_REQUESTED = re.compile(
    r"(?:Requested amount of (?:GPU )?memory \((\d+) bytes\)"
    r"|Requested size was (\d+) bytes"
    r"|insufficient memory on requested size of (\d+))"
)
_OUT_OF_MEMORY = re.compile(r"out ?of ?memory", re.IGNORECASE)
_PREFIX = re.compile(r"^(?:\d+: )?\[[\w./]+::\w+::\d+\] (?:Error Code \d+: )?")


class Messages:
    """Errors of one build or load, and the largest amount of memory that was refused."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.requested = 0  # bytes, the largest
        self.out_of_memory = False  # an error says so; tactics skipped for memory do not count

    def add(self, text: str, *, error: bool) -> None:
        """Record a message."""
        found = _REQUESTED.search(text)
        if found is not None:
            self.requested = max(self.requested, *(int(n) for n in found.groups() if n))
        if error:
            self.out_of_memory |= _OUT_OF_MEMORY.search(text) is not None
            self.errors.append(_PREFIX.sub("", text.strip()))
        log.debug("TensorRT%s: %s", " error" if error else "", text)

    @property
    def reason(self) -> str:
        """The first error, which the others follow from; "" if there was none."""
        return self.errors[0].rstrip(". ") if self.errors else ""
