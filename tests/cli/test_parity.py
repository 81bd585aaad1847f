"""`mwa-export parity` in interactive use and in pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from commands import files_below, refused, run
from parity_arrays import perfect
from parity_files import write_test_set

pytestmark = pytest.mark.slow


@pytest.fixture
def parity_refused(files: Path, folder: Path) -> Callable[..., str]:
    """A run that must fail and leave nothing; returns its message."""

    def parity(*arguments: object, data: Path = files / "data", reference: object = None) -> str:
        before = files_below(folder)
        base = ("parity", files / "bundle", "--data", data, "--no-cache", "-o", folder / "report")
        given = reference or files / "checkpoint.pth"
        message = refused(*base, "--reference", given, *arguments)
        assert files_below(folder) == before
        return message

    return parity


LOOSE = ("--undecided", "pass")  # 20 pictures decide nothing


def test_passing_run_prints_the_report_and_exits_with_zero(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    outcome = run(
        *("parity", files / "bundle", "--reference", files / "checkpoint.pth", *LOOSE),
        *("--data", files / "data", "--layers", "--cache", tmp_path / "cache", "-o", out),
    )
    assert outcome.status == 0, outcome
    assert outcome.stdout.rstrip().endswith(str(out / "report.html"))
    assert "Undecided: 20 images are too few" in outcome.stdout
    assert sorted(p.name for p in out.iterdir()) == [
        "junit.xml",
        "report.html",
        "report.json",
        "report.md",
    ]
    page = (out / "report.html").read_text()
    assert "Undecided" in page
    assert "block 1" in page
    assert list((tmp_path / "cache").rglob("*.chunk"))


def test_failed_gate_exits_with_one_and_is_named_everywhere(files: Path, tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    graph, out = tmp_path / "text.int8.onnx", tmp_path / "report"
    quantization.quantize_dynamic(files / "bundle" / "text.onnx", graph)
    outcome = run(
        *("parity", files / "bundle", "--reference", files / "bundle", "--graph", graph),
        *("--data", files / "data", "--min-cosine", 0.9999, "--no-cache", "-o", out),
        *("--max-recall-drop", 100),
    )
    assert outcome.status == 1, outcome
    error = outcome.stderr.splitlines()[-1]
    assert error.startswith("error: parity failed. text cosine has a minimum of 0.9")
    assert "Fails: text cosine" in outcome.stdout
    failures = ElementTree.parse(out / "junit.xml").findall(".//failure")
    assert [failure.get("message", "")[:11] for failure in failures] == ["text cosine"]
    assert json.loads((out / "report.json").read_text())["verdict"] == "fails"
    assert "text cosine" in (out / "report.md").read_text().splitlines()[0]
    assert "text cosine" in (out / "report.html").read_text()


@pytest.mark.parametrize(("undecided", "status"), [(None, 3), ("pass", 0), ("fail", 1)])
def test_few_pictures_decide_nothing(
    files: Path, tmp_path: Path, undecided: str | None, status: int
) -> None:
    out = tmp_path / "report"
    outcome = run(
        *("parity", files / "bundle", "--reference", files / "checkpoint.pth", "-q"),
        *("--data", files / "data", "--no-cache", "-o", out),
        *(() if undecided is None else ("--undecided", undecided)),
    )
    assert outcome.status == status, outcome
    assert "Undecided" in outcome.stdout
    assert ("--undecided" in outcome.stderr) == (undecided is None)
    result = json.loads((out / "report.json").read_text())
    assert result["verdict"] == "undecided"
    suite = ElementTree.parse(out / "junit.xml").find(".//testsuite")
    assert suite is not None
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "6")
    assert all("images" in skip.get("message", "") for skip in suite.findall(".//skipped"))


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, Path]:
    """60 images with two texts each, as .npy files."""
    side, owners = perfect(60, 2)
    found = {}
    for name, array in (("images", side.images), ("texts", side.texts), ("owners", owners)):
        found[name] = tmp_path / f"{name}.npy"
        np.save(found[name], array)
    return found


def test_vectors_of_any_model_are_compared(arrays: dict[str, Path], tmp_path: Path) -> None:
    side = (arrays["images"], arrays["texts"])
    common = ("--owners", arrays["owners"], "--max-recall-drop", 20, "-q", "-o", tmp_path / "r")
    outcome = run("parity", "--vectors", *side, *side, *common)
    assert outcome.status == 0, outcome
    assert "Passes" in outcome.stdout
    assert json.loads((tmp_path / "r" / "report.json").read_text())["data"]["images"] == 60


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--vectors", "IMAGES", "TEXTS", "IMAGES"), "3 paths"),
        (("--vectors", "IMAGES", "TEXTS", "IMAGES", "TEXTS"), "--owners"),
        (("--vectors", "IMAGES", "TEXTS", "TEXTS", "TEXTS", "--owners", "OWNERS"), "60"),
        (("--vectors", "IMAGES", "TEXTS", "--runtime", "openvino"), "--runtime"),
        (("--vectors", "IMAGES", "TEXTS", "--reference", "IMAGES"), "--reference"),
        (("IMAGES", "--reference", "IMAGES", "--data", "x.csv", "--normalize"), "--normalize"),
        (("IMAGES", "TEXTS", "--reference", "IMAGES", "--data", "x.csv"), "2 paths"),
        (("IMAGES", "--data", "x.csv"), "--reference"),
        (("IMAGES", "--reference", "IMAGES"), "--data"),
    ],
)
def test_paths_and_options_that_do_not_go_together_are_refused(
    arrays: dict[str, Path], tmp_path: Path, arguments: tuple[str, ...], word: str
) -> None:
    named = [arrays.get(part.lower(), part) for part in arguments]
    outcome = run("parity", *named, "-o", tmp_path / "report")
    assert outcome.status == 2, outcome
    assert word in outcome.stderr
    assert not (tmp_path / "report").exists()


def test_confidence_widens_the_intervals(files: Path, tmp_path: Path) -> None:
    widths = []
    for confidence in (0.8, 0.99):
        out = tmp_path / str(confidence)
        arguments = ("--confidence", confidence, *LOOSE, "--no-cache", "-q", "-o", out)
        run("parity", files / "bundle", "--reference", files / "bundle", *_data(files), *arguments)
        result = json.loads((out / "report.json").read_text())
        assert result["confidence"] == confidence
        figure = result["directions"][0]["recalls"][0]
        widths.append(figure["smoothed_high"] - figure["smoothed_low"])
    assert widths[0] < widths[1]


def _data(files: Path) -> tuple[str, Path]:
    return "--data", files / "data"


def test_earlier_report_is_replaced_only_with_force(
    files: Path, tmp_path: Path, parity_refused: Callable[..., str]
) -> None:
    arguments = (
        *("parity", files / "bundle", "--reference", files / "bundle", "-q"),
        *("--data", files / "data", "--no-cache", *LOOSE, "-o", tmp_path / "report"),
    )
    assert run(*arguments).status == 0
    assert "exists" in refused(*arguments)
    assert run(*arguments, "--force").status == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    message = refused(*arguments[:-1], tmp_path / "mine", "--force")
    assert "was not made by this command" in message


def test_quiet_run_says_nothing_on_stderr(files: Path, tmp_path: Path) -> None:
    outcome = run(
        *("parity", files / "bundle", "--reference", files / "bundle", "-q"),
        *("--data", files / "data", "--no-cache", *LOOSE, "-o", tmp_path / "report"),
    )
    assert outcome.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images", "nowhere"), "no such folder"),
        (("--split", "dev"), "Leave --split out"),
        (("--caption-column", "title"), "has no column title"),
        (("--tokenizer", "nothing.spm"), "nothing.spm: cannot be read"),
        (("--adapter", "nothing.safetensors"), "nothing.safetensors"),
        (("--graph", "text.int8.onnx"), "The bundle has: vision.onnx, text.onnx"),
        (("--cache", "somewhere"), "--cache and --no-cache were both given"),
    ],
)
def test_impossible_option_is_refused(
    parity_refused: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in parity_refused(*arguments)


def test_impossible_data_is_refused(parity_refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such file or folder" in parity_refused(data=tmp_path / "absent.json")
    (tmp_path / "data.json").write_text('{"images": []}')
    assert "data.json" in parity_refused(data=tmp_path / "data.json")
    (tmp_path / "notes.txt").write_text("hello")
    assert "Expected one of" in parity_refused(data=tmp_path / "notes.txt")


def test_missing_pictures_stop_the_run_and_say_how_to_go_on(
    parity_refused: Callable[..., str], tmp_path: Path
) -> None:
    data = write_test_set(tmp_path / "data")
    (tmp_path / "data" / "004.png").unlink()
    message = parity_refused(data=data)
    assert "1 of 20 images are missing" in message
    assert "--max-excluded 1" in message


def test_excluded_pictures_are_shown(files: Path, tmp_path: Path) -> None:
    data = write_test_set(tmp_path / "data")
    (tmp_path / "data" / "004.png").write_bytes(b"no picture")
    outcome = run(
        *("parity", files / "bundle", "--reference", files / "bundle", "--data", data, "-q"),
        *("--no-cache", "--max-excluded", 1, *LOOSE, "-o", tmp_path / "report"),
    )
    assert outcome.status == 0
    assert "1 image was left out, with 2 captions" in outcome.stderr
    for name in ("report.html", "report.json", "report.md"):
        assert "004.png" in (tmp_path / "report" / name).read_text()


def test_interrupted_run_leaves_no_report(
    files: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mwa_export.parity.run.measure", interrupt)
    outcome = run(
        *("parity", files / "bundle", "--reference", files / "bundle"),
        *("--data", files / "data", "--no-cache", "-o", folder / "report"),
    )
    assert outcome.status == 130
    assert files_below(folder) == {}


def test_comparing_two_bundles_needs_no_torch(files: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from mwa_export import compare_models\n"
        f"bundle = {str(files / 'bundle')!r}\n"
        f"result = compare_models(bundle, bundle, {str(files / 'data')!r}).result\n"
        "from mwa_export.parity.reports.write import write_reports\n"
        "from pathlib import Path\n"
        f"print(write_reports(result, Path({str(tmp_path / 'report')!r})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_file()


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO not installed")
def test_candidate_runs_on_the_runtime_that_is_named(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    outcome = run(
        *("parity", files / "bundle", "--reference", files / "checkpoint.pth", "--no-cache"),
        *("--data", files / "data", "-o", out, "--runtime", "openvino", "--threads", 1, *LOOSE),
    )
    assert outcome.status == 0, outcome
    report = json.loads((out / "report.json").read_text())
    assert report["candidate"]["runtime"].startswith("OpenVINO 20")
    assert report["candidate"]["precision"] == "float32"
    assert report["reference"]["runtime"].startswith("PyTorch")


def test_a_precision_that_the_bundle_or_the_runtime_lacks_is_refused(
    files: Path, tmp_path: Path
) -> None:
    asked = ("parity", files / "bundle", "--reference", files / "bundle", "--data", files / "data")
    message = refused(*asked, "-o", tmp_path / "report", "--precision", "int8", "--allow-slow")
    assert "mwa-export quantize" in message
    message = refused(*asked, "-o", tmp_path / "report", "--precision", "bfloat16")
    assert "--precision bfloat16: expected auto, float32, int8" in message
    assert not (tmp_path / "report").exists()
