"""A contender: a name, and a factory for a function that embeds a batch."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mwa_export.bench.inputs import Batch
from mwa_export.bench.result import Kind
from mwa_export.errors import MwaExportError
from mwa_export.spec import Embeddings, Tower

_FOLDERS = re.compile(r"(?<![\w.:/])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\":]+[/\\])+")
_LONGEST = 300  # characters of a reason

Run = Callable[[Batch], Embeddings]
"""(pixels,) uint8 (B, H, W, 3), or (token_ids, padding_mask) int64 (B, T) -> (B, D) float32."""


class CannotRunError(MwaExportError):
    """A contender cannot run here; its message is the reason shown in the report."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to embed with a model: a runtime, a precision, and a function that opens it."""

    name: str
    kind: Kind
    runtime: str
    precision: str  # of its large GEMMs: "float32", "bfloat16", "float16" or "int8"
    open: Callable[[Tower], Run]  # may take minutes; raises if it cannot run


@dataclass(frozen=True, slots=True)
class Kernel:
    """One GEMM of one library. The fastest GEMM of a precision is the machine's peak."""

    precision: str
    tool: str
    shape: tuple[int, int, int]  # rows, inner, columns
    run: Callable[[], object]
    copies: int = 1  # GEMMs of this shape in one call of ``run``

    @property
    def name(self) -> str:
        return f"{self.precision} {'x'.join(map(str, self.shape))} {self.tool}"

    @property
    def operations(self) -> int:
        rows, inner, columns = self.shape
        return 2 * rows * inner * columns * self.copies


def reason_of(error: BaseException) -> str:
    """Why a contender does not run, in one line and without the folders of this machine."""
    text = " ".join(str(error).split()) or "no message"
    if not isinstance(error, MwaExportError):
        text = f"{type(error).__name__}: {text}"
        root = error
        while root.__cause__ is not None:
            root = root.__cause__
        if root is not error:  # packages that import lazily hide the original error
            text = f"{type(root).__name__}: {' '.join(str(root).split())} (so {text})"
    text = _FOLDERS.sub("", text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep other tools' output off stdout, which carries results, and mute their warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
