"""Count kernels and bytes of a block as compiled by NVIDIA, and compare with a lower bound.

Compiles random models of base width (768, FFN 3072, three blocks) with TensorRT-RTX for compute
capability 8.9, which needs no GPU, and counts the tensors that kernels read from and write to
memory, without weights. "Before" is the graph without `engine_form`, for INT8 with a scale per
column; "after" is what `mwa-export trt` compiles. The middle block is quantized. The last block is
not; only its token 0 is used afterwards. Nothing is run, so there are no times.

The bound is what the ideal kernels of a block read and write. Only activations that must leave a
kernel do so; each is written once, and read once by each kernel that needs it:

    norm; q, k, v; attention; inner norm; out + residual
    norm; fc1 and adapter down; GELU + norm, ReLU; fc2 and adapter up + residual
    with the enhancer: fc1; GELU + norm; fc2 + residual

In the bound, values that only 8-bit GEMMs read take 1 byte, all others 2. A tensor is counted in
full for each kernel that uses it; caches, and repeated reads of attention per tile, are ignored on
both sides. The last block's residual sum reads only token 0 of the stream, but is counted as if it
read all tokens.

    python benchmarks/trt_kernels.py

Writes benchmarks/results/trt_kernels.json and .md. --kernels prints the kernels of middle blocks.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from machine import command_line

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import EnginePrecision
from mwa_export.bundle.manifest import write_manifest
from mwa_export.calib.calibrate import calibrate
from mwa_export.calib.dialects import DIALECTS
from mwa_export.calib.samples import Samples
from mwa_export.engines import graphs
from mwa_export.export.export import bundle_from_model
from mwa_export.graphs.cast_first import cast_first
from mwa_export.inputs.noise import random_pixels
from mwa_export.model.load import Model
from mwa_export.model.synthetic import beit3_config, random_tensors
from mwa_export.progress import Silent
from mwa_export.spec import AdapterConfig, ModelConfig
from mwa_export.trt.build import engine_from_onnx
from mwa_export.trt.install import load_rtx
from mwa_export.trt.layers import Layer, Port
from mwa_export.trt.profiles import Span, profiles_of

ROWS = 32  # images per batch, fixed so that the compiler prints every dimension
BLOCKS = 3
MIDDLE, LAST = 1, 2
CAPABILITY = (8, 9)
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8": 1}
PRECISIONS: tuple[EnginePrecision, ...] = ("float16", "bfloat16", "int8", "float8")
RESULTS = Path(__file__).parent / "results"
_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True)
class Kernel:
    """Bytes that a kernel reads and writes per token of the input."""

    name: str
    read: float
    written: float


@dataclass(frozen=True)
class Block:
    """Memory traffic of one block in one form of the graph."""

    model: str
    precision: EnginePrecision
    block: str  # "middle" or "last"
    form: str  # "before" or "after"
    bound: float  # bytes per token
    kernels: tuple[Kernel, ...]

    @property
    def read(self) -> float:
        return sum(kernel.read for kernel in self.kernels)

    @property
    def written(self) -> float:
        return sum(kernel.written for kernel in self.kernels)

    @property
    def ratio(self) -> float:
        return (self.read + self.written) / self.bound


def ideal_block(width: int, hidden: int, bottleneck: int, enhancer: bool, q: int) -> list[Kernel]:
    """Return the ideal kernels of a block whose adapter follows the FFN's norm.

    ``q``: bytes of a value that only quantized GEMMs read.
    """
    stream, inner, down = 2 * width, 2 * hidden, 2 * bottleneck
    more = q * width if enhancer and q < 2 else 0  # the enhancer's input, separate from the stream
    up = q * (hidden + bottleneck)
    kernels = [
        Kernel("norm", stream, q * width),
        Kernel("q, k, v", q * width, 3 * stream),
        Kernel("attention", 3 * stream, stream),
        Kernel("inner norm", stream, q * width),
        Kernel("out + residual", q * width + stream, stream),
        Kernel("norm", stream, q * width),
        Kernel("fc1, down", q * width, inner + down),
        Kernel("GELU + norm, ReLU", inner + down, up),
        Kernel("fc2, up + residual", up + stream, stream + more),
    ]
    if enhancer:
        kernels += [
            Kernel("enhancer fc1", q * width, inner),
            Kernel("enhancer GELU + norm", inner, q * hidden),
            Kernel("enhancer fc2 + residual", q * hidden + stream, stream),
        ]
    return kernels


def ideal_last_block(
    width: int, hidden: int, bottleneck: int, enhancer: bool, tokens: int
) -> list[Kernel]:
    """Return the ideal kernels of the last block in 16 bits: all keys and values, one query."""
    stream, one = 2 * width, 2 * width / tokens
    rest = ideal_block(width, hidden, bottleneck, enhancer, 2)[3:]
    return [
        Kernel("norm", stream, stream),
        Kernel("k, v", stream, 2 * stream),
        Kernel("q", one, one),
        Kernel("attention", 2 * stream + one, one),
        *(Kernel(k.name, k.read / tokens, k.written / tokens) for k in rest),
    ]


def traffic(kernels: Iterable[Kernel]) -> float:
    """Return the total bytes read and written."""
    return sum(kernel.read + kernel.written for kernel in kernels)


def port_bytes(ports: Iterable[Port]) -> int:
    """Return the bytes of tensors with known dimensions; types outside BYTES count as 0."""
    return sum(BYTES[port.kind] * math.prod(port.dims) for port in ports if port.kind is not None)


def kernels_of(layers: Iterable[Layer], block: int, tokens: int) -> tuple[Kernel, ...]:
    """Return the kernels of a block, with bytes read and written per token.

    A kernel that computes parts of two blocks belongs to the later one.
    """
    return tuple(
        Kernel(
            _name(layer),
            port_bytes(layer.inputs) / tokens,
            port_bytes(layer.outputs) / tokens,
        )
        for layer in layers
        if max((int(n) for name in layer.nodes for n in _BLOCK.findall(name)), default=-1) == block
    )


def _name(layer: Layer) -> str:
    """Name a kernel: the products of a GEMM, otherwise the compiler's name."""
    products = [node for node in layer.nodes if node.endswith(".MatMul")]
    if layer.is_gemm and products:
        return " + ".join(products)
    return re.sub(r"^__myl_|_myl0_\d+$", "", layer.name)


