"""Names, enum values and signatures in the real Python bindings of TensorRT.

The files in `trt_offers/` are committed, one per version; `make_trt_offers.py` writes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paths import HELPERS


@dataclass(frozen=True, slots=True)
class Bindings:
    """A version of the bindings on the package index."""

    major: int
    package: str
    version: str
    libraries: tuple[str, ...]

    @property
    def file(self) -> Path:
        """What this version offers, as JSON."""
        return HELPERS / "trt_offers" / f"tensorrt-{self.version}.json"

    def offer(self) -> dict[str, Any]:
        """Everything that this version offers."""
        found: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        return found


_COMMON = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
VERSIONS = (
    Bindings(8, "tensorrt-bindings", "8.6.1", (*_COMMON, "nvparsers")),
    Bindings(10, "tensorrt-cu13-bindings", "10.16.1.11", _COMMON),
    Bindings(11, "tensorrt-cu13-bindings", "11.4.0.106", _COMMON),
)
