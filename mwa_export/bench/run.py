"""Measure the speed of a bundle and its peers in one run, round by round."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mwa_export.bench.contenders import Kernel, quiet, reason_of
from mwa_export.bench.inputs import Pool, caption_pool, picture_pool
from mwa_export.bench.ours import NAMES, our_contenders
from mwa_export.bench.peers import PEERS, Peer, contender
from mwa_export.bench.plain import ReferenceTower
from mwa_export.bench.result import Bench, Section, Settings, Skipped, this_machine
from mwa_export.bench.section import (
    SEED,
    Opened,
    Workload,
    errors_of,
    measure_section,
    window_rows,
)
from mwa_export.bench.timing import FEWEST_ROUNDS
from mwa_export.bundle.bundle import Bundle
from mwa_export.cpu import check_threads, cores
from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.open import CheckpointOptions, model_like
from mwa_export.errors import UsageError, check_option
from mwa_export.files import scratch_folder
from mwa_export.memory import release
from mwa_export.optional import check_installed
from mwa_export.progress import Progress, Silent
from mwa_export.spec import TOWERS, Tower
from mwa_export.version import __version__

if TYPE_CHECKING:
    from mwa_export.model.load import Model
    from mwa_export.model.reference import ReferenceModel

OpenPeak = Callable[[int], Sequence[Kernel]]
"""Number of threads -> GEMMs to time in the same rounds; each has been warmed up."""


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Options of `run_bench`: what to measure, and on which runtimes."""

    towers: tuple[Tower, ...] = ("vision", "text")
    batches: tuple[int, ...] = (1, 8)
    rounds: int = 15
    runtimes: tuple[str, ...] = ()  # of our contenders; empty: all
    lengths: str | None = None  # "coco", a number of tokens, None: those of the data, else "coco"
    threads: int | None = None  # of every contender; None: the cores available to this process
    allow_slow: bool = False  # include our precisions that are slower than float32 on this CPU
    device: int = 0  # number of the GPU

    def __post_init__(self) -> None:
        if self.rounds < FEWEST_ROUNDS:
            raise UsageError(f"`rounds={self.rounds}`: expected at least {FEWEST_ROUNDS}.")
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"batch sizes {self.batches}: expected at least one, each at least 1.")
        for runtime in self.runtimes:
            check_option("runtime", runtime, runtime in NAMES, ", ".join(NAMES))
        fits = re.fullmatch(r"coco|\d{1,9}", self.lengths or "coco") is not None
        check_option("lengths", self.lengths, fits, "`coco`, or a number of tokens")
        check_threads("threads", self.threads)


def run_bench(
    bundle: Bundle,
    options: BenchOptions | None = None,
    *,
    model: Model | None = None,
    data: RetrievalData | None = None,
    peers: Sequence[Peer] = tuple(PEERS.values()),
    peak: OpenPeak | None = None,
    progress: Progress | None = None,
) -> Bench:
    """Time all contenders that run here; the others are listed with the reason.

    Args:
        bundle: an opened bundle with both towers.
        options: see BenchOptions.
        model: the checkpoint that the bundle was made from; peers need it.
        data: a test set; without it, inputs are random and cosines are left out.
        peers: what to compare the bundle with: some of PEERS, or others.
        peak: opens GEMMs to time in the same rounds; speed is also reported relative to them.
        progress: called for each step.

    Raises:
        UsageError: the bundle lacks a tower, or an option is invalid.
        MwaExportError: no contender can run.
    """
    bundle.require(*TOWERS, what="a benchmark")
    run = _Run(bundle, options or BenchOptions(), model, data, peers, progress or Silent())
    return run.bench(peak)


def reference_of(bundle: Bundle, path: Path, options: CheckpointOptions) -> Model:
    """Load the checkpoint that a bundle was made from.

    Options that are neither given nor stored in the file are taken from the bundle.

    Raises:
        UsageError: the bundle was made from a different checkpoint.
        CheckpointError, AdapterError: see their messages.
        MissingPackageError: torch or torchscale is not installed.
    """
    check_installed("torch", "torchscale")
    from mwa_export.model.space import space_id

    manifest = bundle.manifest
    model, _ = model_like(path, manifest.model, options, source=str(bundle.path))
    tokenizer = manifest.tokenizer and manifest.files[manifest.tokenizer].sha256
    found = space_id(model.config, model.tensors, manifest.preprocessing, tokenizer)
    if found != manifest.space_id:
        raise UsageError(
            f"{path}: embedding space {found[:16]} differs from {manifest.space_id[:16]} of "
            f"{bundle.path}. Pass the checkpoint that the bundle was exported from, with the same "
            "options."
        )
    return model


