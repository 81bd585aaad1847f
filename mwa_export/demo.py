"""The whole job on the shipped model: pictures, bundle, and a parity report against PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from mwa_export.backend_torch import TorchBackend
from mwa_export.config import ModelConfig
from mwa_export.data_karpathy import read_karpathy
from mwa_export.demo_scenes import write_scenes
from mwa_export.embedding import embed_pictures, embed_token_ids
from mwa_export.export import ExportOptions, bundle_from_model
from mwa_export.files import new_folder
from mwa_export.layout import expected_shapes
from mwa_export.model import Model, ModelSource, load_model
from mwa_export.parity_result import Parity
from mwa_export.parity_run import RunOptions, compare_models
from mwa_export.progress import Progress, Silent
from mwa_export.recall import Recall, recall
from mwa_export.report import MARKER, write_reports
from mwa_export.retrieval_data import RetrievalData
from mwa_export.sides import side_from_bundle

SEED = 2024  # of the test pictures; training uses others
PICTURES = 500
_REPORT = "parity"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The parity of the exported model, what the adapters are worth, and where the files are."""

    parity: Parity  # the bundle against the PyTorch reference
    without_adapters: Recall  # what an export that lost them would give
    folder: Path

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.folder / _REPORT / "report.html"


def assets() -> tuple[Path, Path]:
    """The shipped checkpoint and its tokenizer."""
    folder = Path(str(resources.files("mwa_export"))) / "assets"
    return folder / "demo.pth", folder / "demo.spm"


def run_demo(
    out: Path,
    *,
    pictures: int = PICTURES,
    force: bool = False,
    progress: Progress | None = None,
) -> DemoResult:
    """Run the main job in a new folder.

    Args:
        out: folder to make; holds `data/`, `bundle/` and `parity/` afterwards.
        pictures: number of test pictures, five captions each.
        force: replace the folder if it exists.
        progress: told about each step.
    """
    progress = progress or Silent()
    checkpoint, spm = assets()
    with new_folder(out, marker=f"{_REPORT}/{MARKER}", force=force) as folder:
        progress(f"draw {pictures} pictures with {5 * pictures} captions")
        data = read_karpathy(
            write_scenes(folder / "data", family="target", count=pictures, seed=SEED)
        )
        progress("read the checkpoint")
        model = load_model(ModelSource(checkpoint))
        bundle_from_model(model, folder / "bundle", ExportOptions(tokenizer=spm), on_step=progress)
        run = RunOptions(layers=True)
        done = compare_models(checkpoint, folder / "bundle", data, run=run, progress=progress)
        without = _recall_without_adapters(model, folder / "bundle", data, progress)
        progress("write the reports")
        parity = _as_moved(done.result, folder, out)
        write_reports(parity, folder / _REPORT, pictures=done.data.pictures)
    return DemoResult(parity, without, Path(out))


def _recall_without_adapters(
    model: Model, bundle: Path, data: RetrievalData, progress: Progress
) -> Recall:
    """Recall of the frozen model under the adapters and enhancers."""
    side = side_from_bundle(bundle)
    config = ModelConfig(model.config.backbone)
    tensors = {name: model.tensors[name] for name in expected_shapes(config)}
    backend = TorchBackend(replace(model, config=config, tensors=tensors))
    sequences = side.encode(data.captions)
    progress("embed everything without the adapters", len(data.pictures) + len(sequences))
    images, _ = embed_pictures(backend, data.pictures, on_rows=progress.advance)
    texts = embed_token_ids(backend, sequences, on_rows=progress.advance)
    return recall(images, texts, data.caption_image_ids, image_ids=data.image_ids)


def _as_moved(parity: Parity, folder: Path, out: Path) -> Parity:
    """The result with the names that its files will have when the folder is complete."""

    def moved(text: str) -> str:
        return text.replace(str(folder), str(out))

    return replace(
        parity,
        candidate=replace(parity.candidate, source=moved(parity.candidate.source)),
        data=replace(parity.data, name=moved(parity.data.name)),
        stages=tuple(replace(stage, detail=moved(stage.detail)) for stage in parity.stages),
    )
