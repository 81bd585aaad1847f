"""The peers: other ways to run the checkpoint on this machine, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from mwa_export.bench.contenders import Contender, Run
from mwa_export.bench.plain import (
    ReferenceTower,
    on_onnxruntime,
    on_openvino,
    on_pytorch,
)
from mwa_export.errors import OptionsError, UsageError


@dataclass(frozen=True, slots=True)
class Peer:
    """Another way to run a checkpoint."""

    name: str  # in the report
    runtime: str
    precision: str  # of its large GEMMs
    open: Callable[[ReferenceTower], Run]  # may take minutes, and may fail in any way
    packages: tuple[str, ...] = ()  # packages whose versions the report lists


def _openvino(start: ReferenceTower, hint: str) -> Run:
    return on_openvino(start, str(start.path), {"INFERENCE_PRECISION_HINT": hint})


_autocast, _compiled = partial(on_pytorch, autocast=True), partial(on_pytorch, compiled=True)
_f32, _bf16 = partial(_openvino, hint="f32"), partial(_openvino, hint="bf16")
PEERS: dict[str, Peer] = {
    "eager": Peer("PyTorch eager float32", "torch", "float32", on_pytorch),
    "eager-bf16": Peer("PyTorch eager bfloat16", "torch", "bfloat16", _autocast),
    "compile": Peer("torch.compile float32", "torch", "float32", _compiled),
    "onnx": Peer("plain ONNX, ORT float32", "onnxruntime", "float32", on_onnxruntime),
    "openvino": Peer("plain ONNX, OpenVINO float32", "openvino", "float32", _f32),
    "openvino-bf16": Peer("plain ONNX, OpenVINO bfloat16", "openvino", "bfloat16", _bf16),
}
"""Peers by their name on the command line."""


def chosen_peers(names: Iterable[str], known: Mapping[str, Peer] = PEERS) -> tuple[Peer, ...]:
    """Return the peers for ``all``, ``none``, or names of ``known``, in the order of ``known``.

    Raises:
        UsageError: a name is unknown, or ``none`` is combined with other names.
    """
    asked = set(names)
    if unknown := asked - {*known, "all", "none"}:
        raise OptionsError("peers", min(unknown), f"all, none, or some of: {', '.join(known)}")
    if "none" in asked and len(asked) > 1:
        raise UsageError("`peers=none` cannot be combined with other peers. Omit one of them.")
    return tuple(peer for name, peer in known.items() if "all" in asked or name in asked)


def contender(peer: Peer, start: ReferenceTower) -> Contender:
    """Make a contender of a peer and one tower of the reference."""
    return Contender(
        peer.name, "peer", peer.runtime, peer.precision, lambda _tower: peer.open(start)
    )
