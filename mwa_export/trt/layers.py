"""Layers of a compiled engine, and reasons why it may be slower than its precision promises.

There are two sources: the JSON of the engine inspector, which needs the GPU, and the list that the
compiler of TensorRT-RTX prints at the end of a verbose build, which needs none. Both differ between
versions: a layer is an object in engines built with detailed verbosity, otherwise its name; types
are "Half" or "Row major linear FP16 format", under one key or two. Unknown entries are therefore
skipped and never an error.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TYPES = (  # pattern of a type's spelling, and our name; the first match counts
    (re.compile(r"int8"), "int8"),
    (re.compile(r"fp8|float8|e4m3"), "float8"),
    (re.compile(r"bf16|bfloat16"), "bfloat16"),
    (re.compile(r"half|fp16|float16"), "float16"),
    (re.compile(r"float|fp32"), "float32"),
)
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]+)")
_GEMM = re.compile(r"gemm|matmul|matrixmultiply|conv|correlation", re.IGNORECASE)
_FUSED_GEMM = re.compile(r"Fc|MatMul|Gemm|Conv")  # in the name of a "fusion" layer
_ATTENTION = re.compile(r"mha|flash", re.IGNORECASE)
_SOFTMAX = re.compile(r"softmax", re.IGNORECASE)
_REFORMAT = re.compile(r"^(reformat|nop|shufflereformat)$", re.IGNORECASE)
_OPAQUE = re.compile(r"ForeignNode|^myelin$", re.IGNORECASE)
_NO_KERNELS = ("signal", "wait", "shape_call")
_PRINTED = re.compile(
    r"Name: (?P<Name>.*?), LayerType: (?P<LayerType>.*?), Inputs: (?P<Inputs>.*), "
    r"Constants: (?P<Constants>.*), Outputs: (?P<Outputs>.*), TacticName: (?P<TacticName>.*?), "
    r"StreamId: \d+.*?, Metadata: (?P<Metadata>.*)"
)
_PRINTED_PORT = re.compile(r"Dimensions: (\[[^\]]*\]).*?Datatype: (\w+)")
_SHOWN = 4  # names in a sentence


@dataclass(frozen=True, slots=True)
class Port:
    """A tensor that a layer reads or writes."""

    kind: str | None  # data type such as "float16"; None: unknown
    dims: tuple[int, ...]  # -1: unknown before the run

    @property
    def is_matrix(self) -> bool:
        """Whether it has rows and columns."""
        return sum(size != 1 for size in self.dims) >= 2


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an engine, usually one kernel."""

    name: str
    kind: str  # LayerType; "": unknown
    inputs: tuple[Port, ...]
    constants: tuple[Port, ...]
    outputs: tuple[Port, ...]
    tactic: str
    nodes: tuple[str, ...]  # names of the graph's nodes that it computes

    @property
    def is_gemm(self) -> bool:
        """Whether it multiplies matrices (including the convolution of the patches).

        A layer that only finishes a product does not count, even if the product is in ``nodes``.
        """
        if self.is_attention or self.is_reformat:
            return False
        if not self.kind:
            return any(node.endswith((".MatMul", ".Conv")) for node in self.nodes)
        fused = self.kind.endswith("fusion") and _FUSED_GEMM.search(self.name)
        return bool(fused or _GEMM.search(self.kind))

    @property
    def computes_in(self) -> str:
        """Type that a GEMM computes in: the wider one of its two factors, or "unknown".

        The factors are the constant matrix, if there is one, and the first inputs. Biases and
        residuals that are added may be wider.
        """
        weights = [port for port in self.constants if port.is_matrix]
        factors = [max(weights, key=_size), *self.inputs[:1]] if weights else self.inputs[:2]
        order = [name for _pattern, name in _TYPES]
        known = [port.kind for port in factors if port.kind is not None]
        return max(known, key=order.index, default="unknown")

    @property
    def is_attention(self) -> bool:
        """Whether it is fused attention."""
        return any(_ATTENTION.search(text) for text in (self.tactic, self.kind, self.name))

    @property
    def is_reformat(self) -> bool:
        """Whether it only copies to a different layout or type."""
        return bool(_REFORMAT.match(self.kind)) or self.name.startswith("Reformatting CopyNode")

    @property
    def is_opaque(self) -> bool:
        """Whether it is a part of the graph that the inspector does not show in detail."""
        return bool(_OPAQUE.search(self.name) or _OPAQUE.search(self.kind))

    @property
    def is_softmax(self) -> bool:
        """Whether it computes a softmax outside of fused attention."""
        named = any(_SOFTMAX.search(name) for name in (*self.nodes, self.name))
        return named and not self.is_attention


