"""What of a bundle's earlier quantization stays when graphs for other runtimes are added."""

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
    """The bundle's quantization, if it is of this calibration: its graphs may stay."""
    stored = bundle.manifest.files.get(CALIBRATION)
    if calibration is None or stored is None:
        return None
    file = calibration / CALIBRATION if calibration.is_dir() else calibration
    return bundle.manifest.quantization if sha256_of(file) == stored.sha256 else None


def replaced_graphs(
    bundle: Bundle, earlier: Quantization | None, dialects: Sequence[Dialect]
) -> list[Graph]:
    """The INT8 graphs that make room; without an ``earlier`` quantization to keep, all."""
    written = {dialect.name for dialect in dialects}
    old = [graph for graph in bundle.manifest.graphs if graph.precision == "int8"]
    return [graph for graph in old if earlier is None or graph.dialect in written]


def joined(earlier: Quantization, new: Quantization) -> tuple[Quantization, list[str]]:
    """Record of both, of one calibration and the same layers, and runtimes that lose theirs."""
    if new.held_back is None:
        return earlier, []
    measured = {(entry.runtime, entry.precision) for entry in new.measured}
    others = [e for e in earlier.measured if (e.runtime, e.precision) not in measured]
    evidence = (earlier.held_back, earlier.max_recall_drop)
    if evidence != (new.held_back, new.max_recall_drop):
        return new, sorted({entry.runtime for entry in others})
    return replace(new, measured=(*new.measured, *others)), []
