"""The peers by name: what else could run the same checkpoint on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mwa_export.bench.contenders import Contender, Run, quiet
from mwa_export.bench.inputs import Pool
from mwa_export.errors import UsageError
from mwa_export.spec import Tower

if TYPE_CHECKING:
    from mwa_export.bench_peer_graphs import PlainGraph
    from mwa_export.model.load import Model
    from mwa_export.model.reference import ReferenceModel


@dataclass(frozen=True, slots=True)
class PeerKind:
    """What the report calls a peer, and where its factory is."""

    name: str
    runtime: str
    precision: str
    factory: str  # a function of bench_peer_torch ("torch" runtime) or bench_peer_graphs


PEERS: dict[str, PeerKind] = {
    "eager": PeerKind("PyTorch eager float32", "torch", "float32", "eager"),
    "eager-bf16": PeerKind("PyTorch eager bfloat16", "torch", "bfloat16", "eager_bfloat16"),
    "compile": PeerKind("torch.compile float32", "torch", "float32", "compiled"),
    "onnx": PeerKind("plain ONNX, ORT float32", "onnxruntime", "float32", "onnxruntime_float32"),
    "ort-dynamic": PeerKind("ORT quantize_dynamic", "onnxruntime", "int8", "onnxruntime_dynamic"),
    "ort-static-uint8": PeerKind(
        "ORT quantize_static uint8", "onnxruntime", "int8", "onnxruntime_static_uint8"
    ),
    "ort-static-int8": PeerKind(
        "ORT quantize_static int8", "onnxruntime", "int8", "onnxruntime_static_int8"
    ),
    "optimum": PeerKind("Optimum ORTQuantizer", "onnxruntime", "int8", "optimum_static"),
    "openvino": PeerKind("plain ONNX, OpenVINO float32", "openvino", "float32", "openvino_float32"),
    "openvino-bf16": PeerKind(
        "plain ONNX, OpenVINO bfloat16", "openvino", "bfloat16", "openvino_bfloat16"
    ),
    "nncf": PeerKind("NNCF int8 on OpenVINO", "openvino", "int8", "nncf_int8"),
}
"""Name of a peer -> what it is."""


def chosen_peers(names: Sequence[str]) -> list[str]:
    """``all``, ``none``, or names of PEERS, in the order of PEERS.

    Raises:
        UsageError: a name of no peer.
    """
    for name in names:
        if name not in (*PEERS, "all", "none"):
            raise UsageError(
                f"no peer is called {name!r}. Expected all, none, or some of: {', '.join(PEERS)}."
            )
    if "none" in names and len(names) > 1:
        raise UsageError("`peers=none` was given together with others. Expected one of both.")
    return [name for name in PEERS if "all" in names or name in names]


class Peers:
    """Opens the peers of one model; what they share is made once."""

    def __init__(self, model: Model, folder: Path, threads: int) -> None:
        self._model = model
        self._folder = folder
        self._threads = threads

    @cached_property
    def _reference(self) -> ReferenceModel:
        from mwa_export.model.reference import reference_from_tensors

        return reference_from_tensors(self._model.config, self._model.tensors)

    def contenders(self, names: Sequence[str], tower: Tower, pool: Pool) -> list[Contender]:
        """The named peers for one tower, with the rows that their quantizers calibrate with."""
        plain: list[PlainGraph] = []  # made by the first who asks, with its heavy imports

        def graph() -> PlainGraph:
            from mwa_export.bench_peer_graphs import PlainGraph

            if not plain:
                folder = self._folder / tower
                folder.mkdir()
                plain.append(PlainGraph(self._reference, tower, pool, folder, self._threads))
            return plain[0]

        return [self._contender(PEERS[name], graph) for name in names]

    def _contender(self, peer: PeerKind, graph: Callable[[], PlainGraph]) -> Contender:
        def open_(tower: Tower) -> Run:
            with quiet():
                if peer.runtime == "torch":
                    from mwa_export.bench import pytorch

                    torch_factory = getattr(pytorch, peer.factory)
                    run: Run = torch_factory(self._reference, tower)
                else:
                    from mwa_export import bench_peer_graphs

                    run = getattr(bench_peer_graphs, peer.factory)(graph())
                return run

        return Contender(peer.name, "peer", peer.runtime, peer.precision, open_)
