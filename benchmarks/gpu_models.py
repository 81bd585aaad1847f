"""Models of benchmarks/gpu.py, made from seeds where they are needed instead of transferred."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_pack import redraw, reseed

from mwa_export.bench.section import merged_plan
from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import EnginePrecision
from mwa_export.bundle.manifest import Graph, write_manifest
from mwa_export.calib.calibrate import calibrate
from mwa_export.calib.samples import Samples, take_samples
from mwa_export.data.test_sets import DataOptions, read_data
from mwa_export.demo.run import assets
from mwa_export.demo.scenes import picture_from_seed, write_scenes
from mwa_export.encoder.encoder import Encoder
from mwa_export.encoder.open import open_bundle
from mwa_export.engines.graphs import CALIBRATED, engine_graph
from mwa_export.export.export import ExportOptions, bundle_from_model
from mwa_export.files import sha256_of
from mwa_export.inputs.decode import decode_picture
from mwa_export.inputs.preprocess import pixels_from_image
from mwa_export.inputs.tokenizer import pad
from mwa_export.model.load import Model, ModelSource, load_model
from mwa_export.model.reference import reference_from_tensors
from mwa_export.model.synthetic import beit3_config, random_tensors, training_args
from mwa_export.progress import Progress
from mwa_export.runtimes.ort_session import run_graph, session
from mwa_export.spec import AdapterConfig, Embeddings, ModelConfig, Tower
from mwa_export.towers.macs import count_macs
from mwa_export.trt.versions import is_typed

VISION_BATCHES = (1, 8, 32, 128)
TEXT_SHAPES = ((1, 16), (32, 16), (128, 16), (128, 64))  # rows, tokens
TOWERS: tuple[Tower, ...] = ("vision", "text")
META = "meta.json"
PLAIN = "plain-float16"  # the plain export, built like `trtexec --fp16`


@dataclass(frozen=True)
class Sizes:
    """Amounts of drawn data; tests draw less."""

    samples: int = 64  # for calibration
    rows: int = 64  # for comparing embeddings
    recall: int = 500  # images of the demo, with five captions each


def prepare(
    work: Path,
    name: str,
    major: int,
    precisions: Sequence[EnginePrecision],
    sizes: Sizes,
    progress: Progress,
    *,
    config: ModelConfig | None = None,
) -> None:
    """Make WORK/NAME: checkpoint, bundle, engine graphs, inputs and reference embeddings.

    Args:
        work: the folder WORK.
        name: "demo", "base" or "large".
        major: major version of the TensorRT that will build, which decides the form of the graphs.
        precisions: precisions to prepare; those unsupported by that version are skipped.
        sizes: see Sizes.
        progress: reports each step.
        config: configuration for random weights, instead of the one for ``name``.
    """
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    demo = name == "demo"
    checkpoint = assets()[0] if demo else _random_checkpoint(folder, name, config)
    options = ExportOptions(tokenizer=assets()[1] if demo else None, force=True)
    progress(f"{name}: merge and export")
    model = load_model(ModelSource(checkpoint))
    bundle_from_model(model, folder / "bundle", options)
    if not demo:
        progress(f"{name}: draw the merged weights from seeds")
        reseed(folder)
    bundle = Bundle.open(folder / "bundle")
    progress(f"{name}: draw pictures and texts")
    samples = _demo_samples(folder, sizes) if demo else _samples(bundle, sizes.samples, seed=1)
    if any(precision in CALIBRATED for precision in precisions):
        calibrate(bundle, samples, progress=progress).save(bundle.path)
        write_manifest(bundle.path, bundle.manifest)
        bundle = Bundle.open(bundle.path)
    recall = _demo_inputs(folder, sizes) if demo else _inputs(bundle, sizes.rows)
    np.savez(folder / "inputs.npz", **recall)
    progress(f"{name}: embed with the reference")
    reference = _torch_reference(model, recall) if demo else _reference(bundle, recall)
    graphs = _graphs(bundle, folder, major, precisions, samples, progress)
    progress(f"{name}: the plain export, and float16 for ONNX Runtime")
    if not is_typed(major):  # a typed network would compute it in float32
        graphs["vision"][PLAIN], found = _plain(folder, bundle, model, recall["pixels"])
        reference[f"vision.{PLAIN}"] = found
    np.savez(folder / "reference.npz", **reference)
    meta = {
        "model": name,
        "major": major,
        "graphs": graphs,
        "typed": _typed(bundle, folder, progress),
        "macs": _macs(bundle),
    }
    (folder / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def shape_name(batch: int, length: int | None = None) -> str:
    """Name a shape as in the results: "32", or "32x16" for texts."""
    return str(batch) if length is None else f"{batch}x{length}"


def _random_checkpoint(folder: Path, size: str, config: ModelConfig | None) -> Path:
    import torch

    adapter = AdapterConfig("both", 64, "in", 0.6, "parallel")
    config = config or beit3_config(size, adapter=adapter)
    path = folder / "checkpoint.pth"
    torch.save({"model": random_tensors(config), "args": training_args(config)}, path)
    return path


def _samples(bundle: Bundle, count: int, seed: int) -> Samples:
    """Make calibration samples of drawn images and random ids of plausible lengths."""
    arrays = _drawn(bundle, count, seed)
    texts = tuple(
        tuple(ids[mask == 0].tolist())
        for ids, mask in zip(arrays["token_ids"], arrays["padding_mask"], strict=True)
    )
    return Samples(arrays["pixels"], texts, "drawn", "drawn", seed)


def _inputs(bundle: Bundle, rows: int) -> dict[str, Any]:
    return _drawn(bundle, rows, seed=2)


def _drawn(bundle: Bundle, rows: int, seed: int) -> dict[str, Any]:
    backbone = bundle.manifest.model.backbone
    rng = np.random.default_rng(seed)
    pixels = [
        pixels_from_image(
            decode_picture(picture_from_seed("target", seed, index).jpeg, "drawing"),
            backbone.image_size,
        )
        for index in range(rows)
    ]
    most = min(28, backbone.max_text_length)
    ids, mask = pad(
        [
            [0, *rng.integers(4, backbone.vocab_size, int(length) - 2).tolist(), 2]
            for length in rng.integers(6, most + 1, rows)
        ]
    )
    return {"pixels": np.stack(pixels), "token_ids": ids, "padding_mask": mask}


def _demo_samples(folder: Path, sizes: Sizes) -> Samples:
    path = write_scenes(
        folder / "samples", family="target", count=sizes.samples, seed=11, split="train"
    )
    data = read_data(path, DataOptions(split="train"))
    return take_samples(open_bundle(folder / "bundle"), data, sizes.samples, 0)


def _demo_inputs(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Make inputs of images that the model has not seen, with the image of each caption."""
    path = write_scenes(folder / "test", family="target", count=sizes.recall, seed=12)
    data = read_data(path, DataOptions(split="test"))
    side: Encoder = open_bundle(folder / "bundle")
    pixels = [side.pixels(p, str(p)) for p in data.pictures]
    ids, mask = pad(side.encode(data.captions))
    return {
        "pixels": np.stack(pixels),
        "token_ids": ids,
        "padding_mask": mask,
        "image_ids": data.image_ids,
        "caption_image_ids": data.caption_image_ids,
    }


