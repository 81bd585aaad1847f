"""The whole job on the shipped model: pictures, bundle, INT8, and recall against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from mwa_export.calib.quantize import Quantized, QuantizeOptions, quantize
from mwa_export.cpu import fast_int8, instruction_sets
from mwa_export.data.test_set import RetrievalData
from mwa_export.data.test_sets import read_data
from mwa_export.demo.scenes import write_scenes
from mwa_export.encoder.open import open_bundle
from mwa_export.export.export import ExportOptions, bundle_from_model
from mwa_export.files import new_folder, scratch_folder
from mwa_export.metrics.recall import Recall, recall
from mwa_export.model.load import Model, ModelSource, load_model
from mwa_export.model.state_dict import expected_shapes
from mwa_export.parity.gates import Gates
from mwa_export.parity.measure import CompareOptions
from mwa_export.parity.reports.write import MARKER, write_reports
from mwa_export.parity.result import Parity
from mwa_export.parity.run import RunOptions, compare_models
from mwa_export.progress import Progress, Silent
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.spec import ModelConfig

# What loses most in the text tower. `mwa-export quantize` finds such layers by itself, but its
# search embeds the held-back data a dozen times: longer here than all the rest together.
KEPT = ("text:*.fc2_up",)

SEED = 2024  # of the test pictures; training and quantization use others
PICTURES = 500
SAMPLES_SEED, HELD_BACK_SEED = 4048, 4049
SAMPLES, HELD_BACK = 128, 500  # pictures to calibrate with, and to decide about INT8 on
MAX_RECALL_DROP = 2.0
"""Points that INT8 may cost here, in `quantize` and in `parity`: 500 pictures tell about one.
benchmarks/int8_recall.py measures on ten times as many."""
_REPORT = "parity"

Quantize = Callable[[Path, RetrievalData, RetrievalData, Progress], object]
"""Adds INT8 graphs to a bundle: samples to calibrate with, held-back data to judge on."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The parity of the INT8 bundle, what the adapters are worth, and where the files are."""

    parity: Parity  # the bundle's INT8 graphs, float32 beside, against the PyTorch reference
    without_adapters: Recall  # what an export that lost them would give
    slow_int8: bool  # this CPU has no instructions for INT8, which was run nevertheless
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
    quantize: Quantize,
    *,
    pictures: int = PICTURES,
    force: bool = False,
    progress: Progress | None = None,
) -> DemoResult:
    """Run the main job in a new folder, which then holds `data/`, `bundle/` and `parity/`.

    ``quantize`` adds the INT8 graphs.
    """
    progress = progress or Silent()
    checkpoint, spm = assets()
    with new_folder(out, marker=f"{_REPORT}/{MARKER}", force=force) as folder:
        bundle = folder / "bundle"
        progress(f"draw {pictures} pictures with {5 * pictures} captions")
        data = _draw(folder / "data", pictures, SEED)
        progress("read the checkpoint")
        model = load_model(ModelSource(checkpoint))
        bundle_from_model(model, bundle, ExportOptions(tokenizer=spm), on_step=progress)
        with scratch_folder() as other:
            progress(f"draw {SAMPLES} other pictures to calibrate with, {HELD_BACK} to judge on")
            samples = _draw_unseen(Path(other) / "samples", SAMPLES, SAMPLES_SEED)
            held_back = _draw_unseen(Path(other) / "held-back", HELD_BACK, HELD_BACK_SEED)
            quantize(bundle, samples, held_back, progress)
        done = compare_models(
            checkpoint,
            bundle,
            data,
            run=RunOptions(runtime=_INT8, layers=True),
            options=CompareOptions(gates=Gates(MAX_RECALL_DROP)),
            progress=progress,
        )
        without = _recall_without_adapters(model, data, spm, progress)
        progress("write the reports")
        parity = _as_moved(done.result, folder, out)
        write_reports(parity, folder / _REPORT, pictures=done.data.pictures)
    slow = fast_int8(instruction_sets()) is False
    return DemoResult(parity, without, slow, Path(out))


# Recall is the question here, not speed: so INT8 is run wherever it can be run at all.
_INT8 = RuntimeOptions("onnxruntime", "int8", allow_slow=True)


def _draw(folder: Path, count: int, seed: int) -> RetrievalData:
    return read_data(write_scenes(folder, family="target", count=count, seed=seed))


def _draw_unseen(folder: Path, count: int, seed: int) -> RetrievalData:
    """Pictures that are not kept; the manifest names them by what makes them again."""
    return replace(_draw(folder, count, seed), name=f"demo pictures, target family, seed {seed}")


def _recall_without_adapters(
    model: Model, data: RetrievalData, spm: Path, progress: Progress
) -> Recall:
    """Recall of the frozen model under the adapters and enhancers, exported in the same way."""
    config = ModelConfig(model.config.backbone)
    tensors = {name: model.tensors[name] for name in expected_shapes(config)}
    bare = replace(model, config=config, tensors=tensors)
    with scratch_folder() as folder:
        bundle_from_model(bare, folder / "bundle", ExportOptions(tokenizer=spm))
        encoder = open_bundle(folder / "bundle")
        rows = len(data.pictures) + len(data.captions)
        progress("embed everything without the adapters", rows)
        images, _ = encoder.embed_pictures(data.pictures, on_rows=progress.advance)
        texts = encoder.embed_captions(data.captions, on_rows=progress.advance)
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


def quantize_demo(
    bundle: Path, samples: RetrievalData, held_back: RetrievalData, progress: Progress
) -> Quantized:
    """Add INT8 graphs to the demo's bundle, without the search for precisions."""
    options = QuantizeOptions(
        samples=SAMPLES, keep=KEPT, search=False, points=0, max_recall_drop=MAX_RECALL_DROP
    )
    return quantize(bundle, samples, held_back=held_back, options=options, progress=progress)