@dataclass(frozen=True, slots=True)
class Inspection:
    """The layers of an engine."""

    layers: tuple[Layer, ...]

    @property
    def gemms(self) -> dict[str, int]:
        """Number of GEMMs by the type that they compute in."""
        return dict(Counter(layer.computes_in for layer in self.layers if layer.is_gemm))

    @property
    def attention(self) -> tuple[Layer, ...]:
        """Layers of fused attention."""
        return tuple(layer for layer in self.layers if layer.is_attention)

    def wider(self, products: Collection[str], precision: str) -> tuple[Layer, ...]:
        """Layers that compute one of the named products in a type other than ``precision``."""
        return tuple(
            layer
            for layer in self.layers
            if layer.is_gemm
            and not {*products}.isdisjoint(layer.nodes)
            and layer.computes_in not in (precision, "unknown")
        )

    def float32_matrices(self, width: int) -> tuple[Layer, ...]:
        """Layers that write a float32 matrix of at least this width."""
        return tuple(
            layer
            for layer in self.layers
            if any(
                p.kind == "float32" and p.is_matrix and p.dims[-1] >= width for p in layer.outputs
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Counts for a report, without the layers."""
        return {
            "layers": len(self.layers),
            "gemms": self.gemms,
            "fused_attention": len(self.attention),
            "reformats": sum(layer.is_reformat for layer in self.layers),
            "opaque": sum(layer.is_opaque for layer in self.layers),
        }

    def reasons(self, precision: str, products: Collection[str]) -> tuple[str, ...]:
        """Possible reasons why an engine is slower than its precision promises.

        ``products``: nodes of the graph that should compute in that precision. Nodes with other
        names in the engine's JSON are not judged.
        """
        sentences = []
        slower = self.wider(products, precision)
        for kind in dict.fromkeys(layer.computes_in for layer in slower):
            of = [layer for layer in slower if layer.computes_in == kind]
            sentences.append(f"{len(of)} GEMMs compute in {kind} ({_names(of)})")
        reformats = [layer for layer in self.layers if layer.is_reformat]
        if reformats:
            sentences.append(f"{len(reformats)} layers only copy to a different layout or type")
        softmax = [layer for layer in self.layers if layer.is_softmax]
        if softmax:
            sentences.append(
                f"attention is not fused: {len(softmax)} layers compute a separate softmax"
            )
        opaque = [layer for layer in self.layers if layer.is_opaque]
        if opaque:
            sentences.append(
                f"{len(opaque)} layers are compiled as a whole, and the inspector does not show "
                "what is inside"
            )
        return tuple(sentences)


def read_inspection(text: str) -> Inspection:
    """Read the layers from an inspector's JSON; none if its form is unknown."""
    try:
        entries = list(json.loads(text)["Layers"])
    except (ValueError, KeyError, TypeError):
        return Inspection(())
    return _inspection(entry for entry in entries if isinstance(entry, dict | str))


def read_build_log(messages: Iterable[str]) -> Inspection:
    """Read the layers from the messages of TensorRT-RTX; none if no message lists them."""
    entries: list[Mapping[str, Any] | str] = []
    for message in messages:
        if message.startswith("Layers:"):
            # not splitlines, which also splits at separators inside metadata
            found = (_PRINTED.match(line) for line in message.split("\n")[1:])
            entries += [{**match.groupdict()} for match in found if match is not None]
    return _inspection(entries)


def _inspection(entries: Iterable[Mapping[str, Any] | str]) -> Inspection:
    layers = (_layer(entry) for entry in entries)
    return Inspection(tuple(layer for layer in layers if layer.kind not in _NO_KERNELS))


def _layer(entry: Mapping[str, Any] | str) -> Layer:
    if isinstance(entry, str):
        entry = {"Name": entry}
    name = str(entry.get("Name", ""))
    nodes = tuple(_ONNX_NODE.findall(str(entry.get("Metadata", ""))))
    constants = _ports(entry.get("Constants"))
    weights = entry.get("Weights")  # 8.6: without a shape, and only if they are a factor
    if isinstance(weights, dict) and weights.get("Count"):
        constants += (Port(_kind(str(weights.get("Type", ""))), (-1, -1)),)
    return Layer(
        name,
        str(entry.get("LayerType", "")),
        _ports(entry.get("Inputs")),
        constants,
        _ports(entry.get("Outputs")),
        str(entry.get("TacticName", "")),
        nodes or tuple(part.strip() for part in name.split(" + ")),
    )


def _ports(written: Any) -> tuple[Port, ...]:
    if isinstance(written, str):  # the form that the compiler prints
        return tuple(
            Port(_kind(kind), tuple(int(n) for n in json.loads(dims)))
            for dims, kind in _PRINTED_PORT.findall(written)
        )
    ports = [port for port in written or () if isinstance(port, dict)]
    return tuple(
        Port(
            _kind(str(port.get("Datatype") or port.get("Format/Datatype", ""))),
            tuple(n for n in port.get("Dimensions") or () if isinstance(n, int)),
        )
        for port in ports
    )


def _kind(written: str) -> str | None:
    text = written.lower()
    return next((name for pattern, name in _TYPES if pattern.search(text)), None)


def _size(port: Port) -> int:
    return sum(abs(size) for size in port.dims[-2:])


def _names(layers: Sequence[Layer]) -> str:
    shown = ", ".join((layer.nodes or (layer.name,))[0] for layer in layers[:_SHOWN])
    return shown + (", ..." if len(layers) > _SHOWN else "")
