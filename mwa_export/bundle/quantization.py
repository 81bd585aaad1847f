"""Record of a quantization in the manifest: samples, budget, measured recall and speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mwa_export.metrics.verdict import Decision
from mwa_export.spec import Tower

RecallFigures = Mapping[str, Mapping[str, float]]
"""Recall in percent by metric ("TR@1"), for "float32" and for the "candidate"."""


@dataclass(frozen=True, slots=True)
class HeldBackData:
    """The data set that recall was measured on."""

    name: str
    pictures: int
    captions: int | None = None  # None: not recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Recall and speed of a precision on a CPU runtime, compared with float32 on ONNX Runtime."""

    runtime: str
    precision: str
    decision: Decision  # whether recall stays within the budget
    mean_cosine: Mapping[Tower, float]
    recall: RecallFigures
    overflowed: bool | None = None  # whether OpenVINO's int8 sums overflow on the CPU used
    speedup: Mapping[Tower, float]


@dataclass(frozen=True, slots=True)
class Quantization:
    """Record of the last run of `mwa-export quantize`."""

    mwa_export: str  # version
    calibration: str  # the calibration file
    data: Mapping[str, Any]  # the samples, as described in the calibration
    max_recall_drop: float  # the budget, in percentage points
    held_back: HeldBackData | None  # None: recall was not measured
    measured: tuple[Measured, ...]
    kept: Mapping[Tower, tuple[str, ...]]  # layers that stay in high precision