def models() -> dict[str, ModelConfig]:
    adapter = AdapterConfig("both", 64, "in", 0.6, "parallel")
    made = {}
    for name, enhancer in (("adapter", False), ("adapter and enhancer", True)):
        config = beit3_config("base", adapter=adapter, enhancer=enhancer)
        backbone = replace(config.backbone, layers=BLOCKS, vocab_size=1000)
        made[name] = replace(config, backbone=backbone)
    return made


def calibrated(config: ModelConfig, folder: Path) -> Bundle:
    """Make a bundle of random weights, calibrated on random inputs."""
    bundle = bundle_from_model(Model(config, random_tensors(config), (), ()), folder)
    rng = np.random.default_rng(0)
    pixels = random_pixels(rng, 8, config.backbone.image_size)
    texts = tuple((0, *rng.integers(4, 1000, 9).tolist(), 2) for _ in range(8))
    calibrate(bundle, Samples(pixels, texts, "0" * 64, "random", 0)).save(folder)
    write_manifest(folder, bundle.manifest)
    return Bundle.open(folder)


def as_before() -> AbstractContextManager[Any]:
    """Patch graph building: no `engine_form`, and a scale per column."""
    columns = {**DIALECTS, "tensorrt": replace(DIALECTS["tensorrt"], column_factors=False)}
    # The linter would reject more than one scale.
    return mock.patch.multiple(graphs, engine_form=cast_first, DIALECTS=columns, check=mock.DEFAULT)


def compiled(bundle: Bundle, precision: EnginePrecision, folder: Path) -> tuple[Layer, ...]:
    """Compile the vision tower. Returns its kernels."""
    made = graphs.engine_graph(bundle, "vision", precision, True, folder, Silent())
    return engine_from_onnx(
        made.path,
        profiles_of(bundle.describe("vision").spec, (Span(ROWS, ROWS, ROWS),)),
        folder / "engine",
        precision=precision,
        device=None,
        capabilities=(CAPABILITY,),
    ).layers.layers


