"""Quantized variants of a bundle's graphs: some sites in INT8, written and ready to run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import GraphFile
from mwa_export.calib.calibration import Calibration
from mwa_export.calib.dialects import Dialect
from mwa_export.calib.insert import quantized_graph
from mwa_export.calib.sites import Site, find_sites
from mwa_export.graphs.edit import FloatGraph
from mwa_export.graphs.lint.check import check
from mwa_export.graphs.typed import to_float16
from mwa_export.spec import Tower
from mwa_export.towers.engine_form import engine_form
from mwa_export.version import __version__


@dataclass
class Variants:
    """Makes quantized graphs of a bundle, and keeps its float32 towers in memory."""

    bundle: Bundle
    calibration: Calibration
    _towers: dict[Tower, tuple[FloatGraph, tuple[Site, ...]]] = field(default_factory=dict)

    def sites(self, tower: Tower) -> tuple[Site, ...]:
        """Sites of a tower."""
        return self._tower(tower)[1]

    def write(
        self, tower: Tower, int8: Collection[str], dialect: Dialect, folder: Path
    ) -> GraphFile:
        """Write and lint `TOWER.int8.DIALECT.onnx`, with the named sites in INT8.

        Raises:
            CalibrationError: the calibration does not fit the graph.
            BundleError: the graph breaks a rule of its dialect (a bug in this package).
        """
        graph, sites = self._tower(tower)
        quantized = quantized_graph(graph, sites, self.calibration.of(tower), dialect, int8)
        if dialect.for_tensorrt:
            quantized = engine_form(quantized)
        if dialect.typed:
            typed = to_float16(quantized.whole(), opset=dialect.opset)
            quantized = FloatGraph.of(typed.model)
        path = folder / f"{tower}.{dialect.suffix}.onnx"
        metadata = {
            "mwa_export.version": __version__,
            "mwa_export.precision": "int8",
            "mwa_export.dialect": dialect.name,
            "mwa_export.int8": ",".join(sorted(int8)),
        }
        quantized.write(path, metadata)
        if int8:
            check(path, dialect.name)
        own = self.bundle.describe(tower)
        described = replace(
            own, file=path.name, precision="int8", dialect=dialect.name, opset=dialect.opset
        )
        return path, described

    def _tower(self, tower: Tower) -> tuple[FloatGraph, tuple[Site, ...]]:
        if tower not in self._towers:
            graph = FloatGraph.load(self.bundle.graph(tower)[0])
            sites = find_sites(graph)
            self.calibration.check_fits(self.bundle, tower, sites)
            self._towers[tower] = graph, sites
        return self._towers[tower]
