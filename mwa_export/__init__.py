"""Take trained BEiT-3 and MultiWay-Adapter retrieval models into production."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mwa_export.version import __version__

if TYPE_CHECKING:
    from mwa_export.bundle.bundle import Bundle
    from mwa_export.encoder.encoder import Encoder
    from mwa_export.encoder.open import load
    from mwa_export.parity.measure import compare
    from mwa_export.parity.run import compare_models
    from mwa_export.runtimes.options import RuntimeOptions

__all__ = [
    "Bundle",
    "Encoder",
    "RuntimeOptions",
    "__version__",
    "compare",
    "compare_models",
    "load",
]
_WHERE = {
    "Bundle": "bundle.bundle",
    "Encoder": "encoder.encoder",
    "RuntimeOptions": "runtimes.options",
    "compare": "parity.measure",
    "compare_models": "parity.run",
    "load": "encoder.open",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first used: `mwa-export --help` needs none of them."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
