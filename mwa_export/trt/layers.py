"""Layers of an engine, and reasons why it may be slower than its precision promises.

The engine inspector's JSON differs between versions (a layer is an object in engines built with
detailed verbosity, else its name; types are "Half" or "Row major linear FP16 format"), so unknown
entries are left out and are never an error.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_TYPES = (  # how a type is written, and what we call it; the first that fits
    (re.compile(r"int8"), "int8"),
    (re.compile(r"fp8|float8|e4m3"), "float8"),
    (re.compile(r"bf16|bfloat16"), "bfloat16"),
    (re.compile(r"half|fp16|float16"), "float16"),
    (re.compile(r"float|fp32"), "float32"),
)
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_GEMM = re.compile(r"gemm|matmul|matrixmultiply|conv", re.IGNORECASE)
_ATTENTION = re.compile(r"mha|flash", re.IGNORECASE)
_SOFTMAX = re.compile(r"softmax", re.IGNORECASE)
_REFORMAT = re.compile(r"^(reformat|nop|shufflereformat)$", re.IGNORECASE)
_OPAQUE = re.compile(r"ForeignNode|^myelin$", re.IGNORECASE)
_SHOWN = 4  # names in a sentence


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an engine."""

    name: str
    kind: str  # LayerType; "" where it is not told
    inputs: tuple[str, ...]  # types of its inputs that are known, such as "float16"
    tactic: str
    nodes: tuple[str, ...]  # of the graph, that it computes

    @property
    def is_gemm(self) -> bool:
        """Whether it multiplies matrices (the patches' convolution included)."""
        if self.is_attention or self.is_reformat:
            return False
        named = any(node.endswith((".MatMul", ".Conv")) for node in self.nodes)
        return bool(named or _GEMM.search(self.kind) or _GEMM.search(self.tactic))

    @property
    def is_attention(self) -> bool:
        """Whether it is fused attention."""
        return bool(_ATTENTION.search(self.tactic) or _ATTENTION.search(self.kind))

    @property
    def is_reformat(self) -> bool:
        """Whether it only copies to another layout or type."""
        return bool(_REFORMAT.match(self.kind)) or self.name.startswith("Reformatting CopyNode")

    @property
    def is_opaque(self) -> bool:
        """Whether it is a part of the graph that the inspector does not look into."""
        return bool(_OPAQUE.search(self.name) or _OPAQUE.search(self.kind))


@dataclass(frozen=True, slots=True)
class Inspection:
    """The layers of an engine."""

    layers: tuple[Layer, ...]

    @property
    def gemms(self) -> dict[str, int]:
        """Number of GEMMs by the type they compute in, the smallest of their inputs' types."""
        return dict(Counter(_smallest(layer) for layer in self.layers if layer.is_gemm))

    def to_json(self) -> dict[str, Any]:
        """Counts for a report, without the layers."""
        return {
            "layers": len(self.layers),
            "gemms": self.gemms,
            "fused_attention": sum(layer.is_attention for layer in self.layers),
            "reformats": sum(layer.is_reformat for layer in self.layers),
            "opaque": sum(layer.is_opaque for layer in self.layers),
        }

    def reasons(self, precision: str) -> tuple[str, ...]:
        """Possible reasons why an engine is slower than its precision promises."""
        sentences = []
        wanted = {precision, "unknown"}
        slower = [la for la in self.layers if la.is_gemm and _smallest(la) not in wanted]
        for kind in dict.fromkeys(_smallest(layer) for layer in slower):
            of = [layer for layer in slower if _smallest(layer) == kind]
            sentences.append(f"{len(of)} GEMMs compute in {kind} ({_names(of)})")
        reformats = [layer for layer in self.layers if layer.is_reformat]
        if reformats:
            sentences.append(f"{len(reformats)} layers only copy to another layout or type")
        softmax = [
            la
            for la in self.layers
            if not la.is_attention and any(_SOFTMAX.search(n) for n in (*la.nodes, la.name))
        ]
        if softmax:
            sentences.append(
                f"attention is not fused: {len(softmax)} layers compute a softmax by itself"
            )
        opaque = [layer for layer in self.layers if layer.is_opaque]
        if opaque:
            sentences.append(
                f"{len(opaque)} layers are compiled as a whole, and the inspector shows nothing "
                "inside them"
            )
        return tuple(sentences)


def read_inspection(text: str) -> Inspection:
    """The layers in an inspector's JSON; none if its form is unknown."""
    try:
        entries = list(json.loads(text)["Layers"])
    except (ValueError, KeyError, TypeError):
        return Inspection(())
    return Inspection(tuple(_layer(entry) for entry in entries if isinstance(entry, dict | str)))


def _layer(entry: dict[str, Any] | str) -> Layer:
    if isinstance(entry, str):
        entry = {"Name": entry}
    inputs = entry.get("Inputs")
    kinds = [_type(port) for port in inputs if isinstance(port, dict)] if inputs else []
    metadata = str(entry.get("Metadata", ""))
    name = str(entry.get("Name", ""))
    return Layer(
        name,
        str(entry.get("LayerType", "")),
        tuple(kind for kind in kinds if kind is not None),
        str(entry.get("TacticName", "")),
        tuple(_ONNX_NODE.findall(metadata)) or tuple(part.strip() for part in name.split(" + ")),
    )


def _type(port: dict[str, Any]) -> str | None:
    written = str(port.get("Format/Datatype", "")).lower()
    return next((name for pattern, name in _TYPES if pattern.search(written)), None)


def _smallest(layer: Layer) -> str:
    """The type that a layer computes in; biases and scales are wider than the factors."""
    order = [name for _pattern, name in _TYPES]
    known = [kind for kind in layer.inputs if kind in order]
    return min(known, key=order.index) if known else "unknown"


def _names(layers: Sequence[Layer]) -> str:
    shown = ", ".join((layer.nodes or (layer.name,))[0] for layer in layers[:_SHOWN])
    return shown + (", ..." if len(layers) > _SHOWN else "")
