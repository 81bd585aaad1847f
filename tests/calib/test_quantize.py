"""`mwa-export quantize` end to end: what it writes, reuses, keeps and refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Outcome, files_below, refused, run
from pages import check_page
from parity_files import write_test_set
from PIL import Image
from recall_changes import trial

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.quantization import Quantization
from mwa_export.calib.earlier import joined as joined_records
from mwa_export.calib.evaluate import Evaluator
from mwa_export.calib.precision_search import SiteKey, Trial
from mwa_export.cli import quantize_cmd
from mwa_export.errors import MwaExportError
from mwa_export.graphs.edit import FloatGraph

pytestmark = pytest.mark.slow

TOWERS = ("vision", "text")
QUICK = ("--dialect", "onnxruntime", "--threads", 1)
ONE_LAYER = (
    *("--keep", "text:*", "--keep", "*fc*", "--keep", "*.out", "--keep", "*adapter*"),
    *QUICK,
)  # all that is left to INT8 is vision:blocks.0.qkv


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_test_set(folder, pictures=36)
    return folder


@pytest.fixture(scope="module")
def whole(
    files: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """The shared bundle with all layers in INT8, and what the run said."""
    before, out = files_below(files / "bundle"), tmp_path_factory.mktemp("whole") / "bundle"
    arguments = ("--data", pictures, "--samples", 16, "--no-search", "--points", 0, *QUICK)
    outcome = run("quantize", files / "bundle", *arguments, "-o", out)
    assert files_below(files / "bundle") == before
    return out, outcome


@pytest.fixture
def copy(files: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return Path(shutil.copytree(files / "bundle", tmp_path / "bundle"))


def int8_layers(bundle: Path) -> set[str]:
    """Which layers the graphs for ONNX Runtime quantize, read from the graphs."""
    found = set()
    for tower in TOWERS:
        for node in FloatGraph.load(bundle / f"{tower}.int8.onnxruntime.onnx").nodes:
            if node.op_type == "QuantizeLinear":
                found.add(f"{tower}:{node.name.removesuffix('.input.QuantizeLinear')}")
    return found


def all_layers(bundle: Path) -> set[str]:
    sites = json.loads((bundle / "calibration.json").read_text())["sites"]
    return {f"{site['tower']}:{site['site']}" for site in sites}


def quantization(bundle: Path) -> Quantization:
    found = Bundle.open(bundle).manifest.quantization
    assert found is not None
    return found


def test_no_search_quantizes_all_layers_and_measures_the_drop(whole: tuple[Path, Outcome]) -> None:
    out, outcome = whole
    assert outcome.status == 3, outcome  # undecided; the graphs are added all the same
    assert outcome.stdout.endswith(f"{out}\n")
    assert int8_layers(out) == all_layers(out)
    said = quantization(out)
    assert said.kept == {"vision": (), "text": ()}
    assert (said.data["pictures"], said.data["captions"]) == (16, 16)
    assert said.held_back is not None
    assert (said.held_back.pictures, said.held_back.captions) == (20, 40)
    (int8,) = (entry for entry in said.measured if entry.precision == "int8")
    exact, found = int8.recall["float32"], int8.recall["candidate"]
    assert exact.keys() == found.keys() == {f"{d}@{k}" for d in ("TR", "IR") for k in (1, 5, 10)}
    decision = int8.decision
    assert (decision.verdict, decision.accepted) == ("undecided", False)
    assert "20 images are too few" in (decision.objection or "")
    assert decision.low < decision.change < decision.high
    assert min(int8.mean_cosine.values()) > 0.998
    graphs = [graph for graph in Bundle.open(out).manifest.graphs if graph.precision == "int8"]
    assert {graph.dialect for graph in graphs} == {"onnxruntime"}
    assert all(0.99 < (graph.conformance or 0) < 1 for graph in graphs)


@pytest.mark.parametrize(
    ("verdict", "undecided", "status"),
    [
        ("passes", None, 0),
        ("fails", None, 1),
        ("fails", "pass", 1),
        ("undecided", None, 3),
        ("undecided", "fail", 1),
    ],
)
def test_exit_status_without_a_search_follows_the_verdict(
    whole: tuple[Path, Outcome], verdict: Any, undecided: str | None, status: int
) -> None:
    (int8,) = (e for e in quantization(whole[0]).measured if e.precision == "int8")
    decision = replace(int8.decision, verdict=verdict)
    found = 0
    try:
        quantize_cmd._fail_unless_used(decision, undecided)
    except MwaExportError as error:
        found = error.exit_status
    assert found == status


def test_trade_off_curve_is_saved_as_json_and_picture(whole: tuple[Path, Outcome]) -> None:
    curve = json.loads((whole[0] / "tradeoff.json").read_text())
    assert curve["decision"]["verdict"] == "undecided"
    assert [point["int8"] for point in curve["points"]] == [0, 14]
    assert [point["chosen"] for point in curve["points"]] == [False, True]
    assert curve["points"][0]["recall_drop"] == 0
    assert {f"{x['tower']}:{x['name']}" for x in curve["layers"]} == all_layers(whole[0])
    assert all(layer["sensitivity"] > 0 for layer in curve["layers"])
    picture = (whole[0] / "tradeoff.svg").read_text()
    assert picture.startswith("<svg")
    assert picture.count('<circle class="chosen"') == 1
    check_page((whole[0] / "tradeoff.html").read_text(encoding="utf-8"))


def test_calibration_is_reused_without_data(whole: tuple[Path, Outcome], copy: Path) -> None:
    calibration = whole[0] / "calibration.json"
    outcome = run("quantize", copy, "--calibration", calibration, *QUICK)
    assert outcome.status == 0, outcome
    assert "recall was not measured (no --data)" in outcome.stderr
    for name in ("vision.int8.onnxruntime.onnx", "text.int8.onnxruntime.onnx", "calibration.json"):
        assert (copy / name).read_bytes() == (whole[0] / name).read_bytes()
    assert not list(copy.glob("tradeoff.*")), "nothing was measured"
    assert quantization(copy).measured == ()

    run("quantize", copy, "--calibration", calibration, "--dialect", "tensorrt8")
    dialects = {g.dialect for g in Bundle.open(copy).manifest.graphs if g.precision == "int8"}
    assert dialects == {"onnxruntime", "tensorrt8"}


def test_graphs_of_another_choice_of_layers_go_and_that_is_said(
    whole: tuple[Path, Outcome], copy: Path
) -> None:
    calibration = ("--calibration", whole[0] / "calibration.json")
    assert run("quantize", copy, *calibration, *QUICK).status == 0
    outcome = run("quantize", copy, *calibration, "--dialect", "tensorrt8", "--keep", "text:*")
    assert outcome.status == 0
    assert "earlier quantization: --dialect onnxruntime" in outcome.stderr
    assert {g.dialect for g in Bundle.open(copy).manifest.graphs} == {"onnx", "tensorrt8"}


def test_measured_graphs_stay_when_another_runtimes_are_added(
    whole: tuple[Path, Outcome], tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(whole[0], tmp_path / "bundle"))
    before = quantization(bundle)
    calibration = ("--calibration", bundle / "calibration.json")
    assert run("quantize", bundle, *calibration, "--dialect", "tensorrt").status == 0
    assert quantization(bundle) == before
    assert (bundle / "tradeoff.json").exists()
    assert {g.dialect for g in Bundle.open(bundle).manifest.graphs} == {
        *("onnx", "onnxruntime", "tensorrt")
    }


def test_measurements_are_joined_only_if_they_are_of_the_same_data(
    whole: tuple[Path, Outcome], pictures: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(whole[0], tmp_path / "bundle"))
    before = quantization(bundle)
    arguments = (bundle, "--calibration", bundle / "calibration.json", "--held-back", pictures)
    search = ("--dialect", "openvino", "--threads", 1, "--no-search", "--points", 0)
    outcome = run("quantize", *arguments, *search)
    assert outcome.status == 3, outcome
    assert "ONNX Runtime was measured on other data" in outcome.stderr
    assert {entry.runtime for entry in quantization(bundle).measured} == {"openvino"}
    joined, lost = joined_records(before, replace(quantization(bundle), held_back=before.held_back))
    assert lost == []
    assert {entry.runtime for entry in joined.measured} == {"openvino", "onnxruntime"}


def test_kept_layers_stay_and_force_replaces_only_if_asked(
    whole: tuple[Path, Outcome], files: Path, copy: Path
) -> None:
    arguments = (
        *("quantize", files / "bundle", "--calibration", whole[0] / "calibration.json", *QUICK),
        *("--keep", "text:*.qkv", "--keep", "*.enhancer.*", "-o", copy),
    )
    before = files_below(copy)
    assert "--force" in refused(*arguments)
    assert files_below(copy) == before
    outcome = run(*arguments, "--force")
    assert outcome.status == 0, outcome
    kept = {x for x in all_layers(copy) if x == "text:blocks.0.qkv" or ".enhancer." in x}
    assert len(kept) == 5
    assert int8_layers(copy) == all_layers(copy) - kept
    said = quantization(copy).kept
    assert {f"{tower}:{name}" for tower, names in said.items() for name in names} == kept


def test_search_keeps_to_what_it_expects_and_the_rest_decides(
    whole: tuple[Path, Outcome], pictures: Path, copy: Path
) -> None:
    calibration = ("--calibration", whole[0] / "calibration.json", "--data", pictures)
    arguments = ("--keep", "text:*", "--points", 1, "--undecided", "pass", *QUICK)
    outcome = run("quantize", copy, *calibration, *arguments)
    assert outcome.status == 0, outcome
    curve = json.loads((copy / "tradeoff.json").read_text())
    (chosen,) = (point for point in curve["points"] if point["chosen"])
    assert 0 < chosen["int8"] == len(int8_layers(copy))
    kept = {f"{x['tower']}:{x['name']}" for x in curve["kept"]}
    assert kept == {x for x in all_layers(copy) - int8_layers(copy) if x.startswith("vision:")}
    assert kept == set(chosen["high_precision"])
    assert max(p["int8"] for p in curve["points"]) == 7, "all that may be was tried"
    said = quantization(copy)
    assert said.held_back is not None
    assert said.held_back.pictures == 18, "the other half was searched with"
    (int8,) = (entry for entry in said.measured if entry.precision == "int8")
    assert int8.decision.accepted
    assert int8.decision.takes
    assert "cannot" in outcome.stderr or "too few" in outcome.stderr


@pytest.mark.parametrize(("undecided", "status"), [(None, 3), ("fail", 1)])
def test_data_that_cannot_decide_end_as_the_user_says(
    whole: tuple[Path, Outcome], pictures: Path, copy: Path, undecided: str | None, status: int
) -> None:
    before = files_below(copy)
    calibration = ("--calibration", whole[0] / "calibration.json", "--held-back", pictures)
    option = () if undecided is None else ("--undecided", undecided)
    outcome = run("quantize", copy, *calibration, *ONE_LAYER, "--points", 0, *option)
    assert outcome.status == status, outcome
    assert "too few" in outcome.stderr
    if undecided == "fail":
        assert files_below(copy) == before
        return
    assert int8_layers(copy) == {"vision:blocks.0.qkv"}
    assert not any(entry.decision.takes for entry in quantization(copy).measured)


def test_both_sets_may_be_splits_of_one_table_with_headings_of_its_own(
    files: Path, pictures: Path, tmp_path: Path
) -> None:
    with (tmp_path / "both.csv").open("w") as table:
        table.write("photo;words;split\n")
        for line in (pictures / "captions.jsonl").read_text().splitlines()[:34]:
            record = json.loads(line)
            split = "fit" if int(record["image"][:3]) < 16 else "measure"
            table.writelines(f"{record['image']};{text};{split}\n" for text in record["captions"])
        table.write("gone.png;nowhere;measure\n")
    outcome = run(
        *("quantize", files / "bundle", "--data", tmp_path / "both.csv", "--images", pictures),
        *("--image-column", "Photo", "--caption-column", "words", "--split", "fit"),
        *("--held-back", tmp_path / "both.csv", "--held-back-images", pictures),
        *("--held-back-split", "measure", "--max-excluded", 1),
        *("--samples", 16, "--no-search", "--points", 0, *QUICK, "-o", tmp_path / "bundle"),
    )
    assert outcome.status == 3, outcome
    said = quantization(tmp_path / "bundle")
    assert said.held_back is not None
    assert (said.data["pictures"], said.held_back.pictures, said.held_back.captions) == (16, 18, 36)


@pytest.mark.parametrize("where", ["search", "decision"])
def test_missed_budget_is_exit_status_1_and_leaves_the_bundle(
    whole: tuple[Path, Outcome],
    pictures: Path,
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    def lossy(self: Evaluator, int8: frozenset[SiteKey]) -> Trial:
        bad = self.held_back.name == "search" or where == "decision"
        found = trial(int8, 7.5 if int8 and bad else 0.0)
        return (
            trial(int8, 0.0) if where == "decision" and self.held_back.name == "search" else found
        )

    monkeypatch.setattr(Evaluator, "__call__", lossy)
    before = files_below(copy.parent)
    calibration = ("--calibration", whole[0] / "calibration.json", "--held-back", pictures)
    message = refused("quantize", copy, *calibration, *ONE_LAYER, "--points", 0, status=1)
    if where == "search":
        assert "by at most 0.2 points; the best one tried drops 7.50" in message
    else:
        assert "do not pass on the held-back data: TR@1 -7.50 points" in message
    assert "The bundle is unchanged" in message
    assert files_below(copy.parent) == before

    allowed = (*ONE_LAYER, "--max-recall-drop", 8, "--undecided", "pass", "--points", 0)
    assert run("quantize", copy, *calibration, *allowed).status == 0
    assert int8_layers(copy) == {"vision:blocks.0.qkv"}


def test_data_that_cannot_be_calibrated_with_is_refused(
    pictures: Path, copy: Path, tmp_path: Path
) -> None:
    before = files_below(copy)
    message = refused("quantize", copy, "--data", pictures, "--samples", 15, *QUICK)
    assert message.startswith("--samples 15: too few. Expected at least 16")
    message = refused("quantize", copy, "--data", pictures, "--samples", 21, *QUICK)
    assert "has 36 images. Expected 21 for calibration, and at least 16 more" in message

    noise = tmp_path / "noise"
    write_test_set(noise, pictures=32)
    rng = np.random.default_rng(0)
    for path in noise.glob("*.png"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    message = refused("quantize", copy, "--data", noise, "--samples", 16, *QUICK)
    assert "16 of 16 images are noise" in message
    assert files_below(copy) == before


def test_options_and_calibrations_that_do_not_fit_are_refused(
    whole: tuple[Path, Outcome], copy: Path, tmp_path: Path
) -> None:
    before = files_below(copy)
    assert refused("quantize", copy, *QUICK).startswith("no data to calibrate with.")
    own = ("--calibration", whole[0] / "calibration.json")
    for option in (("--rounding", "learned"), ("--method", "mse"), ("--samples", 20),
                   ("--percentile", 99), ("--no-smooth",)):  # fmt: skip
        outcome = run("quantize", copy, *own, *option, *QUICK)
        assert outcome.status == 2
        assert f"{option[0]} cannot be combined with --calibration" in outcome.stderr
    message = refused("quantize", copy, *own, "--keep", "blocks.7.*", *QUICK)
    assert message.startswith("--keep blocks.7.*: matches no layer. The layers are vision:")
    everything = ("--keep", "vision:*", "--keep", "text:*")
    message = refused("quantize", copy, *own, *everything, *QUICK)
    assert message.startswith("--keep vision:*, text:*: matches all 14 layers")
    missing = tmp_path / "calibration.json"
    message = refused("quantize", copy, "--calibration", missing, *QUICK)
    assert message.startswith(f"{missing}: does not exist.")

    content = json.loads((whole[0] / "calibration.json").read_text())
    content["graphs"]["text"] = content["graphs"]["vision"]
    missing.write_text(json.dumps(content))
    shutil.copy(whole[0] / "calibration.npz", tmp_path)
    message = refused("quantize", copy, "--calibration", missing, *QUICK)
    assert "text.onnx: is not the graph that the calibration was made from" in message
    assert files_below(copy) == before


def test_patterns_are_checked_before_the_calibration(
    copy: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mwa_export.calib.quantize.calibrate", None)  # would fail
    message = refused("quantize", copy, "--data", pictures, "--samples", 16, "--keep", "head")
    assert message.startswith("--keep head: matches no layer.")