def _reference(bundle: Bundle, inputs: dict[str, Any]) -> dict[str, Any]:
    """Embed with the float32 graphs on ONNX Runtime, since no checkpoint has the seeded weights."""
    found: dict[str, Any] = {}
    for tower in TOWERS:
        names = ("pixels",) if tower == "vision" else ("token_ids", "padding_mask")
        path, graph = bundle.graph(tower)
        found[tower] = run_graph(session(path), graph, tuple(inputs[name] for name in names))
    return found


def _torch_reference(model: Model, inputs: dict[str, Any]) -> dict[str, Any]:
    from mwa_export.runtimes.pytorch import TorchBackend

    backend = TorchBackend(model)
    step = 32
    pixels, ids, mask = (inputs[name] for name in ("pixels", "token_ids", "padding_mask"))
    vision = [backend.embed_images(pixels[i : i + step]) for i in range(0, len(pixels), step)]
    text = [
        backend.embed_texts(ids[i : i + step], mask[i : i + step]) for i in range(0, len(ids), step)
    ]
    return {"vision": np.concatenate(vision), "text": np.concatenate(text)}


def _graphs(
    bundle: Bundle,
    folder: Path,
    major: int,
    precisions: Sequence[EnginePrecision],
    samples: Samples,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Write the graphs to compile. Returns tower -> precision -> description."""
    (folder / "graphs").mkdir(exist_ok=True)
    made: dict[str, dict[str, Any]] = {tower: {} for tower in TOWERS}
    typed = is_typed(major)
    for tower in TOWERS:
        for precision in precisions:
            if not typed and precision not in ("float16", "int8"):
                continue
            batches = list(samples.batches(tower))
            graph = engine_graph(
                bundle, tower, precision, typed, folder / "graphs", progress, batches=batches
            )
            made[tower][precision] = {
                "file": f"graphs/{graph.path.name}",
                "sha256": sha256_of(graph.path),
                "sources": list(graph.sources),
                "cosine": graph.cosine,
                "float32": list(graph.float32),
            }
    return made


def _plain(
    folder: Path, bundle: Bundle, model: Model, pixels: Any
) -> tuple[dict[str, Any], Embeddings]:
    """Export the unmerged vision tower with torch.onnx as a peer. Returns it and embeddings."""
    graph, path = bundle.describe("vision"), folder / "graphs" / f"vision.{PLAIN}.onnx"
    _export_plain(model, graph, path)
    if (folder / "checkpoint.pth").exists():
        redraw(folder, path, "plain")
    made = {"file": f"graphs/{path.name}", "sha256": sha256_of(path), "sources": []}
    return {**made, "precision": "float16"}, run_graph(session(path), graph, (pixels,))


def _export_plain(model: Model, graph: Graph, path: Path) -> None:
    """Export with opset 17, as TensorRT 8.6 requires; only torch's older exporter writes it."""
    import torch

    reference = reference_from_tensors(model.config, model.tensors)
    # The exporter traces forward, which encodes both towers.
    reference.forward = reference.encode_image  # type: ignore[method-assign, assignment]
    image, output = graph.spec.inputs[0].name, graph.spec.output.name
    size = model.config.backbone.image_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            reference,
            (torch.zeros(2, 3, size, size),),
            str(path),
            input_names=[image],
            output_names=[output],
            dynamic_axes={image: {0: "batch"}, output: {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )


def _typed(bundle: Bundle, folder: Path, progress: Progress) -> dict[str, str]:
    """Write the float16 graphs for timing ONNX Runtime. Returns tower -> file."""
    (folder / "typed").mkdir(exist_ok=True)
    made: dict[str, str] = {}
    for tower in TOWERS:
        graph = engine_graph(bundle, tower, "float16", True, folder / "typed", progress)
        made[tower] = f"typed/{graph.path.name}"
    return made


def _macs(bundle: Bundle) -> dict[str, dict[str, int]]:
    """Count multiply-accumulates by tower and shape."""
    longest = bundle.manifest.model.backbone.max_text_length
    vision, text = (merged_plan(bundle.manifest, tower) for tower in TOWERS)
    return {
        "vision": {shape_name(n): count_macs(vision, n) for n in VISION_BATCHES},
        "text": {shape_name(n, t): count_macs(text, n, t) for n, t in TEXT_SHAPES if t <= longest},
    }
