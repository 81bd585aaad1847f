"""Result of a calibration as stored in a bundle: calibration.json and its arrays.

Quantized graphs of any dialect can be made from it without the data.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.calib.sites import Site
from mwa_export.errors import CalibrationError
from mwa_export.files import new_file, sha256_of
from mwa_export.spec import Tower

SCHEMA = 1
CALIBRATION = "calibration.json"
ARRAYS = "calibration.npz"

# Fields of a site in calibration.json; its arrays are in calibration.npz.
_PLAIN = (
    *("tower", "site", "tensor", "width", "method", "amax", "alpha", "error", "error_unsmoothed"),
    "histogram",
)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SiteCalibration:
    """Range, smoothing and rounding of one site."""

    tower: Tower
    site: str  # Site.name
    tensor: str  # the value in the float32 graph
    width: int
    method: str  # the range method that chose amax
    amax: float  # largest magnitude that the int8 grid represents, after smoothing
    alpha: float | None  # of the smoothing; None: not smoothed
    error: float  # relative squared error of the layer's output, on sample rows
    error_unsmoothed: float  # the same error without smoothing
    histogram: dict[str, Any]  # digest, values, amax
    divide: Floats | None  # (width,) divisors of the smoothing
    mean: Floats  # (width,) of the smoothed activation
    weights: dict[str, NDArray[np.int8]] = field(default_factory=dict)  # learned rounding, by GEMM

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in _PLAIN}
        return {**plain, "rounding": "learned" if self.weights else "nearest"}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Ranges, smoothing and rounding of both towers."""

    space_id: str
    graphs: dict[str, str]  # tower -> sha256 of the float32 graph
    data: dict[str, Any]  # name, sha256, pictures, captions, seed
    versions: dict[str, str]
    sites: tuple[SiteCalibration, ...]

    def of(self, tower: Tower) -> dict[str, SiteCalibration]:
        """Sites of a tower by name."""
        return {site.site: site for site in self.sites if site.tower == tower}

    def check_fits(self, bundle: Bundle, tower: Tower, sites: tuple[Site, ...]) -> None:
        """Raise CalibrationError unless the calibration was made from this tower's graph."""
        path, _graph = bundle.graph(tower)
        if self.space_id != bundle.manifest.space_id:
            raise CalibrationError(
                f"the calibration was made for embedding space {self.space_id[:16]}, but "
                f"{bundle.path} has {bundle.manifest.space_id[:16]}. Calibrate this model: pass "
                "`data`"
            )
        if self.graphs.get(tower) != bundle.manifest.files[path.name].sha256:
            raise CalibrationError(
                f"{path}: is not the graph that the calibration was made from, but a different "
                "export of the same model. Calibrate it again: pass `data`"
            )
        known = self.of(tower)
        unknown = [s.name for s in sites if s.name not in known or known[s.name].width != s.width]
        if unknown:
            raise CalibrationError(
                f"the calibration lacks layer {unknown[0]} of {path}. Calibrate again: pass `data`"
            )

    def save(self, folder: Path) -> None:
        """Write calibration.json and calibration.npz, each atomically."""
        arrays: dict[str, NDArray[Any]] = {}
        for site in self.sites:
            key = f"{site.tower}/{site.site}"
            arrays[f"{key}/mean"] = site.mean
            if site.divide is not None:
                arrays[f"{key}/divide"] = site.divide
            for linear, weight in site.weights.items():
                arrays[f"{key}/weight/{linear}"] = weight
        with new_file(folder / ARRAYS) as path, path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # the stubs take no mapping
        content = {
            "schema": SCHEMA,
            "space_id": self.space_id,
            "graphs": self.graphs,
            "data": self.data,
            "versions": self.versions,
            "arrays": {"file": ARRAYS, "sha256": sha256_of(folder / ARRAYS)},
            "sites": [site.to_json() for site in self.sites],
        }
        with new_file(folder / CALIBRATION) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a calibration, given the path of calibration.json or of its folder.

        Raises:
            CalibrationError: a file is missing, damaged, or of another schema version.
        """
        file = path / CALIBRATION if path.is_dir() else path
        if not file.is_file():
            raise CalibrationError(
                f"{file}: does not exist. Expected {CALIBRATION} of a quantized bundle."
            )
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            if data["schema"] != SCHEMA:
                raise CalibrationError(
                    f"{file}: has schema version {data['schema']!r}, expected {SCHEMA}. Calibrate "
                    "again: pass `data`"
                )
            arrays_file = file.with_name(data["arrays"]["file"])
            if not arrays_file.is_file() or sha256_of(arrays_file) != data["arrays"]["sha256"]:
                raise CalibrationError(
                    f"{arrays_file}: is missing, or is not the file that {file.name} describes. "
                    "Copy both again, or calibrate again: pass `data`"
                )
            with np.load(arrays_file) as arrays:
                sites = tuple(_site(entry, arrays) for entry in data["sites"])
            return cls(data["space_id"], data["graphs"], data["data"], data["versions"], sites)
        except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise CalibrationError(
                f"{file}: is not a calibration ({error!r}). Calibrate again: pass `data`"
            ) from error


def _site(entry: Mapping[str, Any], arrays: Any) -> SiteCalibration:
    key = f"{entry['tower']}/{entry['site']}"
    prefix = f"{key}/weight/"
    weights = {n.removeprefix(prefix): arrays[n] for n in arrays.files if n.startswith(prefix)}
    divide = arrays[f"{key}/divide"] if f"{key}/divide" in arrays.files else None
    if not (np.isfinite(entry["amax"]) and entry["amax"] > 0):
        raise ValueError(f"amax of {key} is {entry['amax']}")
    plain = {name: entry[name] for name in _PLAIN}
    return SiteCalibration(**plain, divide=divide, mean=arrays[f"{key}/mean"], weights=weights)
