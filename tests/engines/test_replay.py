"""Engine graphs written with inputs and a script can be read by the tools they are meant for."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from polygraphy_tool import Tool, require
from trt_files import calibrated_bundle

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import EnginePrecision
from mwa_export.data.test_set import RetrievalData
from mwa_export.engines import graphs
from mwa_export.engines.options import EngineOptions
from mwa_export.engines.replay import write_engine_graphs
from mwa_export.engines.replay_script import SCRIPT
from mwa_export.errors import (
    CalibrationError,
    MwaExportError,
    ProfileError,
    UsageError,
    VerificationError,
)
from mwa_export.inputs.preprocess import normalize
from mwa_export.trt.profiles import Span

pytestmark = pytest.mark.slow
PRECISIONS: tuple[EnginePrecision, ...] = ("float16", "bfloat16", "int8", "float8")
BATCHES, LENGTHS = (Span(1, 2, 8), Span(12, 12, 16)), Span(2, 5, 7)


@pytest.fixture(scope="session")
def calibrated(
    files: Path, data: RetrievalData, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    return calibrated_bundle(files / "bundle", data, tmp_path_factory.mktemp("trt") / "bundle")


def written(bundle: Bundle, out: Path, precision: EnginePrecision, major: int = 11) -> Path:
    options = EngineOptions(precision, BATCHES, LENGTHS)
    return write_engine_graphs(bundle.path, out=out, options=options, for_tensorrt=major).folder


@pytest.fixture(scope="session")
def folders(calibrated: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Graphs of every precision, in two profiles; not to be changed."""
    root = tmp_path_factory.mktemp("graphs")
    return {name: written(calibrated, root / name, name) for name in PRECISIONS}


@pytest.fixture
def cpu(tmp_path: Path) -> Tool:
    """Polygraphy where there is no GPU."""
    require("polygraphy")
    return Tool(tmp_path, without_gpu=True)


@pytest.fixture
def rtx(tmp_path: Path) -> Tool:
    """Polygraphy with TensorRT-RTX, which compiles without a GPU."""
    require("polygraphy", "tensorrt_rtx_bindings")
    return Tool(tmp_path)


def commands(folder: Path, prefix: str) -> list[str]:
    """The lines of the script that start so; hints stand in comments."""
    text = re.sub(r" \\\n#? *", " ", (folder / SCRIPT).read_text())
    return [line for line in text.splitlines() if line.startswith(prefix)]


def comparisons(folder: Path, tower: str) -> list[list[str]]:
    """The arguments of a tower's comparisons, one for each profile."""
    found = [shlex.split(line) for line in commands(folder, f"polygraphy run {tower}.")]
    return [words[: words.index("$@")] for words in found if "--trt" in words]


def test_inputs_are_the_conformance_vectors_in_the_shapes_of_each_profile(
    folders: dict[str, Path], calibrated: Bundle
) -> None:
    require("polygraphy")
    from polygraphy.json import load_json

    vectors = calibrated.conformance()
    rows = len(vectors.pixels)
    (found,) = load_json(str(folders["int8"] / "vision.inputs.json"))
    np.testing.assert_array_equal(found["image"], normalize(vectors.pixels))
    (filled,) = load_json(str(folders["int8"] / "vision.inputs1.json"))
    assert rows < len(filled["image"]) == 12
    np.testing.assert_array_equal(filled["image"][:rows], found["image"])
    short = (vectors.padding_mask == 0).sum(axis=1) <= 7
    assert 0 < short.sum() < len(short), "some texts are longer than the profile"
    (texts,) = load_json(str(folders["int8"] / "text.inputs.json"))
    np.testing.assert_array_equal(texts["token_ids"], vectors.token_ids[short, :7])
    np.testing.assert_array_equal(texts["padding_mask"], vectors.padding_mask[short, :7])


def test_the_script_has_the_profiles_of_the_engine(folders: dict[str, Path]) -> None:
    first, second = comparisons(folders["float16"], "text")
    shapes = ["token_ids:[12,2]", "padding_mask:[12,2]", "--trt-opt-shapes", "token_ids:[12,5]"]
    assert " ".join(shapes) in " ".join(first)
    assert first.count("--trt-max-shapes") == second.count("--trt-max-shapes") == 2
    assert "--optimization-profile" not in first
    assert second[second.index("--optimization-profile") + 1] == "1"
    timed = commands(folders["float16"], "# trtexec --onnx=text.")
    assert "--minShapes=token_ids:12x2,padding_mask:12x2 --optShapes=token_ids:12x5" in timed[1]
    assert len(timed) == 2


def test_attention_in_float8_is_replayed_where_it_is_asked_for(
    calibrated: Bundle, tmp_path: Path
) -> None:
    options = EngineOptions("int8", float8_attention=True)
    folder = write_engine_graphs(calibrated.path, out=tmp_path / "graphs", options=options).folder
    graph = onnx.load(folder / "vision.int8.onnx")
    kinds = {t.name: t.data_type for t in graph.graph.initializer}
    pairs = [n for n in graph.graph.node if n.op_type == "QuantizeLinear"]
    assert onnx.TensorProto.FLOAT8E4M3FN in {kinds[pair.input[2]] for pair in pairs}
    stored = {entry.key: entry.value for entry in graph.metadata_props}
    assert stored["mwa_export.precision"] == "int8", "what the graph says of itself is kept"


def turned(graph: Path, out: Path) -> Path:
    """A copy of a graph whose embeddings point the other way."""
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("head."):
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, out)
    return out