@dataclass
class _Run:
    """State of one benchmark run."""

    bundle: Bundle
    options: BenchOptions
    model: Model | None
    data: RetrievalData | None
    peers: Sequence[Peer]
    progress: Progress

    def __post_init__(self) -> None:
        options, self.threads = self.options, self.options.threads or cores()
        self.ours = our_contenders(
            self.bundle,
            options.runtimes,
            threads=self.threads,
            allow_slow=options.allow_slow,
            device=options.device,
        )

    def bench(self, peak: OpenPeak | None) -> Bench:
        sections: list[Section] = []
        packages = dict.fromkeys(name for peer in self.peers for name in peer.packages)
        machine = this_machine(self.threads, packages)  # first, so that we are not its load
        pools = {tower: self._pool(tower) for tower in self.options.towers}
        with _torch_threads(self.threads), scratch_folder() as folder:
            kernels: Sequence[Kernel] = ()
            if peak is not None:
                self.progress("open the GEMMs that measure the machine's peak")
                kernels = peak(self.threads)
            for tower, pool in pools.items():
                sections += self._tower(tower, pool, folder, kernels)
                gc.collect()
                release()
        manifest = self.bundle.manifest
        pictures, captions = pools.get("vision"), pools.get("text")
        return Bench(
            model=_describe(self.bundle),
            space_id=manifest.space_id,
            machine=machine,
            settings=Settings(
                rounds=self.options.rounds,
                seed=SEED,
                pictures="not measured" if pictures is None else pictures.words,
                captions="not measured" if captions is None else captions.words,
                max_length=manifest.model.backbone.max_text_length,
                real=all(pool.real for pool in pools.values()),
            ),
            sections=tuple(sections),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            version=__version__,
        )

    @cached_property
    def _reference(self) -> ReferenceModel:
        from mwa_export.model.reference import reference_from_tensors

        assert self.model is not None
        return reference_from_tensors(self.model.config, self.model.tensors)

    def _pool(self, tower: Tower) -> Pool:
        wanted = self.options.rounds * max(
            window_rows(tower, batch) for batch in self.options.batches
        )
        if tower == "vision":
            return picture_pool(self.bundle, self.data, wanted, SEED)
        return caption_pool(self.bundle, self.data, self.options.lengths, wanted, SEED)

    def _tower(
        self, tower: Tower, pool: Pool, folder: Path, kernels: Sequence[Kernel]
    ) -> list[Section]:
        """Open all contenders for one tower, then measure each batch size."""
        opened: list[Opened] = []
        skipped: list[Skipped] = []
        contenders = list(self.ours)
        if self.model is None:
            reason = "needs the checkpoint that this bundle was exported from"
            skipped += [Skipped(peer.name, "peer", reason) for peer in self.peers]
        else:
            own = folder / tower
            own.mkdir()
            start = ReferenceTower(lambda: self._reference, tower, pool, own, self.threads)
            contenders = [*(contender(peer, start) for peer in self.peers), *contenders]
        self.progress(f"open all contenders for the {tower} tower", len(contenders))
        for item in contenders:
            try:
                with quiet():
                    opened.append((item, item.open(tower)))
            except errors_of(item) as error:
                skipped.append(Skipped(item.name, item.kind, reason_of(error)))
            self.progress.advance(1)
            gc.collect()
            release()
        return [
            measure_section(
                Workload(self.bundle.manifest, tower, batch, pool),
                opened,
                skipped,
                kernels,
                rounds=self.options.rounds,
                progress=self.progress,
            )
            for batch in self.options.batches
        ]


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """Set PyTorch's threads, which are a setting of the process, and restore them."""
    try:
        import torch
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _describe(bundle: Bundle) -> str:
    config = bundle.manifest.model
    backbone = config.backbone
    text = (
        f"BEiT-3, width {backbone.embed_dim}, {backbone.layers} layers, "
        f"{backbone.image_size} x {backbone.image_size} pixels"
    )
    if config.adapter is not None:
        text += f", adapters of {config.adapter.bottleneck} in {config.adapter.mode}"
    return text + (", enhancer" if config.enhancer else "")
