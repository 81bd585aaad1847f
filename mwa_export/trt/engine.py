"""The engines of a bundle: what its manifest says about them, and when one may be loaded.

An engine is code for one GPU and one version of TensorRT. So only a file whose hash stands in the
manifest is handed to TensorRT, and only where it was made for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import Manifest
from mwa_export.errors import BundleError, EngineError
from mwa_export.spec import TOWERS, Tower
from mwa_export.trt.device import Device
from mwa_export.trt.log import Messages, logger_for
from mwa_export.trt.profiles import Profile, ShapeRange
from mwa_export.trt.versions import EnginePrecision, major_of

if TYPE_CHECKING:
    import tensorrt as trt

"""Precision -> the option of `mwa-export trt` that makes it."""
ENGINES = "engines"  # the folder of a bundle that holds them
VERSION_COMPATIBLE, HARDWARE_COMPATIBLE = "version_compatible", "hardware_compatible"
REFIT = "refit"  # these three: of Engine.flags
_AMPERE = (8, 0)


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine, as the manifest describes it."""

    file: str  # relative to the bundle
    sha256: str
    tower: Tower
    precision: EnginePrecision
    tensorrt: str  # the version that made it
    gpu: str  # its name
    capability: tuple[int, int]
    profiles: tuple[Profile, ...]
    sources: tuple[str, ...]  # sha256 of the bundle's files that it was made from
    graph: str  # sha256 of the graph that was compiled: the same, typed or with Q/DQ
    flags: tuple[str, ...]  # BuildOptions.flags
    seconds: float  # of the build
    # Recall with the other tower's engine of this precision, and speed, where it was measured.
    measured: dict[str, Any] | None = None
    float32: tuple[str, ...] | None = None  # nodes of a typed graph that stay so; None: not noted

    def to_json(self) -> dict[str, Any]:
        """As the manifest keeps it."""
        optional = ("measured", "float32")
        return {
            **{n: v for n, v in asdict(self).items() if n not in optional or v is not None},
            "capability": list(self.capability),
            "sources": list(self.sources),
            "flags": list(self.flags),
            **({} if self.float32 is None else {"float32": list(self.float32)}),
            "profiles": [[shapes.to_json() for shapes in profile] for profile in self.profiles],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Engine:
        """The other way round.

        Raises:
            KeyError, TypeError, ValueError: not such a description.
        """
        major, minor = data["capability"]
        profiles = (
            tuple(ShapeRange.from_json(shapes) for shapes in profile)
            for profile in data["profiles"]
        )
        if data["tower"] not in TOWERS or data["precision"] not in get_args(EnginePrecision):
            raise ValueError(f"{data['tower']} {data['precision']}")
        known = {name: data[name] for name in ("file", "sha256", "tower", "precision", "gpu")}
        return cls(
            **known,
            tensorrt=data["tensorrt"],
            capability=(int(major), int(minor)),
            profiles=tuple(profiles),
            sources=tuple(data["sources"]),
            graph=data["graph"],
            flags=tuple(data["flags"]),
            seconds=float(data["seconds"]),
            measured=data.get("measured"),
            float32=None if data.get("float32") is None else tuple(data["float32"]),
        )


def engine_name(tower: Tower, precision: EnginePrecision, version: str, device: Device) -> str:
    """The file of an engine: one bundle may serve several machines."""
    return f"{ENGINES}/{tower}.{precision}.{device.sm}.trt{version}.engine"


def engines_of(bundle: Bundle) -> tuple[Engine, ...]:
    """Every engine that the manifest describes.

    Raises:
        BundleError: a description that this version cannot read.
    """
    return _engines_in(bundle.manifest, str(bundle.path))


def _engines_in(manifest: Manifest, name: str) -> tuple[Engine, ...]:
    try:
        return tuple(Engine.from_json(entry) for entry in manifest.engines)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{name}: describes an engine that cannot be read ({error!r}). Build the "
            "engines again: `mwa-export trt` with `rebuild`"
        ) from error


def obstacle(engine: Engine, manifest: Manifest, version: str, device: Device) -> str | None:
    """Why an engine cannot be used here; None: nothing speaks against it.

    Args:
        engine: one of the bundle's.
        manifest: of the bundle.
        version: of the TensorRT that is installed.
        device: the GPU.
    """
    if not {entry["sha256"] for entry in manifest.files.values()}.issuperset(engine.sources):
        return "it was made from a graph or a calibration that the bundle no longer has"
    if not _version_fits(engine, version):
        later = " or a later one" if VERSION_COMPATIBLE in engine.flags else ""
        return f"it needs TensorRT {engine.tensorrt}{later}, and {version} is installed"
    if not _gpu_fits(engine, device):
        needs = (
            "a GPU of the Ampere generation or later (compute capability 8.0)"
            if HARDWARE_COMPATIBLE in engine.flags
            else f"{engine.gpu} (compute capability {engine.capability[0]}.{engine.capability[1]})"
        )
        have = f"{device.name} ({device.capability[0]}.{device.capability[1]})"
        return f"it needs {needs}, and this GPU is {have}"
    return None