def test_a_comparison_passes_what_is_right_and_fails_what_is_wrong(
    folders: dict[str, Path], calibrated: Bundle, cpu: Tool, tmp_path: Path
) -> None:
    folder, right = folders["float8"], calibrated.path / "text.onnx"
    for graph, status in ((right, 0), (turned(right, tmp_path / "wrong.onnx"), 1)):
        outputs = tmp_path / f"{status}.json"
        inputs = ("--load-inputs", "text.inputs.json", "--save-outputs", outputs)
        assert cpu.run("polygraphy", "run", graph, *inputs, cwd=folder).returncode == 0
        words = (*comparisons(folder, "text")[0], "--load-outputs", outputs)
        done = cpu.run(*words, cwd=folder)
        assert done.returncode == status, done.stdout
        assert "Cosine Similarity" in done.stdout


def test_the_script_runs_from_anywhere_and_goes_on_after_a_failure(
    files: Path, cpu: Tool, tmp_path: Path
) -> None:
    folder = write_engine_graphs(files / "bundle", out=tmp_path / "graphs with spaces").folder
    done = cpu.run("sh", folder / SCRIPT, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    (folder / "vision.float16.onnx").write_bytes(b"")
    done = cpu.run("sh", folder / SCRIPT, cwd=tmp_path)
    assert done.returncode == 1
    assert "PASSED | Runtime" in done.stdout, "the text tower is still replayed"


def test_bfloat16_is_compared_with_its_rounded_copy(files: Path, cpu: Tool, tmp_path: Path) -> None:
    options = EngineOptions("bfloat16")
    folder = write_engine_graphs(files / "bundle", out=tmp_path / "graphs", options=options).folder
    # In the place of what ONNX Runtime cannot run.
    shutil.copy(folder / "vision.bfloat16.rounded.onnx", folder / "vision.bfloat16.onnx")
    turned(folder / "text.bfloat16.rounded.onnx", folder / "text.bfloat16.onnx")
    done = cpu.run("sh", SCRIPT, cwd=folder)
    assert done.returncode == 1
    assert done.stdout.count("PASSED | Cosine Similarity | All") == 1
    assert done.stdout.count("FAILED | Cosine Similarity | Mis") == 1


def test_the_hints_reduce_a_graph_to_what_is_wrong(
    folders: dict[str, Path], cpu: Tool, tmp_path: Path
) -> None:
    require("onnx_graphsurgeon")
    folder = Path(shutil.copytree(folders["float16"], tmp_path / "graphs"))
    hints = [line for line in commands(folder, "# polygraphy") if "text.float16" in line]
    assert len(hints) == 3
    for line in hints:  # reducing itself takes a minute; that Polygraphy takes the words does not
        words = [*shlex.split(line[2:].partition(" --check ")[0]), "--help"]
        assert cpu.run(*words, cwd=folder).returncode == 0


@pytest.mark.parametrize(
    ("precision", "tower"),
    [("float16", "text"), ("bfloat16", "vision"), ("int8", "vision"), ("float8", "text")],
)
def test_polygraphy_converts_the_graph_as_the_script_says(
    precision: str, tower: str, folders: dict[str, Path], rtx: Tool, tmp_path: Path
) -> None:
    folder = folders[precision]
    words = comparisons(folder, tower)[1]
    flags = words[words.index("--strongly-typed") : words.index("--optimization-profile")]
    graph, engine = folder / f"{tower}.{precision}.onnx", tmp_path / "out.engine"
    done = rtx.run("polygraphy", "convert", graph, "-o", engine, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert engine.stat().st_size > 1000
    assert "STRONGLY_TYPED" in done.stdout
    assert "2 profile(s)" in done.stdout
    done = rtx.run("polygraphy", "inspect", "capability", graph, cwd=tmp_path)
    assert "Graph is fully supported" in done.stdout
    done = rtx.run("polygraphy", "inspect", "model", graph, cwd=tmp_path)
    assert f"Name: {tower}.{precision} | ONNX Opset: 19" in done.stdout


@pytest.mark.parametrize(
    ("precision", "flags"), [("float16", ["fp16"]), ("int8", ["fp16", "int8"])]
)
def test_for_8_the_builder_gets_the_precisions(
    precision: EnginePrecision, flags: list[str], calibrated: Bundle, tmp_path: Path
) -> None:
    require("polygraphy")
    folder = written(calibrated, tmp_path / "graphs", precision, major=8)
    graph = onnx.load(folder / f"vision.{precision}.onnx")
    assert graph.opset_import[0].version == 17
    words = comparisons(folder, "vision")[1]
    tool = Tool(tmp_path, rtx=False)
    done = tool.run(*words, "--gen-script", "-", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert "strongly_typed" not in done.stdout
    for flag in ("fp16", "int8"):
        assert (f"{flag}=True" in done.stdout) == (flag in flags)
        assert all(
            (f"--{flag}" in line) == (flag in flags) for line in commands(folder, "# trtexec")
        )


@pytest.mark.parametrize(
    ("options", "version", "error"),
    [
        (EngineOptions("bfloat16"), 8, UsageError),
        (EngineOptions(), 9, UsageError),
        (EngineOptions("int8"), 11, CalibrationError),
        (EngineOptions(lengths=Span(2, 2, 2)), 11, ProfileError),
        (EngineOptions(lengths=Span(2, 2, 9999)), 11, ProfileError),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    options: EngineOptions, version: int, error: type[MwaExportError], files: Path, tmp_path: Path
) -> None:
    with pytest.raises(error):
        write_engine_graphs(
            files / "bundle", out=tmp_path / "graphs", options=options, for_tensorrt=version
        )
    assert not list(tmp_path.iterdir())


def test_a_graph_that_is_wrong_leaves_nothing(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_cosine", lambda *_, **__: 0.5)
    with pytest.raises(VerificationError):
        write_engine_graphs(files / "bundle", out=tmp_path / "graphs")
    assert not list(tmp_path.iterdir())
