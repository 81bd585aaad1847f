"""docs/api.md has a working example of every public name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

import mwa_export
from mwa_export.demo.run import assets
from mwa_export.demo.scenes import write_scenes
from mwa_export.export.export import ExportOptions, export

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^## (\w+)\n+```python\n(.*?)```", PAGE, re.S | re.M))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's examples find: a checkpoint, a bundle with a tokenizer, a test set."""
    work = tmp_path_factory.mktemp("api")
    checkpoint, spm = assets()
    shutil.copy(checkpoint, work / "demo.pth")
    export(checkpoint, work / "bundle-with-tokenizer", ExportOptions(tokenizer=spm))
    write_scenes(work / "data", family="target", count=40, seed=3)
    return work


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_example_of_the_page_runs(folder: Path) -> None:
    """In the order of the page, because later ones read what earlier ones wrote."""
    printed = {}
    for name, code in BLOCKS.items():
        if name == "quantize":  # the defaults calibrate with 256 pictures
            quick = "QuantizeOptions(samples=16, search=False, max_recall_drop=100, points=0)"
            code = code.replace("out=", f"options={quick}, out=")
            code = "from mwa_export.calib.quantize import QuantizeOptions\n" + code
        printed[name] = run(code, folder)
    assert printed["compare"].startswith("undecided -50.0")
    assert printed["embed"] == "40 True\n"
    assert printed["exceptions"].startswith("BundleError nowhere")
    assert printed["search"].count("\n") == 3


def test_the_page_shows_every_public_name() -> None:
    for name in mwa_export.__all__:
        if name != "__version__":
            assert re.search(rf"`{name}`|\[`{name}`\]", PAGE), name
    for name in vars(mwa_export.errors):
        if name.endswith("Error"):
            assert f"`{name}`" in PAGE, name
            assert getattr(mwa_export, name) is getattr(mwa_export.errors, name)


@pytest.mark.slow
def test_public_functions_win_over_sub_packages_of_their_name() -> None:
    code = (
        "import mwa_export.embed.plan, mwa_export.search.scan, mwa_export.export.verify\n"
        "from mwa_export import embed, export, search\n"
        "import mwa_export\n"
        "assert all(callable(f) for f in (embed, export, search, mwa_export.embed))\n"
        "from mwa_export.embed import plan\n"
        "assert plan.plan\n"
    )
    run(code, Path(os.getcwd()))


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import mwa_export, sys; print({'numpy', 'torch', 'onnx'} & set(sys.modules))"
    assert run(code, ROOT) == "set()\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = mwa_export.nothing
