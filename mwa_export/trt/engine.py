"""Choose, load and refit the engines of a bundle.

An engine is code for one GPU and one version of TensorRT. TensorRT only gets a file whose sha256 is
in the manifest, and only on a machine for which it was built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import (
    COMPILERS,
    ENGINES,
    HARDWARE_COMPATIBLE,
    VERSION_COMPATIBLE,
    Engine,
    dotted,
)
from mwa_export.bundle.manifest import Manifest
from mwa_export.errors import BundleError, EngineError
from mwa_export.spec import Tower
from mwa_export.trt.build import listed
from mwa_export.trt.device import Device
from mwa_export.trt.install import EngineHost, load_tensorrt
from mwa_export.trt.versions import Messages, TensorRt, major_of

if TYPE_CHECKING:
    import tensorrt as trt

_AMPERE = (8, 0)


def engine_name(tower: Tower, precision: str, version: str, device: Device) -> str:
    """File name of an engine. A bundle may have engines for several machines."""
    return f"{ENGINES}/{tower}.{precision}.{device.sm}.trt{version}.engine"


def rtx_engine_name(
    tower: Tower, precision: str, version: str, capabilities: Sequence[tuple[int, int]]
) -> str:
    """File name of a TensorRT-RTX engine."""
    sms = "-".join(f"sm{major}{minor}" for major, minor in capabilities)
    return f"{ENGINES}/{tower}.{precision}.{sms}.rtx{version}.engine"


def is_stale(engine: Engine, manifest: Manifest) -> bool:
    """Whether an engine was made from a graph or a calibration that the bundle no longer has."""
    return not {entry.sha256 for entry in manifest.files.values()}.issuperset(engine.sources)


def obstacle(engine: Engine, manifest: Manifest, host: EngineHost) -> str | None:
    """Why an engine cannot be used on a host with a GPU; None if it can."""
    if is_stale(engine, manifest):
        return "it was made from a graph or a calibration that the bundle no longer has"
    version, name = host.versions.get(engine.compiler), COMPILERS[engine.compiler]
    if version is None:
        extra = f'pip install "mwa-export[{engine.compiler}]"'
        return f"it needs {name} {engine.tensorrt}, which is not installed ({extra})"
    if not _version_fits(engine, version):
        later = " or later" if VERSION_COMPATIBLE in engine.flags else ""
        return f"it needs {name} {engine.tensorrt}{later}, but {version} is installed"
    assert host.device is not None
    if not _gpu_fits(engine, host.device):
        have = f"{host.device.name} ({dotted(host.device.capability)})"
        return f"it needs {_gpus(engine)}, but this GPU is {have}"
    return None


def _gpus(engine: Engine) -> str:
    """Describe the GPUs on which an engine runs."""
    if engine.capabilities is not None:
        return f"compute capability {' or '.join(map(dotted, engine.capabilities))}"
    if HARDWARE_COMPATIBLE in engine.flags:
        return "a GPU of the Ampere generation or later (compute capability 8.0)"
    return f"{engine.gpu} (compute capability {dotted(engine.capability)})"


def usable_engines(
    manifest: Manifest, precision: str, host: EngineHost, name: str = "the bundle"
) -> tuple[tuple[Engine, ...], tuple[str, ...]]:
    """Return the engines for this machine, vision tower first, and why a tower has none.

    All towers use one compiler: TensorRT if it has engines for each tower, else TensorRT-RTX.
    """
    made = {
        tower: [e for e in manifest.engines if (e.tower, e.precision) == (tower, precision)]
        for tower in manifest.towers
    }
    obstacles = {e.file: obstacle(e, manifest, host) for found in made.values() for e in found}
    for compiler in COMPILERS:
        fit = [
            [e for e in found if obstacles[e.file] is None and e.compiler == compiler]
            for found in made.values()
        ]
        if all(fit):
            return tuple(engines[-1] for engines in fit), ()  # the newest
    usable: list[Engine] = []
    reasons: list[str] = []
    flag = f"`engine_precision={precision}`"
    for tower, found in made.items():
        usable += [e for e in found if obstacles[e.file] is None][-1:]
        if not found:
            reasons.append(
                f"{name} has no {precision} engine for the {tower} tower. Build it: "
                f"`mwa-export trt` with {flag}"
            )
        elif all(obstacles[e.file] for e in found):
            details = "; ".join(f"{e.file}: {obstacles[e.file]}" for e in found)
            reasons.append(
                f"no {precision} engine of {name} for the {tower} tower can be used here. "
                f"{details}. Build one: `mwa-export trt` with {flag} `rebuild`"
            )
    if not reasons:
        files = ", ".join(engine.file for engine in usable)
        reasons.append(
            f"the {precision} engines of {name} that can be used here run on different compilers "
            f"({files}). Build engines of all towers with one compiler: `mwa-export trt` with "
            f"{flag}"
        )
    return tuple(usable), tuple(reasons)


@dataclass(eq=False, slots=True)
class LoadedEngine(AbstractContextManager["LoadedEngine"]):
    """A loaded engine. On exit, it releases the context, the engine and the runtime.

    TensorRT requires this order, so nothing else may keep a reference to them.
    """

    tensorrt: TensorRt
    description: Engine
    messages: Messages  # collects TensorRT's messages while the engine exists
    runtime: trt.Runtime | None
    engine: trt.ICudaEngine | None
    context: trt.IExecutionContext | None = None

    @property
    def scratch(self) -> int:
        """Bytes of device memory that a context needs for activations."""
        return self.tensorrt.scratch_bytes(self.engine)

    def create_context(self) -> None:
        """Create the execution context, so that the engine can run.

        Raises:
            EngineError: TensorRT cannot create a context, usually for lack of memory.
        """
        engine: trt.ICudaEngine = self.engine
        self.context = engine.create_execution_context()
        if self.context is None:
            raise EngineError(
                f"{self.description.file}: its activations need {self.scratch / (1 << 30):.2f} GiB "
                "on this GPU, which are not free "
                f"({self.messages.reason or 'no reason given'}). Stop other programs that use the "
                "GPU, or build engines for smaller batches: `mwa-export trt` with `batch`"
            )

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type of an input or output; 8.6 uses int32 where the graph has int64."""
        engine: trt.ICudaEngine = self.engine
        found: np.dtype[Any] = np.dtype(self.tensorrt.trt.nptype(engine.get_tensor_dtype(name)))
        return found

    def inspect(self) -> str:
        """Return the engine inspector's JSON, for the shapes of the context's last run."""
        engine: trt.ICudaEngine = self.engine
        inspector: trt.EngineInspector = engine.create_engine_inspector()
        inspector.execution_context = self.context
        kind = self.tensorrt.trt.LayerInformationFormat.JSON
        return str(inspector.get_engine_information(kind))

    def serialize(self) -> bytes:
        """Serialize the engine, as the content of a file."""
        engine: trt.ICudaEngine = self.engine
        return bytes(engine.serialize())

    def __exit__(self, *_error: object) -> None:
        self.context = None
        self.engine = None
        self.runtime = None


