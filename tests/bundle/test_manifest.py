"""manifest.json round-trips through its dataclasses, and malformed content is refused."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from configs import CONFIGS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifests import EXPORT, seal
from paths import HELPERS

from mwa_export.bundle.engine import Engine, MeasuredEngines, Profile, RunTime, ShapeRange
from mwa_export.bundle.manifest import (
    MANIFEST,
    Export,
    Graph,
    Manifest,
    Source,
    StoredFile,
    preprocessing_of,
    read_manifest,
    write_manifest,
)
from mwa_export.bundle.quantization import HeldBackData, Measured, Quantization
from mwa_export.errors import BundleError
from mwa_export.metrics.verdict import Decision
from mwa_export.spec import Port, TowerSpec

SAMPLE = (HELPERS / "manifest_sample.json").read_text(encoding="utf-8")
"""Written before the manifest had types: two towers, INT8, engines with and without recall."""

# --- any manifest -------------------------------------------------------------------------------

TOWER = st.sampled_from(["vision", "text"])
NUMBER = st.one_of(st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False))
NAMES = st.lists(st.text(max_size=3), max_size=2).map(tuple)
SIZES = st.lists(st.integers(0, 9), min_size=3, max_size=3).map(sorted)


def by_tower(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(TOWER, values)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    def shapes(name: str) -> ShapeRange:
        axes = draw(st.lists(SIZES, min_size=1, max_size=3))
        low, usual, high = zip(*axes, strict=True)
        return ShapeRange(name, low, usual, high)

    return tuple(shapes(name) for name in draw(NAMES))


def exactly(kind: Any, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Of a dataclass: these fields as said, the others of text."""
    others = {name: st.text(max_size=3) for name in kind.__slots__ if name not in fields}
    return st.builds(kind, **others, **fields)


RECALL = st.dictionaries(st.text(max_size=3), st.dictionaries(st.text(max_size=3), NUMBER))
HELD_BACK = exactly(HeldBackData, pictures=st.integers(), captions=st.none() | st.integers())
MEASURED = {
    "decision": exactly(
        Decision,
        verdict=st.sampled_from(["passes", "fails", "undecided"]),
        **dict.fromkeys(("change", "low", "high", "confidence"), NUMBER),
        pictures=st.none() | st.integers(),
        objection=st.none() | st.text(max_size=3),
        accepted=st.booleans(),
    ),
    "mean_cosine": by_tower(NUMBER),
    "recall": RECALL,
}
CAPABILITY = st.tuples(st.integers(0, 20), st.integers(0, 9))
ENGINE = exactly(
    Engine,
    tower=TOWER,
    precision=st.sampled_from(["float16", "bfloat16", "int8", "float8"]),
    capability=CAPABILITY,
    capabilities=st.none() | st.lists(CAPABILITY, max_size=3).map(tuple),
    profiles=st.lists(profiles(), max_size=2).map(tuple),
    sources=NAMES,
    flags=NAMES,
    seconds=NUMBER,
    float32=st.none() | NAMES,
    measured=st.none()
    | exactly(
        MeasuredEngines,
        **MEASURED,
        max_recall_drop=NUMBER,
        held_back=st.none() | HELD_BACK,
        milliseconds=by_tower(
            exactly(RunTime, batch=st.integers(), length=st.none() | st.integers(), run=NUMBER)
        ),
    ),
)
QUANTIZATION = exactly(
    Quantization,
    data=st.dictionaries(st.text(max_size=3), st.text(max_size=3) | NUMBER),
    max_recall_drop=NUMBER,
    held_back=st.none() | HELD_BACK,
    measured=st.lists(
        exactly(
            Measured,
            **MEASURED,
            overflowed=st.none() | st.booleans(),
            speedup=by_tower(NUMBER),
        ),
        max_size=2,
    ).map(tuple),
    kept=by_tower(NAMES),
)
PORT = exactly(
    Port,
    shape=st.lists(st.integers(1, 9) | st.text(max_size=3), max_size=3).map(tuple),
    dtype=st.sampled_from(["float32", "int64", "uint8"]),
)
GRAPH = exactly(
    Graph,
    spec=st.builds(TowerSpec, TOWER, st.lists(PORT, max_size=2).map(tuple), PORT),
    opset=st.integers(1, 30),
    conformance=st.none() | NUMBER,
    float32=st.none() | NAMES,
    measured=st.none() | st.integers(0),
)
MANIFESTS = exactly(
    Manifest,
    model=st.sampled_from(list(CONFIGS.values())),
    preprocessing=st.dictionaries(st.text(max_size=3), st.lists(NUMBER, max_size=2)),
    graphs=st.lists(GRAPH, max_size=2).map(tuple),
    tokenizer=st.none() | st.text(max_size=3),
    export=exactly(
        Export,
        sources=st.lists(exactly(Source), max_size=2).map(tuple),
        warnings=NAMES,
        merges=NAMES,
        largest_difference_from_reference=by_tower(NUMBER),
        versions=st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3)),
    ),
    files=st.dictionaries(st.text(max_size=3), exactly(StoredFile, bytes=st.integers(0))),
    checksum=st.none() | st.text(max_size=3),
    engines=st.lists(ENGINE, max_size=2).map(tuple),
    quantization=st.none() | QUANTIZATION,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(MANIFESTS)
