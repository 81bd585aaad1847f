"""Packaging: installed files, imports between packages, and startup time of the command."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.slow

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    tomllib = pytest.importorskip("tomli")

HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "numpy",
    "PIL",
    "rich",
    "sentencepiece",
    "safetensors",
    "jinja2",
}
SOURCES = {"mwa_export": "mwa_export", "mwa_export.cli": "cli", "mwa_export.calib": "calib"}


def imports_of(path: Path) -> set[str]:
    """Every module a file names in an import, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules() -> dict[str, Path]:
    """Every module by its installed name, `__init__` files included."""
    found = {}
    for package, folder in SOURCES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in inside if part != "__init__")))] = path
    return found


def test_every_folder_with_code_is_packaged() -> None:
    """A forgotten package would be missing from the wheel only."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-dir"] == SOURCES
    folders = {
        name if path.stem == "__init__" else name.rpartition(".")[0]
        for name, path in modules().items()
    }
    assert set(settings["packages"]) == folders


def test_packages_import_nothing_by_themselves() -> None:
    """So that importing `mwa_export.model` loads no torch."""
    for name, path in modules().items():
        if path.stem == "__init__" and name != "mwa_export":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert ast.get_docstring(tree), path
            assert len(tree.body) == 1, path


def test_reference_shares_no_code_with_the_merge() -> None:
    named = imports_of(ROOT / "mwa_export" / "model" / "reference.py")
    ours = {name for name in named if name.startswith("mwa_export")}
    assert ours == {"mwa_export.spec", "mwa_export.errors", "mwa_export.optional"}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from mwa_export.cli.main import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stderr))
    assert not loaded & HEAVY
    assert "quantize" in done.stdout


def test_help_of_every_command_answers_without_torch() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from mwa_export.cli.main import cli, _COMMANDS\n"
        "for name in _COMMANDS:\n"
        "    cli.main([name, '--help'], standalone_mode=False)\n"
    )
    assert "Examples:" in run(code)


def test_every_module_imports() -> None:
    run("import importlib\n" + "\n".join(f"importlib.import_module({n!r})" for n in modules()))


def test_public_functions_are_documented_and_modules_say_what_they_own() -> None:
    for path in modules().values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
                assert ast.get_docstring(node), f"{path}: {node.name}"
