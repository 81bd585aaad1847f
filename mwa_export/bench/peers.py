"""The peers by name: what else could run the same checkpoint on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from mwa_export.bench.contenders import Contender, Run
from mwa_export.bench.plain import (
    ReferenceTower,
    plain_onnxruntime,
    plain_openvino,
    plain_openvino_bfloat16,
)
from mwa_export.bench.pytorch import compiled, eager, eager_bfloat16
from mwa_export.errors import UsageError
from mwa_export.spec import Tower


@dataclass(frozen=True, slots=True)
class Peer:
    """Another way to run a checkpoint."""

    name: str  # in the report
    runtime: str
    precision: str  # of its large GEMMs
    open: Callable[[ReferenceTower], Run]  # may take minutes, and may fail in any way
    packages: tuple[str, ...] = ()  # whose versions the report should name


PEERS: dict[str, Peer] = {
    "eager": Peer("PyTorch eager float32", "torch", "float32", eager),
    "eager-bf16": Peer("PyTorch eager bfloat16", "torch", "bfloat16", eager_bfloat16),
    "compile": Peer("torch.compile float32", "torch", "float32", compiled),
    "onnx": Peer("plain ONNX, ORT float32", "onnxruntime", "float32", plain_onnxruntime),
    "openvino": Peer("plain ONNX, OpenVINO float32", "openvino", "float32", plain_openvino),
    "openvino-bf16": Peer(
        "plain ONNX, OpenVINO bfloat16", "openvino", "bfloat16", plain_openvino_bfloat16
    ),
}
"""Name on the command line -> what it is."""


def chosen_peers(names: Iterable[str], known: Mapping[str, Peer] = PEERS) -> tuple[Peer, ...]:
    """The peers for ``all``, ``none``, or names of ``known``, in the order of ``known``.

    Raises:
        UsageError: a name that no peer has.
    """
    asked = set(names)
    if unknown := asked - {*known, "all", "none"}:
        raise UsageError(
            f"no peer is called {min(unknown)!r}. Expected all, none, or some of: "
            f"{', '.join(known)}."
        )
    if "none" in asked and len(asked) > 1:
        raise UsageError("`peers=none` was given together with others. Expected one of both.")
    return tuple(peer for name, peer in known.items() if "all" in asked or name in asked)


def contender(peer: Peer, start: ReferenceTower) -> Contender:
    """A peer that is ready to be opened for one tower."""

    def open_(_tower: Tower) -> Run:
        return peer.open(start)

    return Contender(peer.name, "peer", peer.runtime, peer.precision, open_)
