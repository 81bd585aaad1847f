"""Measure the CPU targets: INT8, bfloat16 and float32 of a bundle against generic tools.

The model is BEiT-3 base, 224 pixels, with random weights in which every tensor matters, adapters of
64 with LayerNorm `in`, and no enhancer. It is exported, calibrated on drawn images and random ids,
and every layer is quantized to INT8. Then `mwa-export bench` is run together with other tools'
quantizers and the machine's GEMM peak (`peers/`): batch 8, interleaved, medians of the rounds.
Captions have the lengths assumed for COCO (8 to 30 tokens); peers pad them to 64, as the reference
does.

    pip install "mwa-export[bench]" nncf optimum-onnx   # missing ones are listed as not measured
    python benchmarks/cpu.py --name vnni
    python benchmarks/cpu.py --size tiny --rounds 3 --peers eager,onnx --out-folder /tmp/smoke

Writes cpu_NAME.json and cpu_NAME.md to benchmarks/results. On a CPU without INT8 instructions, INT8
rows are run anyway and marked. Takes about 15 minutes on 2 cores, mostly for PyTorch.
The last line of the output is the path of the table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from peers.peak import kernels
from peers.quantizers import QUANTIZERS

from mwa_export.bench.inputs import COCO_LEAST, COCO_MEAN, COCO_MOST, COCO_SPREAD
from mwa_export.bench.peers import PEERS, chosen_peers
from mwa_export.bench.report import peak_sentence, skipped_lines, table_of
from mwa_export.bench.result import Bench, Figure, Section
from mwa_export.bench.run import BenchOptions, run_bench
from mwa_export.bundle.bundle import Bundle
from mwa_export.calib.calibrate import calibrate
from mwa_export.calib.quantize import QuantizeOptions, quantize
from mwa_export.calib.samples import take_samples
from mwa_export.cpu import fast_bfloat16, fast_int8, instruction_sets
from mwa_export.data.test_set import RetrievalData
from mwa_export.data.test_sets import read_data
from mwa_export.demo.scenes import write_scenes
from mwa_export.encoder.open import open_bundle
from mwa_export.export.export import bundle_from_model
from mwa_export.model.load import ModelSource, load_model
from mwa_export.spec import AdapterConfig, BackboneConfig, ModelConfig

RESULTS = Path(__file__).parent / "results"
BATCH = 8
EVERY = PEERS | QUANTIZERS
EAGER = PEERS["eager"].name
PLAIN = PEERS["onnx"].name
MARK = " (slow here: this CPU has no INT8 instructions)"


@dataclass(frozen=True)
class Row:
    """A target and its measurement."""

    what: str
    target: str
    figure: float | None  # None: one side did not run
    reached: bool
    who: str  # the compared contenders
    peak: float | None  # our share of the machine's GEMM peak


def main() -> None:
    """Make the bundle, measure, and write the JSON and the table."""
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.workdir) as name:
        folder = Path(name)
        bundle = make_bundle(folder, options)
        model = load_model(ModelSource(folder / "checkpoint.pth"))
        data = drawn_data(folder, bundle, options.samples, seed=2)
        bench = run_bench(
            bundle,
            BenchOptions(
                batches=(BATCH,),
                rounds=options.rounds,
                threads=options.threads,
                allow_slow=True,
            ),
            model=model,
            data=data,
            peers=chosen_peers(options.peers.split(","), EVERY),
            peak=kernels if options.peak else None,
            progress=Printed(),
        )
    rows = target_rows(bench)
    text = table(bench, rows)
    print(text)
    options.out_folder.mkdir(parents=True, exist_ok=True)
    found = {
        "size": options.size,
        "fast_int8": fast_int8(instruction_sets()),
        "fast_bfloat16": fast_bfloat16(instruction_sets()),
        "targets": [vars(row) for row in rows],
        "bench": bench.to_json(),
    }
    path = options.out_folder / f"cpu_{options.name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(path.with_suffix(".md"))


def parse() -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--name", default="this", help="name of the result: cpu_NAME.json")
    parser.add_argument("--size", choices=["base", "tiny"], default="base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=64, help="images and texts for calibration")
    parser.add_argument("--threads", type=int)
    slow = fast_bfloat16(instruction_sets()) is False
    every = [name for name in EVERY if not (slow and "bf16" in name)]
    parser.add_argument(
        "--peers",
        default=",".join(every),
        help="default: all; bfloat16 only if the CPU supports it (otherwise minutes per image)",
    )
    parser.add_argument("--no-peak", dest="peak", action="store_false")
    parser.add_argument("--workdir", help="folder for temporary files, several GB")
    parser.add_argument("--out-folder", type=Path, default=RESULTS)
    return parser.parse_args()


class Printed:
    """Progress display that prints a line per step."""

    def __call__(self, text: str, total: int | None = None) -> None:
        """Print the step."""
        print(f"  {text}", flush=True)

    def advance(self, rows: int) -> None:
        """Do nothing."""


# --- the bundle --------------------------------------------------------------------------------


def model_config(size: str) -> ModelConfig:
    """Return the model to measure: base, or a tiny one that takes a minute."""
    base = size == "base"
    width, layers = (768, 12) if base else (128, 3)
    backbone = BackboneConfig(
        embed_dim=width,
        ffn_dim=4 * width,
        layers=layers,
        vocab_size=64010 if base else 1000,
        image_size=224 if base else 64,
        patch_size=16,
        text_positions=1022,
    )
    return ModelConfig(backbone, AdapterConfig("both", 64, "in", 0.6, "parallel"))


def make_bundle(folder: Path, options: argparse.Namespace) -> Bundle:
    """Export and quantize, each in a separate process, so their memory does not affect timings."""
    for job in (_export, _quantize):
        process = multiprocessing.get_context("spawn").Process(target=job, args=(folder, options))
        process.start()
        process.join()
        assert process.exitcode == 0, job.__name__
    return Bundle.open(folder / "bundle")


def _export(folder: Path, options: argparse.Namespace) -> None:
    import torch

    from mwa_export.model.synthetic import random_tensors, training_args

    config = model_config(options.size)
    path = folder / "checkpoint.pth"
    torch.save({"model": random_tensors(config), "args": training_args(config)}, path)
    bundle_from_model(load_model(ModelSource(path)), folder / "bundle")


def _quantize(folder: Path, options: argparse.Namespace) -> None:
    """Quantize every layer. Recall is not measured: it is meaningless with random weights."""
    bundle = Bundle.open(folder / "bundle")
    side = open_bundle(bundle.path)
    data = drawn_data(folder, bundle, options.samples, seed=1)
    samples = take_samples(side, data, options.samples, 0)
    kept = folder / "calibration"
    kept.mkdir()
    calibrate(bundle, samples, progress=Printed()).save(kept)
    wanted = QuantizeOptions(dialects=("onnxruntime", "openvino"))
    quantize(
        bundle.path, None, calibration=kept / "calibration.json", options=wanted, progress=Printed()
    )


def drawn_data(folder: Path, bundle: Bundle, count: int, seed: int) -> RetrievalData:
    """Make drawn images with five texts of random ids each (random weights have no vocabulary)."""
    out = folder / f"pictures-{seed}"
    drawn = read_data(write_scenes(out, family="target", count=count, seed=seed))
    rng = np.random.default_rng(seed)
    vocabulary = bundle.manifest.model.backbone.vocab_size
    lengths = np.clip(np.rint(rng.normal(COCO_MEAN, COCO_SPREAD, 5 * count)), COCO_LEAST, COCO_MOST)
    # Ids recur within a text collection, as words do.
    words = rng.choice(np.arange(4, vocabulary), min(300, vocabulary // 10), replace=False)
    captions = tuple(tuple(int(i) for i in rng.choice(words, int(n) - 2)) for n in lengths)
    return replace(drawn, captions=captions, name="drawn pictures, random ids of COCO-like lengths")


# --- the table ---------------------------------------------------------------------------------


def target_rows(bench: Bench) -> list[Row]:
    """Compare the targets with the measurements."""
    vision = next(s for s in bench.sections if s.tower == "vision")
    text = next(s for s in bench.sections if s.tower == "text")
    int8 = best(vision, lambda f: f.kind == "ours" and f.precision == "int8")
    others = best(vision, lambda f: f.kind == "peer" and f.precision == "int8")
    # Without bfloat16 instructions it runs as float32, so which is faster would be chance.
    able = fast_bfloat16(instruction_sets()) is not False
    unquantized = ("float32", "bfloat16") if able else ("float32",)
    exact = best(vision, lambda f: f.kind == "ours" and f.precision in unquantized)
    captions = best(text, lambda f: f.kind == "ours")
    eager = best(vision, lambda f: f.name == EAGER)
    rows = [
        ratio("INT8 against PyTorch eager float32, pictures", 5.5, int8, eager),
        ratio("INT8 against the best generic INT8, pictures", 1.8, int8, others),
        ratio(
            "no quantization against the plain export on ONNX Runtime, pictures",
            2.3,
            exact,
            best(vision, lambda f: f.name == PLAIN),
        ),
        ratio(
            "captions, any precision, against PyTorch eager float32 padded to 64",
            8,
            captions,
            best(text, lambda f: f.name == EAGER),
        ),
    ]
    for section in (vision, text):
        figure = best(section, lambda f: f.kind == "ours" and f.precision == "int8")
        found = None if figure is None else figure.cosine
        who = "did not run" if figure is None else f"{figure.name}; {figure.cosine_rows} rows"
        what = f"mean cosine INT8 against float32, {section.tower}"
        rows.append(Row(what, "0.999", found, found is not None and found >= 0.999, who, None))
    return rows


def best(section: Section, wanted: Callable[[Figure], bool]) -> Figure | None:
    """Return the fastest matching contender; None if none ran."""
    return max(filter(wanted, section.figures), key=lambda f: f.ratio, default=None)


def ratio(what: str, target: float, ours: Figure | None, other: Figure | None) -> Row:
    """Compare the speed of two contenders, each relative to the same baseline per round."""
    if ours is None or other is None:
        missing = "of ours none ran" if ours is None else "what it is compared with did not run"
        return Row(what, f"{target:g} x", None, False, missing, None)
    found = ours.ratio / other.ratio
    # ONNX Runtime's exact kernels only require AVX2.
    exact = ours.runtime == "onnxruntime" and "avx2" in (instruction_sets() or ())
    slow = ours.precision == "int8" and fast_int8(instruction_sets()) is False and not exact
    who = f"{ours.name}{MARK if slow else ''} against {other.name}"
    return Row(what, f"{target:g} x", found, found >= target, who, ours.peak_share)


def table(bench: Bench, rows: Sequence[Row]) -> str:
    """Format the targets, followed by every contender, as Markdown."""
    machine = bench.machine
    lines = [
        f"{machine.cpu}, {machine.threads} threads, {' '.join(machine.instruction_sets)}; load "
        f"before the run {machine.load}; {bench.settings.rounds} rounds, batch {BATCH}. "
        f"{bench.model}.",
        "",
        "| | target | measured | reached | peak | compared |",
        "| --- | ---: | ---: | --- | ---: | --- |",
    ]
    for row in rows:
        unit = " x" if row.target.endswith("x") else ""
        digits = 2 if unit else 5
        found = "not measured" if row.figure is None else f"{row.figure:.{digits}f}{unit}"
        peak = "" if row.peak is None else f"{100 * row.peak:.0f} %"
        reached = "yes" if row.reached else "no"
        lines.append(f"| {row.what} | {row.target} | {found} | {reached} | {peak} | {row.who} |")
    for section in bench.sections:
        lines += ["", f"{section.tower}, batch {section.batch}. {peak_sentence(section)}", ""]
        head, *cells = ["| " + " | ".join(row) + " |" for row in table_of(section)]
        lines += [head, "| --- |" + " ---: |" * (head.count("|") - 2), *cells]
    skipped = skipped_lines(bench)
    if skipped:
        lines += ["", "Not measured:", "", *(f"- {line}" for line in skipped)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
