"""The result of a benchmark as plain data. ``docs/bench.md`` describes every field of its JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mwa_export.cpu import cores, cpu_name, instruction_sets
from mwa_export.optional import versions_of
from mwa_export.spec import Tower

_PACKAGES = (
    *("mwa-export", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "onnx"),
    "onnxscript",
)

SCHEMA = 1

Kind = Literal["ours", "peer"]


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware and software versions of a run."""

    cpu: str
    cores: int  # available to this process
    threads: int  # of every contender
    instruction_sets: tuple[str, ...]
    system: str
    load: float | None  # load average of the minute before the run; None: unknown
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a run."""

    rounds: int
    seed: int
    pictures: str  # description of the images
    captions: str  # description of the captions
    max_length: int  # tokens to which peers pad every caption
    real: bool  # inputs are real, so calibration and cosines are meaningful


@dataclass(frozen=True, slots=True)
class Peak:
    """The fastest GEMM of a precision, measured in the same rounds as the contenders."""

    precision: str
    gops: float  # 10^9 operations per second, a multiply-accumulate counts as two; median
    tool: str
    shape: tuple[int, int, int]  # rows, inner, columns


@dataclass(frozen=True, slots=True)
class Figure:
    """One contender in one section."""

    name: str
    kind: Kind
    runtime: str
    precision: str  # of its large GEMMs
    rows_per_second: float  # median over the rounds
    ratio: float  # speed relative to the baseline: median of the same-round ratios
    ratio_low: float  # first quartile
    ratio_high: float  # third quartile
    p50_ms: float  # of a call with one batch
    p99_ms: float
    calls: int  # number of timed calls
    gops: float  # 10^9 operations per second of its GEMMs, including padding; median
    peak_share: float | None  # median of gops / the peak of its precision in the same round
    cosine: float | None  # mean cosine with the baseline; None: random inputs, or the baseline
    cosine_rows: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A contender that was requested but did not run."""

    name: str
    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True)
class Section:
    """One tower at one batch size."""

    tower: Tower
    batch: int
    window: int  # rows that every contender embeds in a round
    mean_length: float | None  # mean tokens of a caption; None: images
    baseline: str  # name of the contender that ratios and cosines refer to
    figures: tuple[Figure, ...]
    skipped: tuple[Skipped, ...]
    peaks: tuple[Peak, ...]


@dataclass(frozen=True, slots=True)
class Bench:
    """Result of a benchmark run."""

    model: str
    space_id: str
    machine: Machine
    settings: Settings
    sections: tuple[Section, ...]
    created: str  # UTC, ISO 8601
    version: str  # of mwa-export

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Bench:
        machine = data["machine"]
        return cls(
            model=data["model"],
            space_id=data["space_id"],
            machine=Machine(**machine | {"instruction_sets": tuple(machine["instruction_sets"])}),
            settings=Settings(**data["settings"]),
            sections=tuple(_section(section) for section in data["sections"]),
            created=data["created"],
            version=data["version"],
        )


def _section(data: dict[str, Any]) -> Section:
    parts: dict[str, Any] = {
        "figures": tuple(Figure(**figure) for figure in data["figures"]),
        "skipped": tuple(Skipped(**item) for item in data["skipped"]),
        "peaks": tuple(Peak(**peak | {"shape": tuple(peak["shape"])}) for peak in data["peaks"]),
    }
    return Section(**data | parts)


def this_machine(threads: int, packages: Iterable[str] = ()) -> Machine:
    """Return processor, system and package versions, including those of ``packages``."""
    return Machine(
        cpu=cpu_name(),
        cores=cores(),
        threads=threads,
        instruction_sets=tuple(sorted(instruction_sets() or ())),
        system=f"{platform.system()} {platform.machine()}",
        load=_load(),
        versions={
            "python": platform.python_version(),
            **versions_of(*_PACKAGES, *packages),
        },
    )


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):  # Windows, and systems without a load average
        return None
