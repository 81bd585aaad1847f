"""A bundle is checked against its manifest, can be moved, and is reproducible."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from commands import files_below, spm_model
from configs import BACKBONE
from manifests import seal
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.manifest import MANIFEST, write_manifest
from mwa_export.errors import BundleError, VerificationError
from mwa_export.export import export as module
from mwa_export.export.export import ExportOptions, bundle_from_model
from mwa_export.model.load import ModelSource, load_model
from mwa_export.model.options import ModelOptions
from mwa_export.model.synthetic import random_tensors, training_args
from mwa_export.runtimes.onnxrt import OnnxBackend
from mwa_export.spec import AdapterConfig, ModelConfig, Tower
from mwa_export.towers.export import onnx_from_tower
from mwa_export.towers.steps import STEPS

CONFIG = ModelConfig(
    replace(BACKBONE, layers=1, embed_dim=64),
    AdapterConfig("both", 16, "none", 0.5, "parallel"),
    enhancer=True,
)


@dataclass(frozen=True)
class Files:
    """A checkpoint whose values fit halves, and tokenizers for it."""

    folder: Path

    @property
    def spm(self) -> Path:
        return self.folder / "text.spm"

    def checkpoint(
        self, name: str = "model.pth", *, dtype: torch.dtype = torch.float32, **options: Any
    ) -> Path:
        path = self.folder / name
        args = training_args(CONFIG)
        vars(args).update(options)
        torch.save(
            {"model": {n: t.to(dtype) for n, t in self.tensors().items()}, "args": args}, path
        )
        return path

    def tensors(self) -> dict[str, Tensor]:
        return {n: t.half().float() for n, t in random_tensors(CONFIG).items()}

    def export(
        self,
        out: str,
        checkpoint: Path | None = None,
        *,
        image_size: int | None = None,
        **options: Any,
    ) -> Bundle:
        model = load_model(
            ModelSource(checkpoint or self.checkpoint()), ModelOptions(image_size=image_size)
        )
        return bundle_from_model(
            model, self.folder / out, ExportOptions(**{"tokenizer": self.spm, **options})
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    files = Files(tmp_path_factory.mktemp("bundles"))
    files.spm.write_bytes(spm_model(60))
    return files


@pytest.fixture(scope="module")
def exported(files: Files) -> Bundle:
    """One bundle for all tests: not to be changed."""
    return files.export("bundle")


@pytest.fixture
def bundle(exported: Bundle, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(exported.path, tmp_path / "bundle"))


def _embed(bundle: Bundle) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    backend = OnnxBackend(bundle)
    size = backend.image_size
    pixels = np.arange(2 * size * size * 3).reshape(2, size, size, 3).astype(np.uint8)
    return backend.embed_images(pixels), backend.embed_texts(*bundle.tokenizer().batch(["ab", "c"]))


# --- the manifest is checked ----------------------------------------------------------------------


def test_bundle_says_what_it_is(bundle: Path, exported: Bundle) -> None:
    opened = Bundle.open(str(bundle))
    assert opened.manifest.to_json() == exported.manifest.to_json()
    assert opened.manifest.model == CONFIG
    assert set(opened.manifest.files) == {
        "vision.onnx",
        "text.onnx",
        "conformance.npz",
        "tokenizer/beit3.spm",
    }
    assert [graph.spec.tower for graph in opened.manifest.graphs] == ["vision", "text"]
    assert opened.tokenizer().encode("ab")[0] == 0


@pytest.mark.parametrize("path", ["gone", "bundle/tokenizer", "bundle/vision.onnx"])
def test_folder_without_manifest_is_no_bundle(path: str, bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle \(manifest.json is missing\)"):
        Bundle.open(bundle.parent / path)


def _manifest_with(**changes: Any) -> Callable[[dict[str, Any]], str]:
    return lambda manifest: json.dumps({**manifest, **changes})


def _manifest_without(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda manifest: json.dumps({k: v for k, v in manifest.items() if k != name})


@pytest.mark.parametrize(
    "broken",
    [
        lambda _: "",
        lambda _: "{",
        lambda _: "[]",
        lambda _: "null",
        lambda _: "\udcff",
        lambda manifest: json.dumps(manifest)[:-20],
        _manifest_without("schema"),
        _manifest_without("space_id"),
        _manifest_without("files"),
        _manifest_with(graphs=[{}]),
        _manifest_with(graphs=None),
        _manifest_with(model=[]),
        _manifest_with(model={"backbone": {"width": 1}, "enhancer": True}),
        _manifest_with(model={"backbone": {**asdict(BACKBONE), "embed_dim": 101}, "enhancer": 0}),
        _manifest_with(files=[]),
        _manifest_with(files={"vision.onnx": {}}),
        _manifest_with(files={"vision.onnx": "sha"}),
    ],
)
def test_manifest_that_cannot_be_read_is_refused(
    broken: Callable[[dict[str, Any]], str], bundle: Path
) -> None:
    path = bundle / MANIFEST
    text = broken(json.loads(path.read_text()))
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with suppress(ValueError, TypeError, AttributeError):  # else no JSON object
        seal(bundle, json.loads(text))
    with pytest.raises(BundleError, match=f"{path}: is not a manifest"):
        Bundle.open(bundle)


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_manifest_of_another_version_is_refused(schema: object, bundle: Path) -> None:
    path = bundle / MANIFEST
    path.write_text(_manifest_with(schema=schema)(json.loads(path.read_text())))
    with pytest.raises(BundleError, match=f"has schema version {schema!r}. Expected 1"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["vision.onnx", "text.onnx", "conformance.npz"])
def test_changed_byte_is_noticed(name: str, bundle: Path) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(
        BundleError, match=rf"{name}: is not the file that manifest\.json describes"
    ):
        Bundle.open(bundle)


def test_file_of_another_length_is_noticed(bundle: Path) -> None:
    with (bundle / "tokenizer/beit3.spm").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match=r"beit3.spm: is not the file that manifest\.json"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["vision.onnx", "conformance.npz", "tokenizer/beit3.spm"])
def test_missing_file_is_noticed(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: is missing, but manifest.json lists it"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["vision.onnx", "conformance.npz", "tokenizer/beit3.spm"])
def test_file_that_is_used_must_be_one_that_was_checked(name: str, bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    del manifest["files"][name]
    with pytest.raises(BundleError, match=f"is not a manifest .*{name}"):
        Bundle.open(seal(bundle, manifest))


def test_graph_that_is_not_there_names_those_that_are(exported: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no int8 graph for text\. It has: vision float32 onnx,"):
        exported.graph("text", precision="int8")


def test_bundle_without_tokenizer_says_so(files: Files) -> None:
    bundle = Bundle.open(files.export("no_tokenizer", tokenizer=None).path)
    assert bundle.manifest.tokenizer is None
    with pytest.raises(BundleError, match=r"was exported without a tokenizer.*tokenizer=FILE\.spm"):
        bundle.tokenizer()
    OnnxBackend(bundle)


# --- bundles move, and need no torch --------------------------------------------------------------


def test_bundle_works_elsewhere_under_another_name(
    exported: Bundle, bundle: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "déjà vu" / "model 7"
    moved.parent.mkdir()
    bundle.rename(moved)
    for found, expected in zip(_embed(Bundle.open(moved)), _embed(exported), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_bundle_with_external_data_works_elsewhere(
    files: Files, exported: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    external = functools.partial(onnx_from_tower, external_bytes=0)
    monkeypatch.setattr(module, "onnx_from_tower", external)
    bundle = files.export("external")
    assert {"vision.onnx.data", "text.onnx.data"} < set(bundle.manifest.files)
    assert bundle.manifest.space_id == exported.manifest.space_id
    bundle.path.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for found, expected in zip(_embed(Bundle.open("moved")), _embed(exported), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    data = tmp_path / "moved" / "vision.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"vision\.onnx\.data: is not the file"):
        Bundle.open("moved")


def test_opening_and_embedding_never_imports_torch(bundle: Path) -> None:
    code = """
        import sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "torchscale", "onnx", "safetensors"):
                    raise ImportError(f"{name} is not for embedding")

        sys.meta_path.insert(0, Refuse())
        import numpy as np
        from mwa_export.runtimes.onnxrt import OnnxBackend
        from mwa_export.bundle.bundle import Bundle

        bundle = Bundle.open(sys.argv[1])
        backend = OnnxBackend(bundle)
        size = backend.image_size
        images = backend.embed_images(np.zeros((1, size, size, 3), np.uint8))
        texts = backend.embed_texts(*bundle.tokenizer().batch(["ab", "abc de"]))
        print(images.shape, texts.shape, "torch" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(bundle)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 64) (2, 64) False\n"


