"""The choice of a runtime on each kind of machine, and refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import measured, quantization

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import Graph, Manifest
from mwa_export.errors import RuntimeUnavailableError, UsageError, VerificationError
from mwa_export.runtimes.choose import choose
from mwa_export.runtimes.machine import Machine, this_machine
from mwa_export.runtimes.open import open_backend
from mwa_export.runtimes.options import PRECISIONS, RuntimeOptions

VNNI = frozenset({"avx2", "avx512_vnni"})
AMX = frozenset({"avx2", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"})
PLAIN = frozenset({"avx2"})
CPUS = frozenset({"onnxruntime", "openvino"})


@pytest.fixture(scope="module")
def plain(files: Path) -> Manifest:
    return Bundle.open(files / "bundle").manifest


def with_graphs(manifest: Manifest, *kinds: tuple[str, str]) -> Manifest:
    """Graphs of these precisions and dialects for both towers, beside float32."""
    more = [
        Graph(f"{g.spec.tower}.{p}.{d}.onnx", g.spec, p, d, 17)
        for p, d in kinds
        for g in manifest.graphs
    ]
    return dataclasses.replace(manifest, graphs=(*manifest.graphs, *more))


def with_recall(manifest: Manifest, *entries: tuple[str, str, float]) -> Manifest:
    """Recall drops that were measured, against a budget of 0.2 points."""
    found = quantization(*(measured(*entry) for entry in entries))
    return dataclasses.replace(manifest, quantization=found)


INT8 = (("int8", "openvino"), ("int8", "onnxruntime"))
GOOD = (("openvino", "int8", 0.1), ("onnxruntime", "int8", 0.1))


def chosen(manifest: Manifest, machine: Machine, **options: Any) -> tuple[str, str]:
    choice = choose(manifest, RuntimeOptions(**options), machine)
    assert choice.reason
    return choice.runtime, choice.precision


def test_auto_takes_int8_on_openvino_where_the_cpu_is_fast_at_it(plain: Manifest) -> None:
    manifest = with_recall(with_graphs(plain, *INT8), *GOOD)
    assert chosen(manifest, Machine(VNNI, CPUS)) == ("openvino", "int8")
    only = Machine(VNNI, frozenset({"onnxruntime"}))
    choice = choose(manifest, RuntimeOptions(), only)
    assert (choice.runtime, choice.precision) == ("onnxruntime", "int8")
    assert "within this bundle's budget" in choice.reason
    assert any('pip install "mwa-export[openvino]"' in reason for reason in choice.rejected)


def test_a_gpu_for_a_runtime_that_uses_none_is_refused(plain: Manifest) -> None:
    with pytest.raises(UsageError, match="`device=2`: ONNX Runtime does not use a GPU"):
        chosen(plain, Machine(VNNI, frozenset({"onnxruntime"})), device=2)
    gpu = Machine(VNNI, frozenset({"onnxruntime", "cuda"}), nvidia=True)
    assert chosen(plain, gpu, device=2, runtime="cuda") == ("cuda", "float32")


def test_auto_passes_openvinos_int8_by_without_int8_instructions(plain: Manifest) -> None:
    manifest = with_recall(with_graphs(plain, *INT8), *GOOD)
    choice = choose(manifest, RuntimeOptions(), Machine(PLAIN, CPUS))
    assert (choice.runtime, choice.precision) == ("onnxruntime", "int8")
    assert any("OpenVINO's int8 is slower" in reason for reason in choice.rejected)
    assert chosen(manifest, Machine(PLAIN, CPUS), allow_slow=True) == ("openvino", "int8")


def test_int8_of_onnxruntime_is_taken_with_avx2_alone(
    plain: Manifest,
) -> None:
    manifest = with_recall(with_graphs(plain, *INT8), *GOOD)
    alone = frozenset({"onnxruntime"})
    assert chosen(manifest, Machine(PLAIN, alone)) == ("onnxruntime", "int8")
    assert chosen(manifest, Machine(frozenset(), alone)) == ("onnxruntime", "float32")
    assert chosen(manifest, Machine(PLAIN, CPUS), runtime="onnxruntime") == ("onnxruntime", "int8")
    assert chosen(manifest, Machine(PLAIN, CPUS), precision="int8") == ("onnxruntime", "int8")


def test_auto_takes_only_precisions_whose_recall_was_measured_and_passed(plain: Manifest) -> None:
    unmeasured = with_graphs(plain, *INT8)
    choice = choose(unmeasured, RuntimeOptions(), Machine(AMX, CPUS))
    assert (choice.runtime, choice.precision) == ("openvino", "float32")
    assert any("recall was not measured" in reason for reason in choice.rejected)
    failed = with_recall(unmeasured, ("openvino", "int8", 0.9), ("onnxruntime", "int8", 0.1))
    choice = choose(failed, RuntimeOptions(), Machine(AMX, CPUS))
    assert (choice.runtime, choice.precision) == ("onnxruntime", "int8")
    assert any("-0.90 points" in reason for reason in choice.rejected)


def test_recall_that_was_measured_with_overflowing_sums_counts_only_where_they_overflow(
    plain: Manifest,
) -> None:
    found = quantization(measured("openvino", "int8", 7.8, overflowed=True), measured(*GOOD[1]))
    manifest = dataclasses.replace(with_graphs(plain, *INT8), quantization=found)
    choice = choose(manifest, RuntimeOptions(), Machine(VNNI, CPUS))
    assert (choice.runtime, choice.precision) == ("onnxruntime", "int8")
    assert any("Measure it here: `mwa-export quantize`" in reason for reason in choice.rejected)
    here = choose(manifest, RuntimeOptions(allow_slow=True), Machine(PLAIN, CPUS))
    assert any("-7.80 points" in reason for reason in here.rejected)


def test_bfloat16_is_taken_where_it_was_measured_and_is_fast(plain: Manifest) -> None:
    manifest = with_recall(plain, ("openvino", "bfloat16", 0.0))
    assert chosen(manifest, Machine(AMX, CPUS)) == ("openvino", "bfloat16")
    assert chosen(manifest, Machine(VNNI, CPUS)) == ("openvino", "float32")


def test_what_is_asked_for_is_run_without_a_measurement_and_says_so(plain: Manifest) -> None:
    manifest = with_graphs(plain, *INT8)
    machine = Machine(VNNI, CPUS)
    choice = choose(manifest, RuntimeOptions("openvino", "int8"), machine)
    assert "as requested" in choice.reason
    assert "recall was not measured" in choice.reason
    above = with_recall(manifest, ("openvino", "int8", 0.9))
    assert "OVER" in choose(above, RuntimeOptions("openvino", "int8"), machine).reason


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_what_would_be_slower_than_float32_is_refused_unless_told(
    plain: Manifest, precision: str
) -> None:
    manifest, machine = with_graphs(plain, *INT8), Machine(PLAIN, CPUS)
    with pytest.raises(RuntimeUnavailableError, match=r"slower than float32.*allow_slow"):
        choose(manifest, RuntimeOptions("openvino", precision), machine)
    told = RuntimeOptions("openvino", precision, allow_slow=True)
    assert choose(manifest, told, machine).precision == precision


def test_unknown_instruction_sets_are_said_and_not_refused(plain: Manifest) -> None:
    choice = choose(
        with_graphs(plain, *INT8), RuntimeOptions("openvino", "int8"), Machine(None, CPUS)
    )
    assert "instruction sets are unknown" in choice.reason


def test_cuda_takes_float16_if_the_bundle_has_it_and_float32_else(plain: Manifest) -> None:
    machine = Machine(VNNI, CPUS | {"cuda"})
    assert chosen(plain, machine) == ("cuda", "float32")
    halves = with_graphs(plain, ("float16", "onnx"))
    assert chosen(halves, machine) == ("cuda", "float16")
    assert chosen(halves, machine, runtime="cuda", precision="float32") == ("cuda", "float32")
    with pytest.raises(RuntimeUnavailableError, match="no float16 graphs"):
        choose(plain, RuntimeOptions("cuda", "float16"), machine)


def test_graphs_for_one_tower_only_are_not_enough(plain: Manifest) -> None:
    manifest = with_graphs(plain, *INT8)
    half = dataclasses.replace(
        manifest,
        graphs=tuple(g for g in manifest.graphs if (g.precision, g.spec.tower) != ("int8", "text")),
    )
    with pytest.raises(RuntimeUnavailableError, match="mwa-export quantize"):
        choose(half, RuntimeOptions(precision="int8"), Machine(VNNI, CPUS))


@pytest.mark.parametrize(
    ("runtime", "told"),
    [
        ("openvino", "mwa-export[openvino]"),
        ("cuda", "onnxruntime-gpu"),
        ("onnxruntime", "pip install onnxruntime"),
        ("torch", "mwa-export[export]"),
    ],
)
def test_a_runtime_that_is_not_installed_names_what_to_install(
    plain: Manifest, runtime: str, told: str
) -> None:
    for precision in ("auto", "float32"):
        options = RuntimeOptions(runtime, precision)
        with pytest.raises(RuntimeUnavailableError) as caught:
            choose(plain, options, Machine(VNNI, frozenset()))
        assert told in str(caught.value)


@given(
    sets=st.none() | st.frozensets(st.sampled_from(sorted(AMX | {"asimddp", "bf16"}))),
    installed=st.frozensets(st.sampled_from(["onnxruntime", "openvino", "cuda", "torch"])),
    kinds=st.sets(st.sampled_from([*INT8, ("float16", "onnx")])),
    drops=st.dictionaries(
        st.sampled_from([("openvino", "int8"), ("onnxruntime", "int8"), ("openvino", "bfloat16")]),
        st.floats(-1, 2),
    ),
    runtime=st.sampled_from(["auto", *PRECISIONS]),
    precision=st.sampled_from(["auto", "float32", "bfloat16", "float16", "int8"]),
    slow=st.booleans(),
)
def test_laws_of_choosing(
    plain: Manifest,
    sets: frozenset[str] | None,
    installed: frozenset[str],
    kinds: set[tuple[str, str]],
    drops: dict[tuple[str, str], float],
    runtime: str,
    precision: str,
    slow: bool,
) -> None:
    manifest = with_recall(with_graphs(plain, *kinds), *((*k, v) for k, v in drops.items()))
    try:
        options = RuntimeOptions(runtime, precision, allow_slow=slow)
    except UsageError:  # this runtime never has this precision
        assert runtime != "auto"
        assert precision not in PRECISIONS[runtime]
        return
    try:
        choice = choose(manifest, options, Machine(sets, installed))
    except RuntimeUnavailableError:
        # Nothing that is sure to run was overlooked.
        assert not (runtime in ("auto", "onnxruntime") and precision in ("auto", "float32")) or (
            "onnxruntime" not in installed
        )
        return
    assert choice.reason
    assert choice.runtime in installed
    assert runtime in ("auto", choice.runtime)
    assert precision in ("auto", choice.precision)
    key = (choice.runtime, choice.precision)
    if choice.precision == "int8":
        assert ("int8", choice.runtime) in kinds
        fast = sets is None or sets & {"avx512_vnni", "amx_int8", "asimddp"}
        exact = choice.runtime == "onnxruntime" and sets is not None and "avx2" in sets
        assert slow or fast or exact
    if choice.precision == "bfloat16":
        assert slow or sets is None or sets & {"avx512_bf16", "amx_bf16", "bf16"}
    if choice.precision in ("int8", "bfloat16") and precision == "auto":
        assert drops.get(key, 9) <= 0.2  # measured, and inside the budget


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "tflite"}, "runtime=tflite`: expected auto"),
        ({"precision": "int4"}, "precision=int4"),
        ({"runtime": "onnxruntime", "precision": "bfloat16"}, "precision=bfloat16"),
        ({"threads": 0}, "threads=0`: expected 1 to "),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RuntimeOptions(**options)


def test_torch_needs_the_checkpoint_and_then_is_the_reference(files: Path) -> None:
    bundle = Bundle.open(files / "bundle")
    with pytest.raises(UsageError, match="reference=CHECKPOINT"):
        open_backend(bundle, RuntimeOptions("torch"))
    given_ = RuntimeOptions("torch", reference=files / "checkpoint.pth")
    opened = open_backend(bundle, given_)
    assert opened.choice.runtime == "torch"
    vectors = bundle.conformance()
    assert np.abs(opened.backend.embed_images(vectors.pixels) - vectors.vision).max() < 1e-4


def test_a_graph_that_computes_something_else_is_refused_on_opening(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(files / "bundle")
    vectors = bundle.conformance()
    wrong = dataclasses.replace(vectors, text=np.roll(vectors.text, 1, axis=1))
    monkeypatch.setattr(Bundle, "conformance", lambda _self: wrong)
    with pytest.raises(VerificationError, match=r"conformance vectors of the text tower"):
        open_backend(bundle, RuntimeOptions("onnxruntime", "float32"))
    open_backend(bundle, RuntimeOptions("onnxruntime", "float32", check=False))


def test_this_machine_finds_what_is_installed() -> None:
    machine = this_machine()
    assert {"onnxruntime", "torch"} <= machine.runtimes