def usable_engines(
    manifest: Manifest, precision: str, version: str, device: Device, name: str = "the bundle"
) -> tuple[tuple[Engine, ...], tuple[str, ...]]:
    """The engines for this machine, the vision tower's first; and why a tower has none.

    Args:
        manifest: of the bundle.
        precision: of the engines.
        version: of the TensorRT that is installed.
        device: the GPU.
        name: of the bundle, for the sentences.
    """
    usable, reasons = [], []
    flag = f"`engine_precision={precision}`"
    engines = _engines_in(manifest, name)
    for tower in TOWERS:
        found = [e for e in engines if (e.tower, e.precision) == (tower, precision)]
        obstacles = {e.file: obstacle(e, manifest, version, device) for e in found}
        fit = [engine for engine in found if obstacles[engine.file] is None]
        if fit:
            usable.append(fit[-1])  # the newest
        elif not found:
            reasons.append(
                f"{name} has no {precision} engine for the {tower} tower. Build it: "
                f"mwa-export trt BUNDLE {flag}"
            )
        else:
            details = "; ".join(f"{file}: {reason}" for file, reason in obstacles.items())
            reasons.append(
                f"no {precision} engine of {name} for the {tower} tower can be used here. "
                f"{details}. Build one: `mwa-export trt` with {flag} `rebuild`"
            )
    return tuple(usable), tuple(reasons)


def load_engine(
    trt: Any, bundle: Bundle, engine: Engine, device: Device, messages: Messages | None = None
) -> tuple[trt.Runtime, trt.ICudaEngine]:
    """Check an engine's bytes and load them.

    Args:
        trt: the module.
        bundle: that has it.
        engine: one that `usable_engine` returned.
        device: the current GPU.
        messages: filled with what TensorRT says, now and while the engine lives.

    Returns:
        The runtime, which must outlive the engine, and the engine.

    Raises:
        BundleError: the file is missing or not the one that the manifest describes. TensorRT never
            sees it.
        EngineError: it cannot be used here, or TensorRT cannot load it.
    """
    reason = obstacle(engine, bundle.manifest, trt.__version__, device)
    if reason is not None:
        raise EngineError(f"{bundle.path / engine.file}: cannot be loaded: {reason}.")
    blob = _checked_bytes(bundle.path / engine.file, engine.sha256)
    messages = messages or Messages()
    runtime = trt.Runtime(logger_for(trt, messages))
    if VERSION_COMPATIBLE in engine.flags:
        runtime.engine_host_code_allowed = True  # it carries a runtime of its own; its hash is ours
    loaded = runtime.deserialize_cuda_engine(blob)
    if loaded is None:
        memory = " It needs more memory than is free: end what else uses the GPU."
        raise EngineError(
            f"{bundle.path / engine.file}: TensorRT {trt.__version__} cannot load it "
            f"({messages.reason or 'no reason given'})."
            f"{memory if messages.out_of_memory else ' Build it again: `rebuild`'}"
        )
    return runtime, loaded


def with_engines(
    old: tuple[dict[str, Any], ...], new: Iterable[Engine]
) -> tuple[dict[str, Any], ...]:
    """The manifest's engines with new ones; those of the same files go."""
    added = [engine.to_json() for engine in new]
    files = {entry["file"] for entry in added}
    return (*(entry for entry in old if entry.get("file") not in files), *added)


def _checked_bytes(path: Path, sha256: str) -> bytes:
    """The bytes that are loaded are the bytes that were hashed."""
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be read ({error.strerror}), and the manifest names it. Copy the "
            "bundle again, or build the engine again: `rebuild`"
        ) from error
    if hashlib.sha256(blob).hexdigest() != sha256:
        raise BundleError(
            f"{path}: is not the engine that the manifest describes, so it is not loaded: an "
            "engine is code. Copy the bundle again, or build the engine again: `rebuild`"
        )
    return blob


def _version_fits(engine: Engine, version: str) -> bool:
    if engine.tensorrt == version:
        return True
    return (
        VERSION_COMPATIBLE in engine.flags
        and major_of(version) == major_of(engine.tensorrt)
        and _numbers(version) >= _numbers(engine.tensorrt)
    )


def _gpu_fits(engine: Engine, device: Device) -> bool:
    if HARDWARE_COMPATIBLE in engine.flags:
        return device.capability >= _AMPERE
    return (engine.gpu, engine.capability) == (device.name, device.capability)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
