"""A full benchmark of a tiny bundle, from Python and from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import files_below, refused, run, save
from configs import MWA

from mwa_export.bench import ours, plain
from mwa_export.bench.ours import our_name
from mwa_export.bench.peers import PEERS, Peer, chosen_peers
from mwa_export.bench.result import Bench, Figure, Section
from mwa_export.bench.run import BenchOptions, run_bench
from mwa_export.bench.timing import interleave
from mwa_export.bundle.bundle import Bundle
from mwa_export.errors import MwaExportError, UsageError
from mwa_export.model.load import ModelSource, load_model
from mwa_export.model.synthetic import random_tensors

ORT = our_name("onnxruntime", "float32")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between contenders."""
    monkeypatch.setattr("mwa_export.bench.timing.time.sleep", lambda _seconds: None)


@pytest.fixture
def bench_refused(files: Path, folder: Path) -> Callable[..., str]:
    """A run that must fail and leave nothing; returns its message."""

    def bench(*arguments: object, bundle: Path = files / "bundle") -> str:
        before = files_below(folder)
        message = refused("bench", bundle, "-o", folder / "bench", "--rounds", 3, *arguments)
        assert files_below(folder) == before
        return message

    return bench


def by_name(section: Section) -> dict[str, Figure]:
    return {figure.name: figure for figure in section.figures}


