"""Peers that start from the plain ONNX export: on ONNX Runtime and OpenVINO, quantized or not.

Each gets what its own documentation starts with; docs/bench.md lists the settings.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mwa_export.bench.contenders import CannotRunError, Run, reason_of
from mwa_export.bench.inputs import Batch, Pool, padded
from mwa_export.inputs.preprocess import normalize
from mwa_export.model.reference import ReferenceModel
from mwa_export.optional import require
from mwa_export.runtimes.ort_session import session
from mwa_export.spec import Embeddings, Tower

Feed = dict[str, NDArray[Any]]

# GEMMs only, and of them those with weights: what a careful user of these tools asks for. Their
# defaults would quantize sums, softmax and norms too.
_GEMMS = ["MatMul", "Gemm"]


class PlainGraph:
    """The plain export of one tower, made when the first peer asks for it, and its inputs."""

    def __init__(
        self, reference: ReferenceModel, tower: Tower, pool: Pool, folder: Path, threads: int
    ) -> None:
        self.tower = tower
        self.folder = folder
        self.threads = threads
        self._reference = reference
        self._pool = pool
        self._length = reference.config.backbone.max_text_length
        self._path: Path | None = None
        self._failure: CannotRunError | None = None

    @property
    def path(self) -> Path:
        """The `.onnx` file.

        Raises:
            CannotRunError: the export failed, now or earlier.
        """
        if self._failure is not None:
            raise self._failure
        if self._path is None:
            try:
                self._path = self._export()
            except Exception as error:  # of the exporter, of whatever type
                first = " ".join(str(error).split())
                self._failure = CannotRunError(
                    f"torch.onnx.export failed: {type(error).__name__}: {first}"
                )
                raise self._failure from error
        return self._path

    def feed(self, batch: Batch) -> Feed:
        """The graph's inputs from a batch."""
        if self.tower == "vision":
            return {"image": normalize(batch[0])}
        return {"token_ids": batch[0], "padding_mask": batch[1]}

    def calibration(self) -> Iterator[Feed]:
        """One row at a time of those that were held back."""
        for row in self._pool.calibration:
            yield self.feed((row[None],) if self.tower == "vision" else self._padded([row]))

    def _padded(self, rows: Sequence[Sequence[int]]) -> Batch:
        return padded(rows, self._length)

    def _export(self) -> Path:
        try:
            require("onnxscript", extra="export", why="export with torch.onnx")
        except Exception as error:
            raise CannotRunError(f"needs onnxscript: pip install onnxscript ({error})") from error
        from mwa_export.bench.plain import plain_export

        rows = [self._pool.calibration[0]] * 2
        batch = (np.stack(rows),) if self.tower == "vision" else self._padded(rows)
        return plain_export(
            self._reference, self.tower, self.feed(batch), self.folder / f"{self.tower}.onnx"
        )


def onnxruntime_float32(plain: PlainGraph) -> Run:
    """The plain graph as it is."""
    return _on_onnxruntime(plain, plain.path)


def onnxruntime_dynamic(plain: PlainGraph) -> Run:
    """quantize_dynamic: int8 weights per channel, activations measured at run time."""
    quantization = _quantization()
    out = plain.folder / f"{plain.tower}.dynamic.onnx"
    quantization.quantize_dynamic(
        _prepared(plain), out, per_channel=True, weight_type=quantization.QuantType.QInt8
    )
    return _on_onnxruntime(plain, out)


def onnxruntime_static_uint8(plain: PlainGraph) -> Run:
    """quantize_static to Q/DQ with uint8 activations."""
    return _static(plain, "QUInt8")


def onnxruntime_static_int8(plain: PlainGraph) -> Run:
    """quantize_static to Q/DQ with int8 activations, the default of the tool."""
    return _static(plain, "QInt8")


