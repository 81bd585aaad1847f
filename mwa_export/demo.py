"""The whole job on the shipped model: pictures, bundle, embeddings, recall beside the reference."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from mwa_export.backend import Backend
from mwa_export.backend_onnx import OnnxBackend
from mwa_export.backend_torch import TorchBackend
from mwa_export.bundle import Bundle
from mwa_export.config import ModelConfig
from mwa_export.demo_scenes import write_scenes
from mwa_export.embedding import embed_captions, embed_image_files
from mwa_export.export import ExportOptions, bundle_from_model
from mwa_export.files import new_folder
from mwa_export.layout import expected_shapes
from mwa_export.model import Model, ModelSource, load_model
from mwa_export.recall import Recall, recall
from mwa_export.retrieval_data import RetrievalData, read_karpathy
from mwa_export.tokenizer import Tokenizer

SEED = 2024  # of the test pictures; training uses others
PICTURES = 500
REPORT = "recall.json"  # written last


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Recall by backend, and where the files are."""

    recalls: Mapping[str, Recall]  # name -> recall; reference first
    folder: Path

    @property
    def largest_drop(self) -> float:
        """Largest loss of the exported towers against the reference, in percentage points."""
        reference, exported = self.recalls[TorchBackend.name], self.recalls[OnnxBackend.name]
        return max(
            *(reference.tr[k] - exported.tr[k] for k in reference.tr),
            *(reference.ir[k] - exported.ir[k] for k in reference.ir),
        )


def assets() -> tuple[Path, Path]:
    """The shipped checkpoint and its tokenizer."""
    folder = Path(str(resources.files("mwa_export"))) / "assets"
    return folder / "demo.pth", folder / "demo.spm"


def run_demo(
    out: Path,
    *,
    pictures: int = PICTURES,
    force: bool = False,
    on_step: Callable[[str], None] = lambda _text: None,
) -> DemoResult:
    """Run the main job in a new folder.

    Args:
        out: folder to make; holds `data/`, `bundle/` and `recall.json` afterwards.
        pictures: number of test pictures, five captions each.
        force: replace the folder if it exists.
        on_step: called with a few words before each step.
    """
    checkpoint, spm = assets()
    with new_folder(out, marker=REPORT, force=force) as folder:
        on_step(f"draw {pictures} pictures with {5 * pictures} captions")
        index = write_scenes(folder / "data", family="target", count=pictures, seed=SEED)
        data = read_karpathy(index)
        on_step("read the checkpoint")
        model = load_model(ModelSource(checkpoint))
        options = ExportOptions(tokenizer=spm)
        bundle_from_model(model, folder / "bundle", options, on_step=on_step)
        on_step("open the bundle and check its conformance vectors")
        bundle = Bundle.open(folder / "bundle")
        backends: dict[str, Backend] = {
            TorchBackend.name: TorchBackend(model),
            OnnxBackend.name: OnnxBackend(bundle),
            "the same without adapters": TorchBackend(_without_adapters(model)),
        }
        recalls = {}
        for name, backend in backends.items():
            on_step(f"embed everything: {name}")
            recalls[name] = _recall(backend, bundle.tokenizer(), data)
        report = {name: {"tr": r.tr, "ir": r.ir} for name, r in recalls.items()}
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return DemoResult(recalls, Path(out))


def _recall(backend: Backend, tokenizer: Tokenizer, data: RetrievalData) -> Recall:
    return recall(
        embed_image_files(backend, data.image_paths),
        embed_captions(backend, tokenizer, data.captions),
        data.caption_image_ids,
        image_ids=data.image_ids,
    )


def _without_adapters(model: Model) -> Model:
    """The frozen model under the adapters: what an export that lost them would compute."""
    config = ModelConfig(model.config.backbone)
    return replace(
        model,
        config=config,
        tensors={name: model.tensors[name] for name in expected_shapes(config)},
    )
