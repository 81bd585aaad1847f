"""Build manifest entries for tests from only the fields that a test needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recall_changes import decision

from mwa_export.bundle.engine import MeasuredEngines
from mwa_export.bundle.manifest import MANIFEST, Export
from mwa_export.bundle.quantization import Measured, Quantization
from mwa_export.files import checksum
from mwa_export.spec import Tower

EXPORT = Export("0.1.0", (), (), (), {})
BUDGET = 0.2


def measured(runtime: str, precision: str, drop: float, **more: Any) -> Measured:
    """A recall drop that was measured on a CPU runtime, against a budget of 0.2 points."""
    return Measured(
        runtime=runtime,
        precision=precision,
        decision=decision(drop, BUDGET),
        mean_cosine={},
        recall={},
        speedup={},
        **more,
    )


def measured_engines(drop: float) -> MeasuredEngines:
    """A recall drop that was measured with engines, against the same budget."""
    return MeasuredEngines(decision(drop, BUDGET), BUDGET, {}, {}, None, {})


def quantization(
    *entries: Measured, kept: Mapping[Tower, tuple[str, ...]] | None = None
) -> Quantization:
    """A run of `quantize` that measured this, and kept these layers in high precision."""
    layers: dict[Tower, tuple[str, ...]] = {"vision": (), "text": (), **(kept or {})}
    return Quantization("0.1.0", "calibration.json", {}, BUDGET, None, entries, layers)


def seal(folder: Path, data: dict[str, Any]) -> Path:
    """Write a manifest with a checksum that fits, as only our own code does. Returns the folder."""
    sealed = {**data, "checksum": checksum(data)}
    (folder / MANIFEST).write_text(json.dumps(sealed), encoding="utf-8")
    return folder