def optimum_static(plain: PlainGraph) -> Run:
    """ORTQuantizer with the preset for this kind of processor, calibrated, as it comes."""
    remedy = "pip install optimum-onnx"
    optimum = _importable("optimum.onnxruntime", remedy)
    configuration = _importable("optimum.onnxruntime.configuration", remedy)
    presets = configuration.AutoQuantizationConfig
    arm = platform.machine().lower() in ("arm64", "aarch64")
    config = (presets.arm64 if arm else presets.avx512_vnni)(is_static=True, per_channel=True)
    path = _prepared(plain)
    quantizer = optimum.ORTQuantizer.from_pretrained(path.parent, file_name=path.name)
    # Its reader adds the batch axis itself.
    rows = [{name: array[0] for name, array in feed.items()} for feed in plain.calibration()]
    ranges = quantizer.fit(
        dataset=rows,
        calibration_config=configuration.CalibrationConfig(
            dataset_name="rows",
            dataset_config_name="",
            dataset_split="",
            dataset_num_samples=len(rows),
            method=_quantization().CalibrationMethod.MinMax,
        ),
        onnx_augmented_model_name=str(plain.folder / "augmented.onnx"),
        operators_to_quantize=config.operators_to_quantize,
        use_external_data_format=_has_data_file(path),
    )
    out = plain.folder / "optimum"
    quantizer.quantize(config, out, calibration_tensors_range=ranges)
    return _on_onnxruntime(plain, next(out.glob("*.onnx")))


def openvino_float32(plain: PlainGraph) -> Run:
    """The plain graph on OpenVINO in float32."""
    return _on_openvino(plain, str(plain.path), {"INFERENCE_PRECISION_HINT": "f32"})


def openvino_bfloat16(plain: PlainGraph) -> Run:
    """The plain graph on OpenVINO in bfloat16."""
    return _on_openvino(plain, str(plain.path), {"INFERENCE_PRECISION_HINT": "bf16"})


def nncf_int8(plain: PlainGraph) -> Run:
    """NNCF's post-training quantization for transformers, on OpenVINO as it comes."""
    nncf: Any = _importable("nncf", "pip install nncf")
    core = _openvino().Core()
    quantized = nncf.quantize(
        core.read_model(str(plain.path)),
        nncf.Dataset(list(plain.calibration())),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(list(plain.calibration())),
    )
    return _on_openvino(plain, quantized, {})


def _static(plain: PlainGraph, activation: str) -> Run:
    quantization = _quantization()

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]  # no types
        def __init__(self) -> None:
            self._rows = plain.calibration()

        def get_next(self) -> Feed | None:
            return next(self._rows, None)

    out = plain.folder / f"{plain.tower}.{activation}.onnx"
    quantization.quantize_static(
        _prepared(plain),
        out,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=_GEMMS,
        per_channel=True,
        activation_type=quantization.QuantType[activation],
        weight_type=quantization.QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    return _on_onnxruntime(plain, out)


def _prepared(plain: PlainGraph) -> Path:
    """The plain graph after ONNX Runtime's own preparation for quantization."""
    out = plain.folder / "prepared" / plain.path.name
    if not out.is_file():
        from onnxruntime.quantization.shape_inference import quant_pre_process

        out.parent.mkdir(exist_ok=True)
        # Its symbolic shape inference fails on graphs of the current exporter, which brings its
        # own shapes anyway.
        quant_pre_process(plain.path, out, skip_symbolic_shape=True)
    return out


def _has_data_file(path: Path) -> bool:
    return any(file != path for file in path.parent.glob(f"{path.name}*"))


def _on_onnxruntime(plain: PlainGraph, path: Path) -> Run:
    runner = session(path, threads=plain.threads)

    def run(batch: Batch) -> Embeddings:
        return cast(Embeddings, runner.run(None, plain.feed(batch))[0])

    return run


def _on_openvino(plain: PlainGraph, model: Any, settings: dict[str, Any]) -> Run:
    core = _openvino().Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if settings.get("INFERENCE_PRECISION_HINT") == "bf16" and "BF16" not in able:
        raise CannotRunError("this processor has no bfloat16")
    settings = {"INFERENCE_NUM_THREADS": plain.threads, **settings}
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(batch: Batch) -> Embeddings:
        return np.array(request.infer(plain.feed(batch))[0], np.float32)

    return run


def _quantization() -> Any:
    _importable("onnx", 'pip install "mwa-export[export]"')
    import onnxruntime.quantization

    return onnxruntime.quantization


def _openvino() -> Any:
    return require("openvino", extra="openvino", why="run this peer")


def _importable(module: str, remedy: str) -> Any:
    """Import a package that none of our extras brings.

    Raises:
        CannotRunError: it is not installed, or something that it imports does not work.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation raises whatever it likes
        raise CannotRunError(
            f"{module} cannot be imported ({reason_of(error)}). To measure it: {remedy}"
        ) from error