def measure(name: str, bundle: Bundle, precision: EnginePrecision, folder: Path) -> list[Block]:
    """Measure the middle and the last block, before and after."""
    model = bundle.manifest.model
    backbone, adapter = model.backbone, model.adapter
    assert adapter is not None
    tokens = (backbone.image_size // backbone.patch_size) ** 2 + 1
    sizes = (backbone.embed_dim, backbone.ffn_dim, adapter.bottleneck, model.enhancer)
    bounds = {
        MIDDLE: traffic(ideal_block(*sizes, BYTES[precision])),
        LAST: traffic(ideal_last_block(*sizes, tokens)),
    }
    blocks = []
    for form, patch in (("before", as_before), ("after", nullcontext)):
        with patch():
            layers = compiled(bundle, precision, folder)
        for index, block in ((MIDDLE, "middle"), (LAST, "last")):
            kernels = kernels_of(layers, index, ROWS * tokens)
            blocks.append(Block(name, precision, block, form, bounds[index], kernels))
    return blocks


def table(blocks: Iterable[Block]) -> str:
    """Format a row per precision, model and block: before, after, bound."""
    pairs: dict[str, dict[str, Block]] = {}
    for block in blocks:
        key = f"{block.model} | {block.block} | {block.precision}"
        pairs.setdefault(key, {})[block.form] = block
    lines = [
        "| model | block | precision | kernels | kB read | written | in all | bound | ratio |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key, forms in pairs.items():
        old, new = forms["before"], forms["after"]
        cells = [
            key,
            f"{len(old.kernels)} → {len(new.kernels)}",
            f"{old.read / 1e3:.1f} → {new.read / 1e3:.1f}",
            f"{old.written / 1e3:.1f} → {new.written / 1e3:.1f}",
            f"{(old.read + old.written) / 1e3:.1f} → {(new.read + new.written) / 1e3:.1f}",
            f"{new.bound / 1e3:.1f}",
            f"{old.ratio:.2f} → {new.ratio:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_json(block: Block) -> dict[str, Any]:
    """Convert a block to JSON, with its kernels as lines in kB."""
    lines = [f"{k.name}: {k.read / 1e3:.2f} + {k.written / 1e3:.2f}" for k in block.kernels]
    return asdict(block) | {
        "bound": round(block.bound),
        "read": round(block.read),
        "written": round(block.written),
        "ratio": round(block.ratio, 3),
        "kernels": len(lines),
        "kernels_read_and_written_kB": lines,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "trt_kernels")
    parser.add_argument("--kernels", action="store_true", help="print the kernels of middle blocks")
    options = parser.parse_args()
    compiler = load_rtx().name
    blocks: list[Block] = []
    with tempfile.TemporaryDirectory() as name:
        for model, config in models().items():
            folder = Path(name) / model.replace(" ", "-")
            bundle = calibrated(config, folder)
            for precision in PRECISIONS:
                blocks += measure(model, bundle, precision, Path(name))
    results = {
        "command": command_line(),
        "compiler": compiler,
        "capability": "8.9",
        "rows": ROWS,
        "unit": "bytes per token",
        "blocks": [as_json(block) for block in blocks],
    }
    options.out.with_suffix(".json").write_text(
        json.dumps(results, indent=1) + "\n", encoding="utf-8"
    )
    head = (
        f"{compiler} for compute capability 8.9; vision tower of base width, 197 tokens, adapter "
        "`in` of 64. Kernels of a block, and what they read and write for each token, before → "
        f"after. Nothing was run. `{command_line()}`\n\n"
    )
    options.out.with_suffix(".md").write_text(head + table(blocks), encoding="utf-8")
    print(table(blocks))
    if options.kernels:
        show = {(b.model, b.precision, b.form): as_json(b) for b in blocks if b.block == "middle"}
        for key, block in show.items():
            print(*key, *block["kernels_read_and_written_kB"], sep="\n  ")


if __name__ == "__main__":
    main()