# --- damaged graphs do not pass -------------------------------------------------------------------


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_damaged_graph_with_a_matching_manifest_is_refused(tower: Tower, bundle: Path) -> None:
    path = bundle / f"{tower}.onnx"
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    changed = numpy_helper.to_array(largest) * np.float32(1.01)
    largest.CopyFrom(numpy_helper.from_array(changed, largest.name))
    manifest = Bundle.open(bundle).manifest
    onnx.save(model, path)
    write_manifest(bundle, manifest)
    opened = Bundle.open(bundle)
    message = f"{bundle}: ONNX Runtime float32 does not reproduce .* of the {tower} tower"
    with pytest.raises(VerificationError, match=message):
        OnnxBackend(opened)
    OnnxBackend(opened, check=False)


def test_graph_that_onnxruntime_cannot_load_is_refused(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    (bundle / "text.onnx").write_bytes(b"no graph")
    write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match=r"text\.onnx: ONNX Runtime cannot load this graph"):
        OnnxBackend(Bundle.open(bundle))


# --- the same model gives the same bundle and the same space --------------------------------------


def test_export_is_reproducible_to_the_byte(files: Files, exported: Bundle) -> None:
    again = files.export("again")
    assert files_below(again.path) == files_below(exported.path)
    with zipfile.ZipFile(again.path / "conformance.npz") as archive:
        years = {entry.date_time[0] for entry in archive.infolist()}
    assert years == {1980}  # no clock in it


