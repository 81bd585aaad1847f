"""Every TensorRT name that we use exists in the real bindings of 8.6, 10.16 and 11.4."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from make_trt_offers import INSPECT, UnavailableError, genuine_offer, importable
from paths import ROOT
from trt_bindings import VERSIONS, Bindings
from trt_contract import Use, missing, uses_in

from mwa_export.trt.versions import LIMITED, SUPPORTED

SOURCES = [
    path
    for folder in ("mwa_export", "calib", "cli", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "trt." in path.read_text(encoding="utf-8")
    and path.name != "rtx.py"  # TensorRT-RTX itself runs in tests/engines/test_compiler.py
]
GUARD = ROOT / "mwa_export" / "trt" / "versions.py"


@pytest.fixture(scope="session")
def cache_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the bindings stay from run to run, unless pytest runs without a cache."""
    kept = getattr(request.config, "cache", None)
    return tmp_path_factory.mktemp("trt") if kept is None else Path(kept.mkdir("trt-bindings"))


@pytest.fixture(scope="session")
def offers() -> dict[int, dict[str, Any]]:
    """What each version offers, by its major number."""
    return {bindings.major: bindings.offer() for bindings in VERSIONS}


@cache
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def all_uses(offers: dict[int, dict[str, Any]]) -> list[tuple[Path, Use]]:
    newest_first = [offers[major] for major in sorted(offers, reverse=True)]
    return [(path, use) for path in SOURCES for use in uses_in(_read(path), newest_first)[0]]


def problems(
    path: Path, use: Use, offers: dict[int, dict[str, Any]], limited: dict[str, tuple[int, ...]]
) -> list[str]:
    """Versions that must have what is used and do not, or the other way round."""
    found = []
    for major, offer in offers.items():
        absent = missing(use, offer)
        if (absent is None) != (major in limited.get(use.name, SUPPORTED)):
            found.append(f"{path.name}:{use.line}: {use.name} in {major}: {absent or 'exists'}")
    return found


def test_versions_are_those_that_we_support() -> None:
    assert tuple(bindings.major for bindings in VERSIONS) == tuple(SUPPORTED)


def test_every_name_exists_in_every_version_that_it_is_used_with(
    offers: dict[int, dict[str, Any]],
) -> None:
    found = [p for path, use in all_uses(offers) for p in problems(path, use, offers, LIMITED)]
    assert not found


def test_the_walk_sees_what_a_build_needs(offers: dict[int, dict[str, Any]]) -> None:
    seen = {use.name for _path, use in all_uses(offers)}
    assert seen >= {
        "Builder",
        "Builder.build_serialized_network",
        "Builder.create_network",
        "BuilderFlag.FP16",
        "BuilderFlag.REFIT",
        "IBuilderConfig.set_flag",
        "IBuilderConfig.set_memory_pool_limit",
        "IOptimizationProfile.set_shape",
        "MemoryPoolType.WORKSPACE",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "OnnxParser.get_error",
        "ParserError.node_operator",
        "Runtime.deserialize_cuda_engine",
    }


def test_names_that_not_all_versions_have_stay_in_one_module(
    offers: dict[int, dict[str, Any]],
) -> None:
    elsewhere = {(p.name, u.name) for p, u in all_uses(offers) if p != GUARD and u.name in LIMITED}
    assert not elsewhere


def test_the_table_of_versions_names_nothing_that_is_not_used(
    offers: dict[int, dict[str, Any]],
) -> None:
    assert set(LIMITED) <= {use.name for path, use in all_uses(offers) if path == GUARD}


def test_every_object_of_tensorrt_has_a_known_type(offers: dict[int, dict[str, Any]]) -> None:
    newest = [offers[major] for major in sorted(offers, reverse=True)]
    unknown = [(path.name, *u) for path in SOURCES for u in uses_in(_read(path), newest)[1]]
    assert not unknown


