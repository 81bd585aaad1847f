"""Settings of our ONNX Runtime sessions: exact INT8 on any CPU, and no busy waiting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mwa_export.runtimes.ort_session import session

K, N, M = 768, 64, 32


def test_extreme_int8_products_do_not_overflow(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (K, N)).astype(np.int8)
    levels = rng.integers(-127, 128, (M, K))
    path = tmp_path / "product.onnx"
    onnx.save(_product(weight), path)

    found = session(path).run(None, {"x": (levels * 0.5).astype(np.float32)[None]})[0][0]

    exact = (levels @ weight.astype(np.int64)) * 0.125  # scales are powers of two
    assert np.abs(found - exact).max() <= 1e-6 * np.abs(exact).max()


def test_idle_threads_leave_the_cores_to_decoding(tmp_path: Path) -> None:
    path = tmp_path / "product.onnx"
    onnx.save(_product(np.zeros((K, N), np.int8)), path)

    told = session(path).get_session_options()

    assert told.get_session_config_entry("session.force_spinning_stop") == "1"


def _product(weight: NDArray[np.int8]) -> onnx.ModelProto:
    constants = {
        "scale": np.float32(0.5),
        "zero": np.uint8(128),
        "weight": weight,
        "weight.scale": np.full(N, 0.25, np.float32),
        "weight.zero": np.zeros(N, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node(
            "DequantizeLinear", ["weight", "weight.scale", "weight.zero"], ["w"], axis=1
        ),
        helper.make_node("MatMul", ["dq", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, M, K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, M, N])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
