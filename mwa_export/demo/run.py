"""Run the full pipeline on the shipped model: images, bundle, INT8, and recall against PyTorch."""

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
from mwa_export.parity.reports.write import MARKER as REPORT_MARKER
from mwa_export.parity.reports.write import write_reports
from mwa_export.parity.result import Parity
from mwa_export.parity.run import RunOptions, compare_models
from mwa_export.progress import Progress, Silent, ignore_step
from mwa_export.runtimes.options import RuntimeOptions
from mwa_export.spec import ModelConfig

# Layers of the text tower that lose most in INT8. `mwa-export quantize` can find such layers by
# itself, but its search would take longer here than everything else together.
KEPT = ("text:*.fc2_up",)

SEED = 2024  # seed of the test images; training and quantization use other seeds
PICTURES = 500
SAMPLES_SEED, HELD_BACK_SEED = 4048, 4049
SAMPLES, HELD_BACK = 128, 500  # images for calibration, and for judging INT8
MAX_RECALL_DROP = 2.0
"""Limit on the recall that INT8 may cost here, in points. 500 images resolve a change of about one
point; benchmarks/int8_recall.py uses ten times as many."""
_DRAW, _READ, _EXPORT, _DRAW_UNSEEN, _QUANTIZE, _COMPARE, _CHECK, _REPORT_STAGE = STAGES = (
    f"Draw {PICTURES} test images with {5 * PICTURES:,} captions",
    "Read the checkpoint",
    "Merge, export to ONNX, verify against PyTorch",
    f"Draw {SAMPLES + HELD_BACK} other images to calibrate and judge INT8 on",
    "Quantize to INT8",
    "Embed with PyTorch, ONNX float32 and INT8, compare recall",
    "Repeat without the adapters as a sanity check",
    "Write the reports",
)
SECONDS = dict(zip(STAGES, (2.0, 1.5, 2.0, 2.6, 25.0, 9.0, 2.6, 0.3), strict=True))
"""Stage -> seconds on 2 cores with AVX512-VNNI, for estimating the remaining time."""
_REPORT = "parity"
MARKER = f"{_REPORT}/{REPORT_MARKER}"
"""A file that identifies an output of the demo."""

Quantize = Callable[[Path, RetrievalData, RetrievalData, Progress], object]
"""Adds INT8 graphs to a bundle. Arguments: bundle, samples, held-back data, progress."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Result of `run_demo`."""

    parity: Parity  # the bundle's INT8 and float32 graphs against the PyTorch reference
    without_adapters: Recall  # recall of an export without the adapters
    slow_int8: bool  # whether this CPU lacks INT8 instructions
    folder: Path

    @property
    def report(self) -> Path:
        """Path of the HTML report."""
        return self.folder / _REPORT / "report.html"


def assets() -> tuple[Path, Path]:
    """Return the paths of the shipped checkpoint and its tokenizer."""
    folder = Path(str(resources.files("mwa_export"))) / "assets"
    return folder / "demo.pth", folder / "demo.spm"


def run_demo(
    out: Path,
    quantize: Quantize,
    *,
    pictures: int = PICTURES,
    force: bool = False,
    on_stage: Callable[[str], None] = ignore_step,
    progress: Progress | None = None,
) -> DemoResult:
    """Run the pipeline in a new folder, which will contain `data/`, `bundle/` and `parity/`.

    Args:
        out: the folder to create.
        quantize: adds the INT8 graphs.
        pictures: number of test images.
        force: replace ``out`` if an earlier demo wrote it.
        on_stage: called with each of `STAGES` when it begins.
        progress: reports the steps within stages.

    Raises:
        BundleError: ``out`` already exists, or cannot be written.
    """
    progress = progress or Silent()
    checkpoint, spm = assets()
    with new_folder(out, marker=MARKER, force=force) as folder:
        bundle = folder / "bundle"
        on_stage(_DRAW)
        progress(f"draw {pictures} images with {5 * pictures:,} captions")
        data = _draw(folder / "data", pictures, SEED)
        on_stage(_READ)
        progress("read the checkpoint")
        model = load_model(ModelSource(checkpoint))
        on_stage(_EXPORT)
        bundle_from_model(model, bundle, ExportOptions(tokenizer=spm), on_step=progress)
        with scratch_folder() as other:
            on_stage(_DRAW_UNSEEN)
            progress(f"draw {SAMPLES} other images to calibrate with, {HELD_BACK} to judge on")
            samples = _draw_unseen(Path(other) / "samples", SAMPLES, SAMPLES_SEED)
            held_back = _draw_unseen(Path(other) / "held-back", HELD_BACK, HELD_BACK_SEED)
            on_stage(_QUANTIZE)
            quantize(bundle, samples, held_back, progress)
        on_stage(_COMPARE)
        done = compare_models(
            checkpoint,
            bundle,
            data,
            run=RunOptions(runtime=_INT8, layers=True),
            options=CompareOptions(gates=Gates(MAX_RECALL_DROP)),
            progress=progress,
        )
        on_stage(_CHECK)
        without = _recall_without_adapters(model, data, spm, progress)
        on_stage(_REPORT_STAGE)
        progress("write the reports")
        parity = _as_moved(done.result, folder, out)
        write_reports(parity, folder / _REPORT, pictures=done.data.pictures)
    slow = fast_int8(instruction_sets()) is False
    return DemoResult(parity, without, slow, Path(out))


# The demo measures recall, so INT8 runs even on CPUs where it is slow.
_INT8 = RuntimeOptions("onnxruntime", "int8", allow_slow=True)


def _draw(folder: Path, count: int, seed: int) -> RetrievalData:
    return read_data(write_scenes(folder, family="target", count=count, seed=seed))


def _draw_unseen(folder: Path, count: int, seed: int) -> RetrievalData:
    """Draw images that are not kept; their seed is in the data's name, to reproduce them."""
    return replace(_draw(folder, count, seed), name=f"demo images, target family, seed {seed}")


def _recall_without_adapters(
    model: Model, data: RetrievalData, spm: Path, progress: Progress
) -> Recall:
    """Export the base model without adapters and enhancers, and measure its recall."""
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
    """Replace the temporary folder with the final one in every path of the result."""

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
    """Add INT8 graphs to the demo's bundle, without the precision search."""
    options = QuantizeOptions(
        samples=SAMPLES, keep=KEPT, search=False, points=0, max_recall_drop=MAX_RECALL_DROP
    )
    return quantize(bundle, samples, held_back=held_back, options=options, progress=progress)