def load_engine(tensorrt: TensorRt, bundle: Bundle, engine: Engine, device: Device) -> LoadedEngine:
    """Check the file of an engine from `usable_engines`, and load it.

    Raises:
        BundleError: the file is missing, or is not the one that the manifest describes. It is not
            passed to TensorRT then.
        EngineError: the engine cannot be used here, or TensorRT cannot load it.
    """
    host = EngineHost({tensorrt.compiler: tensorrt.version}, device)
    reason = obstacle(engine, bundle.manifest, host)
    if reason is not None:
        raise EngineError(f"{bundle.path / engine.file}: cannot be loaded: {reason}.")
    blob = _checked_bytes(bundle.where(engine.file), engine.sha256)
    messages = Messages()
    runtime: trt.Runtime = tensorrt.trt.Runtime(tensorrt.logger(messages))
    if VERSION_COMPATIBLE in engine.flags:
        runtime.engine_host_code_allowed = True  # it contains a runtime, covered by the hash
    loaded = runtime.deserialize_cuda_engine(blob)
    if loaded is None:
        advice = "Build it again: `mwa-export trt` with `rebuild`"
        if messages.out_of_memory:
            advice = "It needs more memory than is free. Stop other programs that use the GPU."
        raise EngineError(
            f"{bundle.path / engine.file}: {tensorrt.name} cannot load it "
            f"({messages.reason or 'no reason given'}). {advice}"
        )
    return LoadedEngine(tensorrt, engine, messages, runtime, loaded)


