"""Take trained BEiT-3 and MultiWay-Adapter retrieval models into production."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mwa_export.version import __version__

__all__ = ["Bundle", "OnnxBackend", "__version__"]

if TYPE_CHECKING:
    from mwa_export.bundle.bundle import Bundle
    from mwa_export.runtimes.onnxrt import OnnxBackend


def __getattr__(name: str) -> object:
    """Load the public classes when they are asked for: `mwa-export --help` needs none."""
    if name == "Bundle":
        from mwa_export.bundle.bundle import Bundle

        return Bundle
    if name == "OnnxBackend":
        from mwa_export.runtimes.onnxrt import OnnxBackend

        return OnnxBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
