"""INT8 by other tools from the plain ONNX export: ONNX Runtime, Optimum and NNCF.

Each uses the settings that its documentation starts with; docs/bench.md lists them.
"""

from __future__ import annotations

import importlib
import platform
from pathlib import Path
from typing import Any

from mwa_export.bench.contenders import CannotRunError, Run, reason_of
from mwa_export.bench.peers import Peer
from mwa_export.bench.plain import Feed, ReferenceTower, on_onnxruntime, on_openvino
from mwa_export.optional import require

# Only GEMMs with weights, as a careful user of these tools would choose. Their defaults would also
# quantize sums, softmax and norms.
_GEMMS = ["MatMul", "Gemm"]


def onnxruntime_dynamic(start: ReferenceTower) -> Run:
    """Run quantize_dynamic: int8 weights per channel, activation ranges measured at run time."""
    quantization = _quantization()
    out = start.folder / f"{start.tower}.dynamic.onnx"
    quantization.quantize_dynamic(
        _prepared(start), out, per_channel=True, weight_type=quantization.QuantType.QInt8
    )
    return on_onnxruntime(start, out)


def onnxruntime_static_uint8(start: ReferenceTower) -> Run:
    """Run quantize_static to Q/DQ with uint8 activations."""
    return _static(start, "QUInt8")


def onnxruntime_static_int8(start: ReferenceTower) -> Run:
    """Run quantize_static to Q/DQ with int8 activations, the tool's default."""
    return _static(start, "QInt8")


def optimum_static(start: ReferenceTower) -> Run:
    """Run ORTQuantizer with the unchanged preset for this kind of processor, calibrated."""
    remedy = "pip install optimum-onnx"
    optimum = _importable("optimum.onnxruntime", remedy)
    configuration = _importable("optimum.onnxruntime.configuration", remedy)
    presets = configuration.AutoQuantizationConfig
    arm = platform.machine().lower() in ("arm64", "aarch64")
    config = (presets.arm64 if arm else presets.avx512_vnni)(is_static=True, per_channel=True)
    path = _prepared(start)
    quantizer = optimum.ORTQuantizer.from_pretrained(path.parent, file_name=path.name)
    # Its reader adds the batch axis itself.
    rows = [{name: array[0] for name, array in feed.items()} for feed in start.calibration()]
    ranges = quantizer.fit(
        dataset=rows,
        calibration_config=configuration.CalibrationConfig(
            dataset_name="rows",
            dataset_config_name="",
            dataset_split="",
            dataset_num_samples=len(rows),
            method=_quantization().CalibrationMethod.MinMax,
        ),
        onnx_augmented_model_name=str(start.folder / "augmented.onnx"),
        operators_to_quantize=config.operators_to_quantize,
        use_external_data_format=_has_data_file(path),
    )
    out = start.folder / "optimum"
    quantizer.quantize(config, out, calibration_tensors_range=ranges)
    return on_onnxruntime(start, next(out.glob("*.onnx")))


def nncf_int8(start: ReferenceTower) -> Run:
    """Run NNCF's post-training quantization for transformers, on OpenVINO with default settings."""
    nncf: Any = _importable("nncf", "pip install nncf")
    core = require("openvino").Core()
    quantized = nncf.quantize(
        core.read_model(str(start.path)),
        nncf.Dataset(list(start.calibration())),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(list(start.calibration())),
    )
    return on_openvino(start, quantized, {})


def _static(start: ReferenceTower, activation: str) -> Run:
    quantization = _quantization()

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]  # no types
        def __init__(self) -> None:
            self._rows = start.calibration()

        def get_next(self) -> Feed | None:
            return next(self._rows, None)

    out = start.folder / f"{start.tower}.{activation}.onnx"
    quantization.quantize_static(
        _prepared(start),
        out,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=_GEMMS,
        per_channel=True,
        activation_type=quantization.QuantType[activation],
        weight_type=quantization.QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    return on_onnxruntime(start, out)


def _prepared(start: ReferenceTower) -> Path:
    """Return the plain graph after ONNX Runtime's preparation for quantization."""
    out = start.folder / "prepared" / start.path.name
    if not out.is_file():
        from onnxruntime.quantization.shape_inference import quant_pre_process

        out.parent.mkdir(exist_ok=True)
        # Its symbolic shape inference fails on graphs of the current exporter, which already
        # contain shapes.
        quant_pre_process(start.path, out, skip_symbolic_shape=True)
    return out


def _has_data_file(path: Path) -> bool:
    return any(file != path for file in path.parent.glob(f"{path.name}*"))


def _quantization() -> Any:
    _importable("onnx", 'pip install "mwa-export[export]"')
    import onnxruntime.quantization

    return onnxruntime.quantization


def _importable(module: str, remedy: str) -> Any:
    """Import a package that none of our extras installs.

    Raises:
        CannotRunError: it is not installed, or importing it failed.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
        raise CannotRunError(
            f"{module} cannot be imported ({reason_of(error)}). To measure it: {remedy}"
        ) from error


QUANTIZERS: dict[str, Peer] = {
    "ort-dynamic": Peer("ORT quantize_dynamic", "onnxruntime", "int8", onnxruntime_dynamic),
    "ort-static-uint8": Peer(
        "ORT quantize_static uint8", "onnxruntime", "int8", onnxruntime_static_uint8
    ),
    "ort-static-int8": Peer(
        "ORT quantize_static int8", "onnxruntime", "int8", onnxruntime_static_int8
    ),
    "optimum": Peer(
        "Optimum ORTQuantizer", "onnxruntime", "int8", optimum_static, ("optimum", "optimum-onnx")
    ),
    "nncf": Peer("NNCF int8 on OpenVINO", "openvino", "int8", nncf_int8, ("nncf",)),
}
"""Name on the command line -> quantizer."""
