"""The unmerged reference and its plain ONNX export, on which all peers are based.

The plain export is what users get without this project, so the merged graphs are compared with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mwa_export.bench.contenders import CannotRunError, Run, reason_of
from mwa_export.bench.inputs import Batch, Pool, padded
from mwa_export.inputs.preprocess import normalize
from mwa_export.optional import require
from mwa_export.runtimes.ort_session import session
from mwa_export.spec import Embeddings, Tower

if TYPE_CHECKING:
    from torch import Tensor

    from mwa_export.model.reference import ReferenceModel

Feed = dict[str, NDArray[Any]]


@dataclass(eq=False)
class ReferenceTower:
    """One tower of the reference and its plain export, both created on first use."""

    reference: Callable[[], ReferenceModel]
    tower: Tower
    pool: Pool
    folder: Path  # an existing folder for this tower only
    threads: int
    _path: Path | None = None
    _failure: CannotRunError | None = None

    @property
    def encode(self) -> Callable[..., Tensor]:
        """The tower as a function of tensors."""
        reference = self.reference()
        return reference.encode_image if self.tower == "vision" else reference.encode_text

    @property
    def path(self) -> Path:
        """Path of the `.onnx` file; the export runs on first access.

        Raises:
            CannotRunError: the export failed, now or earlier.
        """
        if self._failure is not None:
            raise self._failure
        if self._path is None:
            try:
                require("onnxscript")
                self._path = self._export()
            except Exception as error:  # the exporter may raise any type
                self._failure = CannotRunError(f"the plain export failed: {reason_of(error)}")
                raise self._failure from error
        return self._path

    def feed(self, batch: Batch) -> Feed:
        """Turn a batch into the graph's inputs."""
        if self.tower == "vision":
            return {"image": normalize(batch[0])}
        return {"token_ids": batch[0], "padding_mask": batch[1]}

    def calibration(self) -> Iterator[Feed]:
        """Yield the rows held back for calibrating quantizers, one at a time."""
        return (self.feed(self._batch([row])) for row in self.pool.calibration)

    def _batch(self, rows: Sequence[Any]) -> Batch:
        if self.tower == "vision":
            return (np.stack(rows),)
        return padded(rows, self.reference().config.backbone.max_text_length)

    def _export(self) -> Path:
        feed = self.feed(self._batch([self.pool.calibration[0]] * 2))
        return plain_export(self.reference(), self.tower, feed, self.folder / f"{self.tower}.onnx")


def plain_export(
    reference: ReferenceModel, tower: Tower, feed: Mapping[str, NDArray[Any]], path: Path
) -> Path:
    """Export one tower of the unmerged reference with torch.onnx.export, for any batch size.

    ``feed``: inputs by name with at least two rows; the exporter makes a single row constant.
    """
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reference = reference

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            encode = (
                self.reference.encode_image if tower == "vision" else self.reference.encode_text
            )
            return encode(*inputs)

    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Plain(),
            tuple(torch.from_numpy(array) for array in feed.values()),
            str(path),
            input_names=list(feed),
            output_names=["plain_embedding"],
            dynamic_shapes={"inputs": tuple({0: batch} for _ in feed)},
            dynamo=True,
            external_data=False,  # above 2 GB it is external anyway
            verbose=False,
        )
    return path


def on_onnxruntime(start: ReferenceTower, path: Path | None = None) -> Run:
    """Run the plain export, or a graph derived from it, on ONNX Runtime with our own settings."""
    runner = session(path or start.path, threads=start.threads)

    def run(batch: Batch) -> Embeddings:
        return cast(Embeddings, runner.run(None, start.feed(batch))[0])

    return run


def on_openvino(start: ReferenceTower, model: Any, settings: dict[str, Any]) -> Run:
    """Run an OpenVINO model, or the graph at a path, with the inputs of the plain export.

    Raises:
        CannotRunError: the processor does not support the precision.
    """
    core = require("openvino").Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if settings.get("INFERENCE_PRECISION_HINT") == "bf16" and "BF16" not in able:
        raise CannotRunError("this processor does not support bfloat16")
    settings = {"INFERENCE_NUM_THREADS": start.threads, **settings}
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(batch: Batch) -> Embeddings:
        return np.array(request.infer(start.feed(batch))[0], np.float32)

    return run


def on_pytorch(start: ReferenceTower, *, autocast: bool = False, compiled: bool = False) -> Run:
    """Run the reference in float32, with autocast to bfloat16, or compiled for each new shape."""
    import torch

    encode: Any = start.encode
    if compiled:
        torch.compiler.reset()
        encode = torch.compile(encode, dynamic=False)

    def run(batch: Batch) -> Embeddings:
        context: Any = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
        with torch.inference_mode(), context:
            embeddings = encode(*map(torch.from_numpy, start.feed(batch).values()))
        return cast(Embeddings, embeddings.float().numpy())

    return run
