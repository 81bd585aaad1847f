"""Compile engine graphs with TensorRT-RTX, without a GPU, and find faults in the kernels.

This proves that the parser of TensorRT 11 and its compiler for RTX cards accept the graphs. A data
centre GPU probably gets the same kernels, but that is not certain. Nothing is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mwa_export.bundle.bundle import Bundle
from mwa_export.bundle.engine import EnginePrecision
from mwa_export.bundle.manifest import write_manifest
from mwa_export.calib.calibrate import CalibrationOptions, calibrate
from mwa_export.calib.samples import Samples
from mwa_export.engines.graphs import EngineGraph, engine_graph
from mwa_export.graphs.edit import FloatGraph
from mwa_export.inputs.noise import random_pixels
from mwa_export.progress import Silent
from mwa_export.spec import Tower
from mwa_export.trt.build import engine_from_onnx
from mwa_export.trt.layers import Inspection, Layer
from mwa_export.trt.profiles import Span, profiles_of, text_lengths

ADA = ((8, 9),)  # the first with float8
LARGEST_FLOAT16 = 65504
_KERNEL = re.compile(rb'extern "C" __global__ void [^;{]*?\b(\w+)\(\s')
_REDUCED = re.compile(rb"reduce\w*<([^;()]*Op<[^;()]*)>\(")  # the types of a reduction
_FLASH = b"device_flash_attention"
_SOFTMAX = re.compile(rb"__myln_\w+ epilogue_impl\(")
_NARROW = re.compile(rb"__myln_(half|bf16)")


@dataclass(frozen=True)
class Compiled:
    """An engine graph, and what became of it."""

    made: EngineGraph
    graph: FloatGraph
    precision: EnginePrecision
    blocks: int
    ffn: int  # width of the FFN's hidden layer
    layers: Inspection
    engine: bytes

    @cached_property
    def sources(self) -> dict[str, bytes]:
        """CUDA sources of the kernels that the compiler wrote; the engine has them as text."""
        sources = {}
        for kernel in _KERNEL.finditer(self.engine):
            start, end = self.engine.rfind(b"\0", 0, kernel.start()), kernel.end()
            sources[kernel[1].decode()] = self.engine[start + 1 : self.engine.find(b"\0", end)]
        return sources

    def nodes(self, *ops: str) -> list[str]:
        """Names of the graph's nodes."""
        return [node.name for node in self.graph.nodes if node.op_type in ops]

    def computing(self, node: str) -> list[Layer]:
        """The layers that compute a node, or a part of it."""
        return [layer for layer in self.layers.layers if node in layer.nodes]


def calibrated(bundle: Bundle, options: CalibrationOptions | None = None) -> Bundle:
    """The bundle with a calibration of a few random inputs."""
    backbone = bundle.manifest.model.backbone
    rng = np.random.default_rng(0)
    pixels = random_pixels(rng, 4, backbone.image_size)
    lengths = rng.integers(2, 12, 4).tolist()
    texts = tuple((0, *rng.integers(4, backbone.vocab_size, n).tolist(), 2) for n in lengths)
    samples = Samples(pixels, texts, "0" * 64, "random", 0)
    calibrate(bundle, samples, options).save(bundle.path)
    write_manifest(bundle.path, bundle.manifest)
    return Bundle.open(bundle.path)


def compiled(
    bundle: Bundle,
    tower: Tower,
    precision: EnginePrecision,
    folder: Path,
    *,
    attention8: bool = False,
) -> Compiled:
    """Make a graph as `mwa-export trt` does, and compile it for Ada."""
    made = engine_graph(bundle, tower, precision, True, folder, Silent(), attention8=attention8)
    lengths = text_lengths(None, bundle.manifest.max_length) if tower == "text" else None
    profiles = profiles_of(bundle.describe(tower).spec, (Span(1, 32, 128),), lengths)
    out = folder / "engine"
    built = engine_from_onnx(
        made.path, profiles, out, precision=precision, device=None, capabilities=ADA
    )
    backbone = bundle.manifest.model.backbone
    return Compiled(
        made,
        FloatGraph.load(made.path),
        precision,
        backbone.layers,
        backbone.ffn_dim,
        built.layers,
        out.read_bytes(),
    )


