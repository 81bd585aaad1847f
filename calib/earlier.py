"""Combine a bundle's earlier quantization with graphs that are added for other runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import Graph
from mwa_export.bundle.quantization import Quantization
from mwa_export.calib.calibration import CALIBRATION
from mwa_export.calib.dialects import Dialect
from mwa_export.files import sha256_of


def earlier_quantization(bundle: Bundle, calibration: Path | None) -> Quantization | None:
    """Return the bundle's quantization if it used this calibration, so that its graphs may stay."""
    stored = bundle.manifest.files.get(CALIBRATION)
    if calibration is None or stored is None:
        return None
    file = calibration / CALIBRATION if calibration.is_dir() else calibration
    return bundle.manifest.quantization if sha256_of(file) == stored.sha256 else None


def replaced_graphs(
    bundle: Bundle, earlier: Quantization | None, dialects: Sequence[Dialect]
) -> list[Graph]:
    """INT8 graphs to remove: those of ``dialects``; without an ``earlier`` quantization, all."""
    written = {dialect.name for dialect in dialects}
    old = [graph for graph in bundle.manifest.graphs if graph.precision == "int8"]
    return [graph for graph in old if earlier is None or graph.dialect in written]


def joined(earlier: Quantization, new: Quantization) -> tuple[Quantization, list[str]]:
    """Merge the records of two quantizations with the same calibration and layers.

    Returns the merged record, and the runtimes whose measurements were dropped because they were
    made on other data or with another budget.
    """
    if new.held_back is None:
        return earlier, []
    measured = {(entry.runtime, entry.precision) for entry in new.measured}
    others = [e for e in earlier.measured if (e.runtime, e.precision) not in measured]
    evidence = (earlier.held_back, earlier.max_recall_drop)
    if evidence != (new.held_back, new.max_recall_drop):
        return new, sorted({entry.runtime for entry in others})
    return replace(new, measured=(*new.measured, *others)), []
