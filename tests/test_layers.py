"""Imports point down: a package only imports from layers below its own, never from neighbours."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from paths import ROOT

FOLDERS = {"mwa_export": "mwa_export", "mwa_export.calib": "calib", "mwa_export.cli": "cli"}
LAYERS = (  # from the top down
    {"__main__"},
    {"cli"},
    {"public API"},  # what mwa_export/__init__.py re-exports
    {"demo", "engines"},
    {"bench", "calib", "parity", "search"},
    {"embed", "encoder", "export"},
    {"runtimes"},
    {"trt"},
    {"bundle", "data", "report", "towers", "vectors"},
    {"graphs", "inputs", "metrics", "model"},
    {"base modules"},
)
BASE = {
    *("cpu", "errors", "files", "memory", "optional", "progress", "spec", "typed_json", "version"),
}
HEIGHT = {name: height for height, names in enumerate(reversed(LAYERS)) for name in names}
MOST_MODULES = 20
MOST_LINES = 350


def package_of(module: str) -> str:
    part = (*module.split("."), "")[1]
    return "base modules" if part in BASE else part if part in HEIGHT else "public API"


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in inside if part != "__init__")))] = path
    return found


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every name of an import statement, at any depth, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


def test_every_package_has_a_layer() -> None:
    folders = {p.name for p in (ROOT / "mwa_export").iterdir() if (p / "__init__.py").is_file()}
    assert folders <= HEIGHT.keys()
    base = {p.stem for p in (ROOT / "mwa_export").glob("*.py")} - {"__init__", "__main__"}
    assert base == BASE


def test_imports_point_down() -> None:
    found = []
    for module, path in modules().items():
        here = package_of(module)
        for line, name in imported(path):
            there = package_of(name)
            ours = name.startswith("mwa_export.") and module != "mwa_export"
            if ours and there != here and HEIGHT[there] >= HEIGHT[here]:
                found.append(f"{path.relative_to(ROOT)}:{line}: {here} may not import {there}")
    assert not found, "\n".join(found)


def test_modules_import_each_other_without_a_cycle() -> None:
    known = modules()
    edges: dict[str, set[str]] = {}
    for module, path in known.items():
        if module == "mwa_export":  # re-exports lazily what lies below
            continue
        names = {name for _, name in imported(path) if name.startswith("mwa_export.")}
        # `from package.module import name` and `from package import module`
        edges[module] = {
            target
            for name in names
            for target in (name, name.rpartition(".")[0])
            if target in known and target not in (module, "mwa_export")
        }
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        raise AssertionError("import cycle: " + " -> ".join(error.args[1])) from None


def test_no_folder_and_no_module_is_crowded() -> None:
    paths = [path for path in modules().values() if path.name != "__init__.py"]
    folders = [path.parent for path in paths]
    crowded = {
        str(f.relative_to(ROOT)): n for f in set(folders) if (n := folders.count(f)) > MOST_MODULES
    }
    long = {
        str(path.relative_to(ROOT)): lines
        for path in paths
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not crowded
    assert not long
