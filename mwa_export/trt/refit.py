"""Exchange the weights of an engine without building it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import Engine
from mwa_export.errors import EngineError
from mwa_export.trt.build import listed
from mwa_export.trt.device import Device
from mwa_export.trt.engine import LoadedEngine, load_engine
from mwa_export.trt.install import load_tensorrt

if TYPE_CHECKING:
    import tensorrt as trt


def refitted(
    bundle: Bundle,
    engine: Engine,
    graph: Path,
    weights: Mapping[str, NDArray[Any]],
    device: Device,
) -> bytes:
    """Serialize an engine with the weights of another graph of the same structure.

    Args:
        engine: built with the flag REFIT.
        graph: the ONNX file with the new weights, of the form that the engine was compiled from.
        weights: its initializers, by name; 8.6 takes them from here, later versions from the file.

    Raises:
        EngineError: TensorRT cannot load the engine or does not take the weights.
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
    """Set the weights that the engine asks for, under their names in the graph."""
    for asked in refitter.get_all_weights():
        if asked not in weights:
            continue  # TensorRT's own constants: they stay, or count as missing below
        array = np.ascontiguousarray(weights[asked])
        if not refitter.set_named_weights(asked, loaded.tensorrt.trt.Weights(array)):
            raise _refusal(name, f"{asked}: {loaded.messages.reason or 'another size'}")
    missing = refitter.get_missing_weights()
    if missing:
        raise _refusal(name, f"weights are missing: {listed(missing, ', ')}")


def _refusal(name: str, details: str) -> EngineError:
    return EngineError(
        f"{name}: TensorRT does not take the new weights ({details}). Build engines for the new "
        "model: mwa-export onnx, then mwa-export trt"
    )
