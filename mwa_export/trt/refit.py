"""An engine with other weights: TensorRT exchanges them without building again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.errors import EngineError
from mwa_export.trt.build import listed
from mwa_export.trt.device import Device
from mwa_export.trt.engine import Engine, load_engine
from mwa_export.trt.install import load_tensorrt
from mwa_export.trt.log import Messages, logger_for
from mwa_export.trt.versions import weights_from_file

if TYPE_CHECKING:
    import tensorrt as trt

_SHOWN = 3  # names in a message


def refitted(
    bundle: Bundle,
    engine: Engine,
    graph: Path,
    weights: Mapping[str, NDArray[Any]],
    device: Device,
) -> bytes:
    """An engine with the weights of another graph of the same structure, serialized.

    Args:
        bundle: that has the engine.
        engine: built with the flag REFIT.
        graph: the ONNX file with the new weights, of the form that the engine was compiled from.
        weights: its initializers, by name; 8.6 takes them from here, later versions from the file.
        device: the current GPU.

    Raises:
        EngineError: TensorRT cannot load the engine or does not take the weights.
        BundleError: the engine's file is not the one that the manifest describes.
    """
    trt = load_tensorrt()
    messages = Messages()
    runtime, loaded = load_engine(trt, bundle, engine, device, messages)
    try:
        name = str(bundle.path / engine.file)
        _exchange(trt, loaded, graph, weights, name, messages)
        return bytes(loaded.serialize())
    finally:
        del loaded  # before the runtime that it came from
        del runtime


def _exchange(
    trt: Any,
    loaded: trt.ICudaEngine,
    graph: Path,
    weights: Mapping[str, NDArray[Any]],
    name: str,
    messages: Messages,
) -> None:
    logger = logger_for(trt, messages)
    refitter: trt.Refitter = trt.Refitter(loaded, logger)
    problems = weights_from_file(trt, refitter, logger, str(graph))
    if problems is None:
        _set_weights(trt, refitter, weights, name, messages)
    elif problems:
        raise _refusal(name, messages.reason or listed(problems))
    if not refitter.refit_cuda_engine():
        missing = _some(refitter.get_missing_weights())
        raise _refusal(name, messages.reason or f"weights are missing: {missing}")


def _set_weights(
    trt: Any,
    refitter: trt.Refitter,
    weights: Mapping[str, NDArray[Any]],
    name: str,
    messages: Messages,
) -> None:
    """Hand over what the engine asks for, under the names that the graph gave it."""
    for asked in refitter.get_all_weights():
        if asked not in weights:
            continue  # TensorRT's own constants: they stay, or count as missing below
        array = np.ascontiguousarray(weights[asked])
        if not refitter.set_named_weights(asked, trt.Weights(array)):
            raise _refusal(name, f"{asked}: {messages.reason or 'another size'}")
    missing = refitter.get_missing_weights()
    if missing:
        raise _refusal(name, f"weights are missing: {_some(missing)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _refusal(name: str, details: str) -> EngineError:
    return EngineError(
        f"{name}: TensorRT does not take the new weights ({details}). Build engines for the new "
        "model: mwa-export onnx, then mwa-export trt"
    )