@pytest.mark.slow
def test_space_is_the_same_however_it_is_computed(files: Files, exported: Bundle) -> None:
    plain = files.export("plain", no_merge=tuple(STEPS))
    pixels = files.export("pixels", image_input="uint8")
    halves = files.export("halves", files.checkpoint("halves.pth", dtype=torch.float16))
    space = exported.manifest.space_id
    assert [b.manifest.space_id for b in (plain, pixels, halves)] == [space] * 3
    for other in (plain, pixels, halves):
        for found, expected in zip(_embed(other), _embed(exported), strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.slow
def test_space_differs_where_embeddings_do(
    files: Files, exported: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the ids matter here, and comparing takes most of the time of an export.
    monkeypatch.setattr(module, "verify_graph", lambda *_args, **_kwargs: 0.0)
    other_spm = files.folder / "other.spm"
    other_spm.write_bytes(spm_model(60, seed=1))
    bundles = [
        exported,
        files.export("scale", files.checkpoint("scale.pth", ffn_adapter_scalar="0.25")),
        files.export("tokenizer", tokenizer=other_spm),
        files.export("no_spm", tokenizer=None),
        files.export("size", image_size=48),
    ]
    tensors = files.tensors()
    tensors["vision_head.weight"][0, 0] += 1e-3
    monkeypatch.setattr(Files, "tensors", lambda _self: tensors)
    bundles.append(files.export("weight", files.checkpoint("weight.pth")))
    assert len({bundle.manifest.space_id for bundle in bundles}) == len(bundles)
