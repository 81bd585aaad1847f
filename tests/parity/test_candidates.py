"""Several runtimes and precisions of a bundle are compared with one reference in one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import files_below, run

from mwa_export.bundle.bundle import Bundle
from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.encoder import Encoder
from mwa_export.errors import RuntimeUnavailableError, UsageError
from mwa_export.parity.candidates import compare_candidates, every_candidate
from mwa_export.parity.run import RunOptions
from mwa_export.runtimes.options import RuntimeOptions

FLOAT32 = [RuntimeOptions("onnxruntime", "float32"), RuntimeOptions("openvino", "float32")]


def test_every_candidate_has_graphs_and_runs_here(files: Path) -> None:
    found = every_candidate(Bundle.open(files / "bundle"), RuntimeOptions())
    pairs = {(options.runtime, options.precision) for options in found}
    assert ("onnxruntime", "float32") in pairs
    assert not {pair for pair in pairs if pair[1] == "int8"}, "the bundle was not quantized"
    assert not {pair for pair in pairs if pair[0] in ("torch", "tensorrt")}


def test_reference_is_embedded_once_without_a_cache(
    files: Path, data: RetrievalData, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[str] = []
    embed = Encoder.embed_pictures

    def counted(self: Encoder, *given: object, **how: object) -> object:
        embedded.append(self.info.runtime)
        return embed(self, *given, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "embed_pictures", counted)
    found = compare_candidates(files / "checkpoint.pth", files / "bundle", data, FLOAT32)
    assert list(found) == ["onnxruntime-float32", "openvino-float32"]
    assert len([name for name in embedded if name.startswith("PyTorch")]) == 1
    first, second = (done.result.costs for done in found.values())
    assert first[0].image_ms is not None
    assert second[0].image_ms is None, "it came from the first candidate's run"
    assert all(costs[-1].image_ms and costs[-1].text_ms for costs in (first, second))


def test_candidate_that_cannot_run_is_refused_before_the_work(
    files: Path, data: RetrievalData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "embed_pictures", lambda *_, **__: pytest.fail("it began"))
    asked = [*FLOAT32, RuntimeOptions("openvino", "int8")]
    with pytest.raises(RuntimeUnavailableError, match="quantize"):
        compare_candidates(files / "checkpoint.pth", files / "bundle", data, asked)


@pytest.mark.parametrize("run", [RunOptions(graphs=("text.onnx",)), RunOptions(layers=True)])
def test_options_for_one_candidate_are_refused(
    files: Path, data: RetrievalData, run: RunOptions
) -> None:
    with pytest.raises(UsageError, match="several candidates"):
        compare_candidates(files / "checkpoint.pth", files / "bundle", data, FLOAT32, run=run)


def test_command_writes_an_overview_and_a_report_of_each(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    outcome = run(
        *("parity", files / "bundle", "--reference", files / "bundle", "--data", files / "data"),
        *("--candidate", "onnxruntime:float32", "--candidate", "openvino:float32"),
        *("--no-cache", "--undecided", "pass", "-o", out),
    )
    assert outcome.status == 0, outcome
    assert outcome.stdout.rstrip().endswith(str(out / "index.html"))
    overview = json.loads((out / "report.json").read_bytes())
    assert [c["name"] for c in overview["candidates"]] == [
        "onnxruntime-float32",
        "openvino-float32",
    ]
    for candidate in overview["candidates"]:
        report = json.loads((out / candidate["report"]).read_bytes())
        assert report["verdict"] == candidate["verdict"]
        assert (out / candidate["name"] / "report.html").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--candidate", "onnxruntime:int4"),
        ("--candidate", "torch:float32"),
        ("--candidate", "openvino"),
        ("--candidate", "openvino:float32", "--all"),
        ("--all", "--precision", "int8"),
        ("--all", "--graph", "text.onnx"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_written(
    arguments: tuple[str, ...], files: Path, tmp_path: Path
) -> None:
    base = ("parity", files / "bundle", "--reference", files / "bundle", "--data", files / "data")
    outcome = run(*base, "-o", tmp_path / "report", *arguments)
    assert outcome.status == 2
    assert "--candidate" in outcome.stderr
    assert not files_below(tmp_path)