def faults(c: Compiled) -> dict[str, list[str]]:
    """What is wrong with the kernels: fault -> where. Empty: nothing."""
    found = {
        "not in its 8 bits": _not_in(c, c.made.products, {c.precision}),
        "not in 16 bits": _not_in(c, _other_products(c), {_of_the_rest(c)}),
        "attention not fused": _not_fused(c),
        "float32 hidden layer": [layer.name for layer in c.layers.float32_matrices(c.ffn)],
        "narrow statistics": _narrow_statistics(c),
        "sums overflow": _overflowing_sums(c),
    }
    return {fault: places for fault, places in found.items() if places}


def _of_the_rest(c: Compiled) -> EnginePrecision:
    """The type of what is not quantized."""
    return "bfloat16" if c.precision == "bfloat16" else "float16"


def _other_products(c: Compiled) -> list[str]:
    """All products but the quantized ones, and those of attention, which are in its kernel."""
    attention = {node for layer in c.layers.attention for node in layer.nodes}
    return [n for n in c.nodes("MatMul") if n not in attention and n not in c.made.products]


def _not_in(c: Compiled, products: Iterable[str], precisions: set[str]) -> list[str]:
    """Products that no GEMM computes, or one of another type."""
    wrong = []
    for product in products:
        types = {layer.computes_in for layer in c.computing(product) if layer.is_gemm}
        if types != precisions:
            wrong.append(f"{product} in {', '.join(types) or 'no GEMM'}")
    return wrong


def _not_fused(c: Compiled) -> list[str]:
    """Softmaxes that are not in one kernel with both of their products."""
    wrong = [layer.name for layer in c.layers.layers if layer.is_softmax]
    for softmax in c.nodes("Softmax"):
        block = softmax.removesuffix(".Softmax")
        whole = {softmax, f"{block}.scores.MatMul", f"{block}.values.MatMul"}
        layers = [layer for layer in c.layers.attention if whole.issubset(layer.nodes)]
        if len(layers) != 1:
            wrong.append(f"{softmax}: {len(layers)} kernels")
    if len(c.layers.attention) != c.blocks:
        wrong.append(f"{len(c.layers.attention)} kernels of attention in {c.blocks} blocks")
    return wrong


def _narrow_statistics(c: Compiled) -> list[str]:
    """Norms and softmaxes whose sums, or anything that is summed, are not float32.

    Read in the sources of the kernels. Flash attention is a library's: its softmax is of floats, as
    its calls of what the compiler adds (`epilogue_impl`) show, and these are checked.
    """
    wrong = []
    for node in c.nodes("LayerNormalization", "Softmax", "ReduceL2", "ReduceMean", "ReduceSum"):
        types = [t for layer in c.computing(node) for t in _reduced(c.sources[layer.tactic])]
        if not types or any(map(_NARROW.search, types)):
            wrong.append(f"{node}: {b' '.join(types).decode() or 'no reduction found'}")
    return wrong


def _reduced(source: bytes) -> list[bytes]:
    """The types of what a kernel sums; what stands before it belongs to the library."""
    found = _KERNEL.search(source)
    assert found is not None
    kernel = source[found.start() :]
    if _FLASH in kernel:
        return [_FLASH, *_SOFTMAX.findall(source)]
    return _REDUCED.findall(kernel)


def _overflowing_sums(c: Compiled) -> list[str]:
    """Int8 products that a GEMM stores as float16 while the largest possible one does not fit.

    The GEMM multiplies by the scales that all columns share; others follow in the next kernel.
    """
    wrong = []
    for node in c.graph.nodes:
        if node.op_type != "MatMul" or node.name not in c.made.products or c.precision != "int8":
            continue
        inputs, weight = (c.graph.producer(value) for value in node.input)
        assert inputs is not None
        assert weight is not None
        if weight.input[0] not in c.graph.tensors:  # of attention
            continue
        levels, scale = (c.graph.tensors[name].astype(np.float64) for name in weight.input[:2])
        grid = 127 * float(c.graph.tensors[inputs.input[1]])
        most = grid * np.abs(levels).sum(0).max() * (scale if scale.ndim == 0 else 1)
        stored = {p.kind for layer in c.computing(node.name) for p in layer.outputs}
        if "float16" in stored and most > LARGEST_FLOAT16:
            wrong.append(f"{node.name}: up to {most:.0f}")
    return wrong