SAMPLE = """
def build(trt, path, config: trt.IBuilderConfig):
    builder = trt.Builder(trt.Logger(trt.Logger.{severity}))
    network = builder.create_network({flags}=0)
    parser = trt.OnnxParser(network, builder.logger)
    parser.{parse}(path)
    print(parser.get_error(0).{field}())
    config.{attribute} = 3
    return builder.build_serialized_network({arguments})

class Monitor(trt.IProgressMonitor):
    def step_complete(self, phase_name, {step}): ...
"""
RIGHT = {
    "severity": "WARNING",
    "flags": "flags",
    "parse": "parse_from_file",
    "field": "node_name",
    "attribute": "builder_optimization_level",
    "arguments": "network, config",
    "step": "step",
}


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (None, ""),
        ("severity", "WARN"),
        ("flags", "options"),
        ("parse", "parse_file"),
        ("field", "node_operation"),
        ("attribute", "optimization_level"),
        ("arguments", "network"),
        ("arguments", "network, config, None, 1, 2"),
        ("step", "number"),
    ],
)
def test_a_wrong_name_is_found(
    place: str | None, wrong: str, offers: dict[int, dict[str, Any]]
) -> None:
    words = RIGHT if place is None else {**RIGHT, place: wrong}
    uses, untyped = uses_in(SAMPLE.format(**words), [offers[11]])
    found = [text for use in uses if (text := missing(use, offers[11])) is not None]
    assert len(found) == (place is not None), found
    assert not untyped


def test_an_object_of_unknown_type_is_found(offers: dict[int, dict[str, Any]]) -> None:
    _uses, untyped = uses_in("def f(thing):\n    thing.create_network(1)\n", [offers[11]])
    assert untyped == [("create_network", 2)]


def test_types_of_our_graphs_are_those_of_the_versions_that_get_them(
    offers: dict[int, dict[str, Any]],
) -> None:
    """Strongly typed graphs are for 10 and 11; 8.6 has no bfloat16 at all."""
    types = {major: set(offer["classes"]["DataType"]["values"]) for major, offer in offers.items()}
    for major in (10, 11):
        assert types[major] >= {"FLOAT", "HALF", "BF16", "INT8", "FP8", "INT64", "UINT8"}
    assert "BF16" not in types[8]


NETWORK_FLAGS = {8: 1, 10: 2, 11: 1}
CALL = """
import sys
sys.path.insert(0, sys.argv[1])
import tensorrt_bindings as trt
from mwa_export.trt.versions import major_of, tensorrt_from_module
tensorrt = tensorrt_from_module(trt)
print(major_of(tensorrt.version), tensorrt.network_flags())
class Config:
    def __init__(self): self.called = []
    def __getattr__(self, name): return lambda *a: self.called.append((name, *a))
config = Config()
tensorrt.allow_precision(config, "int8")
tensorrt.own_kernels_only(config)
print([str(a) for call in config.called for a in call])
tensorrt.watch(config, print, lambda name: name == "go on")
monitor = vars(config).get("progress_monitor")
print(None if monitor is None else monitor.step_complete("go on", 1))
"""


@pytest.mark.slow
@pytest.mark.parametrize("bindings", VERSIONS, ids=lambda b: b.version)
def test_committed_offers_are_those_of_the_genuine_module(
    bindings: Bindings, cache_folder: Path
) -> None:
    try:
        assert genuine_offer(bindings, cache_folder) == bindings.offer()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("bindings", VERSIONS, ids=lambda b: b.version)
def test_choices_by_version_run_with_the_genuine_module(
    bindings: Bindings, cache_folder: Path
) -> None:
    try:
        environment = importable(bindings, cache_folder)
    except UnavailableError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, "-c", CALL, str(ROOT)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, called, monitor = done.stdout.splitlines()
    assert first == f"{bindings.major} {NETWORK_FLAGS[bindings.major]}"
    assert ("BuilderFlag.INT8" in called) == (bindings.major == 8)
    mask = 3 if bindings.major == 11 else 24
    assert f"'set_tactic_sources', '{mask}'" in called
    assert monitor == ("None" if bindings.major == 8 else "True")


def test_tensorrt_rtx_offers_what_we_use_of_tensorrt_11(offers: dict[int, dict[str, Any]]) -> None:
    """Running an engine is the one thing that no machine without a GPU can try."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    script = INSPECT.replace("tensorrt_bindings", "tensorrt_rtx_bindings")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    rtx = json.loads(done.stdout)
    # In TensorRT's own methods; TensorRT-RTX has others in their place (trt/rtx.py).
    replaced = {"TacticSource.EDGE_MASK_CONVOLUTIONS", "TacticSource.JIT_CONVOLUTIONS"}
    found = {
        f"{path.name}: {missing(use, rtx)}"
        for path, use in all_uses(offers)
        if 11 in LIMITED.get(use.name, (11,)) and use.name not in replaced
        if missing(use, rtx) is not None
    }
    assert not found