@pytest.mark.slow
def test_run_with_checkpoint_and_data_measures_peers_beside_ours(
    files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bench"
    outcome = run(
        *("bench", files / "bundle", "--reference", files / "checkpoint.pth"),
        *("--data", files / "data", "--rounds", 3, "--batch", 4, "-o", out),
        *("--peers", "eager,onnx", "--runtime", "onnxruntime"),
        *("--tower", "text", "--threads", 1),
    )
    assert outcome.status == 0, outcome
    assert outcome.stdout.endswith(f"{out / 'bench.html'}\n")
    result = json.loads((out / "bench.json").read_text())
    result.pop("schema")
    bench = Bench.from_json(result)
    (section,) = bench.sections
    assert (section.tower, section.batch, section.window) == ("text", 4, 32)
    assert section.baseline == PEERS["eager"].name
    figures = by_name(section)
    assert figures[ORT].cosine == pytest.approx(1, abs=1e-5)
    told = {*figures, *(item.name for item in section.skipped)}
    assert told >= {PEERS[name].name for name in ("eager", "onnx")}
    assert section.peaks == ()
    eager = figures[PEERS["eager"].name]
    assert figures[ORT].calls == eager.calls == 24
    # Operations per row: fewer for the merged graph, and without padding to the whole length.
    merged, unmerged = (f.gops / f.rows_per_second for f in (figures[ORT], eager))
    assert merged < unmerged
    assert bench.settings.real
    assert str(files) not in (out / "bench.json").read_text()


@pytest.mark.slow
def test_without_checkpoint_the_bundle_is_measured_and_peers_say_what_they_need(
    files: Path, tmp_path: Path
) -> None:
    outcome = run(
        *("bench", files / "bundle", "--rounds", 3, "--batch", 1, "--tower", "text", "-q"),
        *("--lengths", 12, "--runtime", "onnxruntime", "-o", tmp_path / "b"),
    )
    assert outcome.status == 0, outcome
    assert outcome.stderr == ""
    result = json.loads((tmp_path / "b" / "bench.json").read_text())
    (section,) = result["sections"]
    assert section["baseline"] == ORT
    assert section["mean_length"] == 12
    assert section["peaks"] == []
    skipped = {item["name"]: item["reason"] for item in section["skipped"]}
    assert set(skipped) >= {peer.name for peer in PEERS.values()}
    assert "not measured: PyTorch eager float32: needs the checkpoint" in outcome.stdout
    assert "peak" not in outcome.stdout


@pytest.mark.slow
def test_peer_that_fails_is_listed_and_the_others_are_measured(
    files: Path,
) -> None:
    def opens_but_fails(_start: object) -> Any:
        def run(_batch: object) -> Any:
            raise RuntimeError("no compiler")

        return run

    model = load_model(ModelSource(files / "checkpoint.pth"))
    options = BenchOptions(("vision",), (2,), 3, ("onnxruntime",))
    peers = (Peer("another tool", "torch", "float32", opens_but_fails), PEERS["eager"])
    result = run_bench(Bundle.open(files / "bundle"), options, model=model, peers=peers)
    (section,) = result.sections
    reasons = {item.name: item.reason for item in section.skipped}
    assert reasons["another tool"] == "RuntimeError: no compiler"
    assert {PEERS["eager"].name, ORT} <= set(by_name(section))


@pytest.mark.slow
def test_plain_export_that_fails_is_tried_once_and_every_peer_that_needs_it_says_why(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fails(*_args: object) -> Any:
        tried.append(1)
        raise RuntimeError("no decomposition\nfor aten::x")

    monkeypatch.setattr(plain, "plain_export", fails)
    model = load_model(ModelSource(files / "checkpoint.pth"))
    options = BenchOptions(("text",), (2,), 3, ("onnxruntime",))
    peers = chosen_peers(["onnx", "openvino"])
    result = run_bench(Bundle.open(files / "bundle"), options, model=model, peers=peers)
    reasons = {item.name: item.reason for item in result.sections[0].skipped}
    expected = "the plain export failed: RuntimeError: no decomposition for aten::x"
    assert [reasons[peer.name] for peer in peers] == [expected] * 2
    assert len(tried) == 1


def test_bug_in_a_contender_of_ours_is_not_hidden(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> Any:
        raise TypeError("a bug")

    monkeypatch.setattr(ours, "_backend", broken)
    options = BenchOptions(("vision",), (1,), 3, ("onnxruntime",))
    with pytest.raises(TypeError, match="a bug"):
        run_bench(Bundle.open(files / "bundle"), options, peers=())


def test_nothing_that_runs_is_an_error_with_every_reason(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_args: object) -> Any:
        raise MwaExportError("not here")

    monkeypatch.setattr(ours, "_backend", missing)
    options = BenchOptions(("vision",), (1,), 3, ("onnxruntime",))
    with pytest.raises(
        MwaExportError, match=r"no contender can run the vision tower.*float32: not here"
    ):
        run_bench(Bundle.open(files / "bundle"), options, peers=())


@pytest.mark.slow
def test_every_shape_is_warmed_up_before_the_clock_runs(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    timing = []

    class Backend:
        def embed_texts(self, ids: Any, _mask: Any) -> Any:
            seen.append(ids.shape)
            return np.ones((len(ids), 4), np.float32)

    def watched(*args: Any, **more: Any) -> Any:
        timing.append(len(seen))
        return interleave(*args, **more)

    monkeypatch.setattr(ours, "_backend", lambda *_args: Backend())
    monkeypatch.setattr("mwa_export.bench.section.interleave", watched)
    options = BenchOptions(("text",), (4,), 4, ("onnxruntime",), "coco")
    run_bench(Bundle.open(files / "bundle"), options, peers=())
    before, timed = set(seen[: timing[0]]), set(seen[timing[0] :])
    assert len(timed) > 2
    assert timed <= before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--peers", "eager,tensorflow"), "--peers tensorflow: expected all, none"),
        (("--peers", "none,eager"), "--peers none cannot be combined"),
        (("--runtime", "tflite"), "--runtime tflite: expected onnxruntime"),
        (("--data", "nowhere.json"), "nowhere.json: no such file"),
        (("--images", "pictures"), "options for --data were given without it"),
        (("--lengths", "400"), "from 3 to 62"),
        (("--reference", "nothing.pth"), "nothing.pth"),
    ],
)
def test_impossible_option_is_refused(
    bench_refused: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in bench_refused(*arguments)


def test_two_rounds_are_refused(files: Path, folder: Path) -> None:
    outcome = run("bench", files / "bundle", "--rounds", 2, "-o", folder / "b")
    assert outcome.status == 2
    assert "3" in outcome.stderr
    with pytest.raises(UsageError, match="at least 3"):
        BenchOptions(rounds=2)
    with pytest.raises(UsageError, match="batch sizes"):
        BenchOptions(batches=(0,))


def test_folder_that_is_no_bundle_is_refused(
    bench_refused: Callable[..., str], tmp_path: Path
) -> None:
    assert "is not a bundle" in bench_refused(bundle=tmp_path / "nothing")


def test_checkpoint_of_another_bundle_is_refused(
    bench_refused: Callable[..., str], tmp_path: Path
) -> None:
    other = save(tmp_path / "other.pth", random_tensors(MWA, 1))
    assert "differs from" in bench_refused("--reference", other)


def test_existing_folder_is_refused_before_the_work(files: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "bench.json").write_text("{}")
    arguments = ("bench", files / "bundle", "--reference", "nothing.pth", "-o", tmp_path / "b")
    assert "exists" in refused(*arguments)


def test_chosen_peers_keep_their_order_and_all_is_all() -> None:
    assert chosen_peers(["openvino", "eager"]) == (PEERS["eager"], PEERS["openvino"])
    assert chosen_peers(["all"]) == tuple(PEERS.values())
    assert chosen_peers(["none"]) == chosen_peers([]) == ()


def test_help_names_every_peer_and_runtime() -> None:
    text = "".join(run("bench", "--help").stdout.split())  # names may be broken at a hyphen
    for name in (*PEERS, *ours.NAMES):
        assert name in text, name