def _checked_bytes(path: Path, sha256: str) -> bytes:
    """Read a file once, so that exactly the hashed bytes are loaded."""
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path}: is listed in the manifest, but cannot be read ({error.strerror}). Copy the "
            "bundle again, or build the engine again: `mwa-export trt` with `rebuild`"
        ) from error
    if hashlib.sha256(blob).hexdigest() != sha256:
        raise BundleError(
            f"{path}: is not the engine that the manifest describes. It is not loaded, because "
            "engines are executable code. Copy the bundle again, or build the engine again: "
            "`mwa-export trt` with `rebuild`"
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
    if engine.capabilities is not None:
        return device.capability in engine.capabilities
    if HARDWARE_COMPATIBLE in engine.flags:
        return device.capability >= _AMPERE
    return (engine.gpu, engine.capability) == (device.name, device.capability)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def refitted(
    bundle: Bundle,
    engine: Engine,
    graph: Path,
    weights: Mapping[str, NDArray[Any]],
    device: Device,
) -> bytes:
    """Return a serialized engine with the weights of another graph of the same structure.

    Args:
        bundle: contains the engine.
        engine: built with the flag REFIT.
        graph: ONNX file with the new weights, in the form from which the engine was compiled.
        weights: initializers of that file by name; TensorRT 8.6 uses these, later versions the
            file.
        device: the GPU of the engine.

    Raises:
        EngineError: TensorRT cannot load the engine, or does not accept the weights.
        BundleError: the engine's file is not the one that the manifest describes.
    """
    with load_engine(load_tensorrt(), bundle, engine, device) as loaded:
        _exchange(loaded, graph, weights, str(bundle.path / engine.file))
        return loaded.serialize()


def _exchange(
    loaded: LoadedEngine, graph: Path, weights: Mapping[str, NDArray[Any]], name: str
) -> None:
    tensorrt, messages = loaded.tensorrt, loaded.messages
    logger = tensorrt.logger(messages)
    refitter: trt.Refitter = tensorrt.trt.Refitter(loaded.engine, logger)
    problems = tensorrt.weights_from_file(refitter, logger, str(graph))
    if problems is None:
        _set_weights(loaded, refitter, weights, name)
    elif problems:
        raise _refusal(name, messages.reason or listed(problems))
    if not refitter.refit_cuda_engine():
        missing = listed(refitter.get_missing_weights(), ", ")
        raise _refusal(name, messages.reason or f"weights are missing: {missing}")


def _set_weights(
    loaded: LoadedEngine, refitter: trt.Refitter, weights: Mapping[str, NDArray[Any]], name: str
) -> None:
    """Set the weights that the engine requests, under their names in the graph."""
    for asked in refitter.get_all_weights():
        if asked not in weights:
            continue  # TensorRT's own constants either stay, or count as missing below
        array = np.asarray(weights[asked], order="C")  # ascontiguousarray makes 0-d 1-d
        if not refitter.set_named_weights(asked, loaded.tensorrt.trt.Weights(array)):
            raise _refusal(name, f"{asked}: {loaded.messages.reason or 'its size differs'}")
    missing = refitter.get_missing_weights()
    if missing:
        raise _refusal(name, f"weights are missing: {listed(missing, ', ')}")


def _refusal(name: str, details: str) -> EngineError:
    return EngineError(
        f"{name}: TensorRT does not accept the new weights ({details}). Build engines for the new "
        "model: mwa-export onnx, then mwa-export trt"
    )
