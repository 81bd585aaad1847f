"""A small bundle and a change to it, for tests of in-place updates."""

from __future__ import annotations

from pathlib import Path

from configs import CONFIGS
from manifests import EXPORT

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import (
    CONFORMANCE,
    Graph,
    Manifest,
    preprocessing_of,
    write_manifest,
)
from mwa_export.bundle.update import Change, changed_bundle
from mwa_export.spec import text_spec

MODEL = CONFIGS["plain"]


def manifest(*graphs: str) -> Manifest:
    """A manifest whose text graphs have these files."""
    spec = text_spec(MODEL.backbone)
    described = tuple(Graph(file, spec, "float32", "onnx", 17) for file in graphs)
    return Manifest("0" * 64, MODEL, preprocessing_of(MODEL.backbone), described, None, EXPORT)


def first(folder: Path) -> Bundle:
    """A bundle with a graph and its weights, one in a folder, and vectors."""
    (folder / "engines").mkdir(parents=True)
    for name in ("a.onnx", "a.onnx.data", "b.onnx", "engines/one", CONFORMANCE):
        (folder / name).write_text(f"old {name}")
    write_manifest(folder, manifest("a.onnx", "b.onnx"))
    return Bundle.open(folder)


def second(change: Change) -> None:
    """Other weights under the same names, one graph less, and a new file in a new folder."""
    change.drop("b.onnx")
    for name in ("a.onnx", "a.onnx.data", "engines/two", "new/file"):
        (change.folder / name).parent.mkdir(exist_ok=True)
        (change.folder / name).write_text(f"new {name}, longer")
    change.write(manifest("a.onnx"))


SECOND = {
    **{
        name: f"new {name}, longer" for name in ("a.onnx", "a.onnx.data", "engines/two", "new/file")
    },
    **{name: f"old {name}" for name in ("engines/one", CONFORMANCE)},
}
FIRST = {
    name: f"old {name}" for name in ("a.onnx", "a.onnx.data", "b.onnx", "engines/one", CONFORMANCE)
}


def content(bundle: Bundle) -> dict[str, str]:
    """What a reader gets, by name. A graph's weights are beside it."""
    for graph in bundle.manifest.graphs:
        path, _graph = bundle.graph("text", dialect=graph.dialect)
        for name in bundle.manifest.files_of(graph.file):
            assert (path.parent / name).read_text() == bundle.file(name).read_text()
    return {name: bundle.file(name).read_text() for name in bundle.manifest.files}


def change(path: Path) -> Bundle:
    with changed_bundle(Bundle.open(path)) as prepared:
        second(prepared)
    return Bundle.open(path)