def test_a_manifest_survives_its_file(manifest: Manifest) -> None:
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_a_file_is_written_again_to_the_byte() -> None:
    read = Manifest.from_json(json.loads(SAMPLE))
    assert json.dumps(read.to_json(), indent=2) + "\n" == SAMPLE
    assert [engine.measured is None for engine in read.engines] == [False, True]
    assert read.quantization is not None
    assert [entry.overflowed for entry in read.quantization.measured] == [False, None]


# --- fields that are unknown, missing or malformed ------------------------------------------------


def objects(data: Any) -> Iterator[dict[str, Any]]:
    """All objects with fixed fields in a manifest; those with names of files and so on left out."""
    if isinstance(data, dict):
        if "schema" in data or {"file", "bytes", "runtime", "change", "kept"} & data.keys():
            yield data
        for value in data.values():
            yield from objects(value)
    if isinstance(data, list):
        for value in data:
            yield from objects(value)


def test_unknown_fields_are_ignored() -> None:
    data = json.loads(SAMPLE)
    found = list(objects(data))
    for each in found:
        each["a field of a later version"] = {"of": ["any", "kind"]}
    assert len(found) > 15
    assert Manifest.from_json(data) == Manifest.from_json(json.loads(SAMPLE))


def parent(data: Any, place: tuple[Any, ...]) -> Any:
    """What contains a place in JSON data."""
    return functools.reduce(operator.getitem, place[:-1], data)


