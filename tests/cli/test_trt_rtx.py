"""`mwa-export trt --rtx` compiles engines for RTX cards with NVIDIA's compiler, without a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import files_below, refused, run
from compiled import calibrated

from mwa_export.bundle.bundle import Bundle
from mwa_export.demo.run import assets
from mwa_export.errors import RuntimeUnavailableError
from mwa_export.export.export import ExportOptions, bundle_from_model
from mwa_export.model.load import ModelSource, load_model
from mwa_export.runtimes.open import open_backend
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.trt.install import driver_here

compiler = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None,
    reason='no compiler here: pip install "mwa-export[tensorrt-rtx]"',
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bundle with a calibration, shared; what is refused leaves it as it is."""
    checkpoint, tokenizer = assets()
    folder = tmp_path_factory.mktemp("rtx") / "bundle"
    options = ExportOptions(tokenizer=tokenizer)
    return calibrated(bundle_from_model(load_model(ModelSource(checkpoint)), folder, options)).path


@pytest.fixture(scope="module")
def built(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bundle with engines for three architectures."""
    out = tmp_path_factory.mktemp("built") / "bundle"
    outcome = run("trt", demo, "--int8", "--rtx", "--sm", "86,89,120", "-o", out)
    assert outcome.status == 0, outcome
    assert "not run here" in outcome.stderr
    return out


@compiler
@pytest.mark.slow
def test_one_build_serves_three_architectures(built: Path) -> None:
    bundle = Bundle.open(built)  # checks every hash
    assert [engine.tower for engine in bundle.manifest.engines] == ["vision", "text"]
    for engine in bundle.manifest.engines:
        assert (engine.compiler, engine.gpu) == ("tensorrt-rtx", "")
        assert engine.capabilities == ((8, 6), (8, 9), (12, 0))
        assert "sm86-sm89-sm120" in engine.file
        assert (built / engine.file).stat().st_size > 1 << 20
    again = run("trt", built, "--int8", "--rtx", "--sm", "120,89,86")
    assert again.stderr.count("already exists") == 2


@compiler
@pytest.mark.slow
@pytest.mark.skipif(driver_here(), reason="an NVIDIA driver is installed: the engines may run")
def test_engines_for_cards_are_refused_where_there_is_none(built: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"`runtime=tensorrt`: .*NVIDIA"):
        open_backend(Bundle.open(built), RuntimeOptions("tensorrt", "int8"))
    opened = open_backend(Bundle.open(built), RuntimeOptions("auto", "float32"))
    assert opened.choice.runtime != "tensorrt"


@compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--fp8", "--sm", "86"), ("float8", "8.6", "8.9")),
        (("--fp16", "--sm", "88"), ("--sm", "8.8", "8.6")),
    ],
)
def test_what_a_card_does_not_have_is_refused_before_the_work(
    options: tuple[str, ...], said: tuple[str, ...], demo: Path
) -> None:
    before = files_below(demo)
    message = refused("trt", demo, "--rtx", *options)
    assert all(word in message for word in said), message
    assert files_below(demo) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--fp16 --sm 89", "--sm "),
        ("--fp16 --rtx --sm ada", "'ada'"),
        ("--fp16 --rtx --sm 12", "Did you mean 120?"),
        ("--fp16 --rtx --sm 86,,89", "''"),
        ("--best --rtx", "--best"),
        ("--fp16 --rtx --refit", "--refit "),
        ("--fp16 --rtx --device 1", "--device "),
        ("--fp16 --rtx --timing-cache times", "--timing-cache "),
        ("--int8 --rtx --allow-slow", "--allow-slow "),
        ("--fp16 --rtx --version-compatible", "--version-compatible "),
    ],
)
def test_an_option_that_does_not_go_with_rtx_is_refused(options: str, said: str) -> None:
    outcome = run("trt", "no-bundle", *options.split())
    assert outcome.status == 2
    assert said in outcome.stderr
    assert "no-bundle" not in outcome.stderr, "refused before anything is read"
