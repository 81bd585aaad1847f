"""Messages about optional packages that are missing or broken."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run

from mwa_export.errors import MissingPackageError
from mwa_export.optional import PACKAGES, check_installed, installed, missing_package, require


@pytest.mark.parametrize("module", PACKAGES)
def test_every_missing_package_is_one_sentence_with_its_pip_line(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    stray = missing_package(ModuleNotFoundError(f"No module named {module!r}", name=f"{module}.x"))
    assert stray is not None
    with pytest.raises(MissingPackageError) as checked:
        check_installed("json", module)
    with pytest.raises(MissingPackageError) as required:
        require(f"{module}.x")
    assert str(stray) == str(checked.value) == str(required.value)
    needed = re.escape(PACKAGES[module].needed)
    assert re.fullmatch(rf"{module} is needed {needed}\. Run: pip install \S.*", str(stray))


def test_an_import_that_failed_inside_a_package_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faiss.py").write_text("raise ImportError('libgomp.so.1: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    assert installed("faiss")
    check_installed("faiss")
    with pytest.raises(MissingPackageError, match=r"cannot be imported \(libgomp.so.1") as error:
        require("faiss")
    assert 'pip install "mwa-export[faiss]"' in str(error.value)
    assert missing_package(ModuleNotFoundError("no faiss.x", name="faiss.x")) is None
    assert missing_package(ModuleNotFoundError("no such", name="no_such")) is None


def test_a_checkpoint_is_not_opened_without_the_reference(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torchscale'] = None\n"
        "import mwa_export\n"
        "try:\n    mwa_export.export('none.pth', 'out')\n"
        "except mwa_export.MissingPackageError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "torchscale is needed for the PyTorch reference" in done.stdout
    assert "pip install --no-deps torchscale==0.3.0" in done.stdout


@pytest.mark.parametrize("name", ["export", "quantize", "build_engines"])
def test_a_public_name_whose_package_is_missing_names_the_extra(name: str) -> None:
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['torch'] = None\n"
        "import mwa_export\n"
        f"try:\n    mwa_export.{name}\n"
        "except mwa_export.MissingPackageError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "mwa-export[export]"' in done.stdout


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("torchscale", "onnx none.pth -o OUT"),
        ("torchscale", "demo -o OUT"),
        ("torchscale", "parity BUNDLE --reference none.pth --data none.csv -o OUT"),
        ("torchscale", "bench BUNDLE --reference none.pth -o OUT"),
        ("onnx", "parity BUNDLE --reference BUNDLE --data none.csv -o OUT --layers"),
        ("onnx", "onnx none.pth -o OUT"),
        ("safetensors", "split none.pth --base none.pth -o OUT.safetensors"),
        ("openvino", "parity BUNDLE --reference BUNDLE --data none.csv --runtime openvino -o OUT"),
        ("tensorrt_rtx_bindings", "trt BUNDLE --fp16 --rtx -o OUT"),
        ("pyarrow", "embed BUNDLE --texts none.csv --engine ray --format npy -o OUT"),
    ],
)
def test_what_is_missing_is_said_before_files_are_looked_for(
    package: str, arguments: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    command = arguments.replace("BUNDLE", str(files / "bundle")).split()
    outcome = run(*command)
    assert outcome.status == 2
    line = outcome.stderr.splitlines()[-1]  # a line that says what loads may precede it
    assert line.startswith(f"error: {package} is needed")
    assert PACKAGES[package].command in outcome.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["torch", "torchscale", "onnx"])
def test_a_second_bundle_as_the_reference_needs_none_of_them(
    package: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    bundle = files / "bundle"
    outcome = run(
        *("parity", bundle, "--reference", bundle, "--data", files / "data"),
        *("-o", tmp_path / "out", "--undecided", "pass", "--no-cache"),
    )
    assert outcome.status == 0, outcome.stderr