@pytest.mark.parametrize(
    ("place", "wrong", "said"),
    [
        (("engines", 0, "tower"), "audio", "engines[0].tower: 'audio'"),
        (
            ("engines", 1, "precision"),
            "int3",
            "engines[1].precision: 'int3' is not one of ('float16',",
        ),
        (("engines", 0, "capability"), [9], "engines[0].capability: [9]"),
        (
            ("engines", 0, "profiles", 0, 1),
            {},
            "engines[0].profiles[0][1]: the field name is missing",
        ),
        (("engines", 0, "profiles", 0, 1, "min"), [7, 2], "axis 0 has min 7, opt 2"),
        (
            ("engines", 0, "measured", "decision", "verdict"),
            "yes",
            "engines[0].measured.decision.verdict: 'yes'",
        ),
        (("quantization",), [], "quantization: [] is not Quantization"),
        (("quantization", "measured", 0, "decision", "low"), None, "low: None is not float"),
        (("quantization", "kept"), {"audio": []}, "quantization.kept: 'audio'"),
        (("graphs", 1, "inputs", 0, "shape"), 7, "graphs[1].spec.inputs[0].shape: 7"),
        (("export", "merges"), "qkv", "export.merges: 'qkv'"),
        (("files", "vision.onnx", "bytes"), True, "vision.onnx.bytes: True is not int"),
        (("files", "vision.onnx", "bytes"), -1, "files.vision.onnx"),
        (("files", "vision.onnx", "sha256"), "0" * 63 + "x", "files.vision.onnx"),
        (("space_id",), "another", "space_id: 'another'"),
        (("graphs", 2, "conformance"), -5, "graphs[2]: conformance: -5"),
        (("graphs", 2, "precision"), "int4", "graphs[2]: precision: 'int4'"),
        (("graphs", 0, "inputs", 0, "shape"), ["batch", 3, 48, 48], "graphs[0]: inputs"),
        (("preprocessing", "text", "max_length"), 61, "preprocessing differs"),
        (("preprocessing", "image", "mean"), [0.5, 0.4, 0.5], "preprocessing differs"),
        (("model", "backbone", "layers"), "2", "model"),
        (("model", "enhancer"), "no", "model.enhancer: 'no' is not bool"),
        (("model", "adapter", "scale"), "0.6", "model.adapter.scale"),
    ],
)
def test_a_malformed_field_is_one_error_that_names_it(
    place: tuple[Any, ...], wrong: Any, said: str, tmp_path: Path
) -> None:
    data = json.loads(SAMPLE)
    parent(data, place)[place[-1]] = wrong
    with pytest.raises(BundleError, match=r"manifest\.json: is not a manifest") as error:
        read_manifest(seal(tmp_path, data))
    assert said in str(error.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused(number: str, tmp_path: Path) -> None:
    sealed = (seal(tmp_path, json.loads(SAMPLE)) / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(sealed.replace("0.9979149027533969", number))
    with pytest.raises(BundleError, match=f"{number} is not a finite number"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("place", [("export", "warnings"), ("engines", 0, "gpu"), ("checksum",)])
@pytest.mark.parametrize("wrong", [["other"], "other", "gone"])
def test_content_that_was_changed_by_hand_is_noticed(
    place: tuple[Any, ...], wrong: Any, tmp_path: Path
) -> None:
    path = seal(tmp_path, json.loads(SAMPLE)) / MANIFEST
    data = json.loads(path.read_text())
    if wrong == "gone":
        del parent(data, place)[place[-1]]
    else:
        parent(data, place)[place[-1]] = wrong
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="checksum"):
        read_manifest(tmp_path)


def places(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in JSON data."""
    entries = data.items() if isinstance(data, dict) else enumerate(data)
    for name, value in entries:
        yield (*at, name)
        if isinstance(value, dict | list):
            yield from places(value, (*at, name))


@given(
    st.sampled_from(list(places(json.loads(SAMPLE)))),
    st.sampled_from([None, True, 0, 1.5, "", "text", [], [None], {}, {"text": 1}, "gone"]),
)
def test_no_damage_raises_anything_but_a_bundle_error(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], wrong: Any
) -> None:
    data = json.loads(SAMPLE)
    if wrong == "gone":
        del parent(data, place)[place[-1]]
    else:
        parent(data, place)[place[-1]] = wrong
    try:
        read = read_manifest(seal(tmp_path_factory.mktemp("damaged"), data))
    except BundleError:
        return
    again = json.loads(json.dumps(read.to_json()))
    assert Manifest.from_json(again) == read


# --- writing --------------------------------------------------------------------------------------


def test_writing_returns_what_was_written_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "data.bin").write_bytes(b"12345")
    (tmp_path / "conformance.npz").write_bytes(b"")
    model = CONFIGS["plain"]
    spec = preprocessing_of(model.backbone)
    old = {"old": StoredFile(1, "gone")}
    given = Manifest("0" * 64, model, spec, (), None, EXPORT, old)
    before = replace(given)
    written = write_manifest(tmp_path, given)
    assert given == before
    assert list(written.files) == ["conformance.npz", "sub/data.bin"]
    assert written.files["sub/data.bin"].bytes == 5
    assert read_manifest(tmp_path) == written


OUTSIDE = (
    "../victim",
    "/etc/hosts",
    "a/../../victim",
    "..",
    "",
    "a//b",
    "C:\\x",
    "a\\..\\b",
    "x\0y",
)


@pytest.mark.parametrize("name", [*OUTSIDE, "manifest.json", ".pending/x", ".lock"])
@pytest.mark.parametrize("place", ["files", "graph", "tokenizer", "engine"])
def test_name_that_leads_out_of_the_bundle_is_refused(
    place: str, name: str, tmp_path: Path
) -> None:
    data = json.loads(SAMPLE)
    if place == "files":
        data["files"][name] = {"bytes": 1, "sha256": "0"}
    elif place == "graph":
        data["graphs"][0]["file"] = name
    elif place == "tokenizer":
        data["tokenizer"] = name
    else:
        data["engines"][0]["file"] = name
    with pytest.raises(BundleError, match="is not the name of a file in the bundle"):
        read_manifest(seal(tmp_path, data))
