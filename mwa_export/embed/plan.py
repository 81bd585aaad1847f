"""Plan a job from a bundle, sources and options: scan the sources and choose the runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mwa_export.bundle.bundle import Bundle
from mwa_export.data.rows import Scan, Source
from mwa_export.errors import DataError, UsageError, check_option
from mwa_export.inputs.content import Kind
from mwa_export.optional import versions_of
from mwa_export.runtimes.choose import Choice, choose
from mwa_export.runtimes.machine import this_machine
from mwa_export.runtimes.options import AUTO, RuntimeOptions
from mwa_export.spec import Tower
from mwa_export.vectors.columns import column_types
from mwa_export.vectors.job import (
    BATCH_ROWS,
    FOLDERS,
    RESERVED,
    SHARD_ROWS,
    EmbedOptions,
    Format,
    Input,
    Job,
    Shard,
    shards,
)
from mwa_export.version import __version__

_SAMPLE = 1000  # rows from which types of carried columns are detected
_PACKAGES = ("numpy", "pillow", "sentencepiece")  # their versions may change the output
_FORMAT_PACKAGES: dict[Format, tuple[str, ...]] = {"parquet": ("pyarrow",), "npy": ()}
_RUNTIME_PACKAGES = {
    "onnxruntime": ("onnxruntime",),
    "cuda": ("onnxruntime-gpu",),
    "openvino": ("openvino",),
    "torch": ("torch", "torchscale"),
    "tensorrt": ("tensorrt",),
}
_TOWER: dict[Kind, Tower] = {"image": "vision", "text": "text"}


@dataclass(frozen=True, slots=True)
class Slice:
    """One machine's share of the shards: every ``of``-th, starting with ``index``."""

    index: int  # from 1
    of: int

    def __post_init__(self) -> None:
        check_option("shard", f"{self.index}/{self.of}", self.of >= 1, "I/N with N at least 1")
        given, expected = f"{self.index}/{self.of}", f"1/{self.of} to {self.of}/{self.of}"
        check_option("shard", given, 1 <= self.index <= self.of, expected)

    @property
    def name(self) -> str:
        return f"{self.index}-of-{self.of}"

    def takes(self, shard: Shard) -> bool:
        """Whether a shard belongs to this machine."""
        return shard.number % self.of == self.index - 1


@dataclass(frozen=True, slots=True)
class Plan:
    """A job with its bundle, runtime and scanned sources."""

    job: Job
    bundle: Bundle
    choice: Choice
    sources: tuple[Source, ...]  # in the order of Job.inputs
    scans: tuple[Scan, ...]  # one per source

    def shards(self, part: Slice | None = None) -> Iterator[Shard]:
        """Yield all shards, or those of one machine, images before texts."""
        for entry, scan in zip(self.job.inputs, self.scans, strict=True):
            found = shards(entry, scan.duplicates)
            yield from (s for s in found if part is None or part.takes(s))

    def source(self, shard: Shard) -> Source:
        """Return the source of a shard's rows."""
        return next(source for source in self.sources if source.kind == shard.kind)


def check_sources(bundle: Bundle, sources: Sequence[Source]) -> None:
    """Check that the bundle can embed the sources, before anything is written.

    Raises:
        UsageError: no source, two of one kind, or a kind for which the bundle has no tower.
        BundleError: the bundle has no tokenizer, which texts require.
    """
    kinds = [source.kind for source in sources]
    if not kinds or len(set(kinds)) != len(kinds):
        raise UsageError("nothing to embed. Pass `images=SOURCE`, `texts=SOURCE`, or both.")
    for kind in kinds:
        bundle.require(_TOWER[kind], what=f"embedding {kind}s")
    if "text" in kinds:
        bundle.tokenizer()


def check_runtime(bundle: Bundle, options: RuntimeOptions) -> None:
    """Check that this machine has the requested runtime, before anything is written.

    Raises:
        RuntimeUnavailableError: the runtime is not installed or cannot run the bundle.
    """
    if options.runtime != AUTO:
        choose(bundle.manifest, options, this_machine(bundle.manifest, options))


def plan(
    bundle: Bundle,
    sources: Sequence[Source],
    work: Path,
    *,
    options: EmbedOptions | None = None,
    runtime: RuntimeOptions | None = None,
) -> Plan:
    """Scan the sources, at most one per kind, and settle everything that determines the output.

    ``work``: an existing folder, in which sources may keep an index.

    Raises:
        UsageError: no source, two of one kind, a column with a reserved name, or a kind for which
            the bundle has no tower.
        DataError: a source is missing, empty or malformed.
        BundleError: the bundle has no tokenizer, which texts require.
        RuntimeUnavailableError: the runtime is not installed or cannot run the bundle.
    """
    options = options or EmbedOptions()
    check_sources(bundle, sources)
    kinds = [source.kind for source in sources]
    asked = runtime or RuntimeOptions()
    choice = choose(bundle.manifest, asked, this_machine(bundle.manifest, asked))
    ordered = sorted(sources, key=lambda source: list(FOLDERS).index(source.kind))
    scanned = [_scanned(source, work, options, choice) for source in ordered]
    inputs, scans = zip(*scanned, strict=True)
    job = Job(
        bundle=str(bundle.path.resolve()),
        space_id=bundle.manifest.space_id,
        files=_files_used(bundle, choice, kinds),
        runtime=choice.runtime,
        precision=choice.precision,
        width=bundle.manifest.model.backbone.embed_dim,
        dtype=options.dtype,
        format=options.format,
        inputs=inputs,
        versions={
            "mwa-export": __version__,
            **versions_of(
                *sorted([*_PACKAGES, *_FORMAT_PACKAGES[options.format]]),
                *_RUNTIME_PACKAGES[choice.runtime],
            ),
        },
    )
    return Plan(job, bundle, choice, tuple(ordered), scans)


def _scanned(
    source: Source, work: Path, options: EmbedOptions, choice: Choice
) -> tuple[Input, Scan]:
    for name in source.columns:
        if name in RESERVED:
            raise UsageError(
                f"`columns={name}`: this name is reserved for the output ({', '.join(RESERVED)}). "
                "Rename the column in the source."
            )
    scan = source.scan(work)
    if scan.rows == 0:
        raise DataError(f"{source.name}: expected at least one {source.kind}, found no rows.")
    taken = scan.rows if options.limit is None else min(scan.rows, options.limit)
    sample = []
    if source.columns:
        rows = islice(source.rows(0, min(_SAMPLE, taken)), _SAMPLE)
        sample = [row.columns for row in rows if row.columns]
    entry = Input(
        source.kind,
        source.name,
        scan.fingerprint,
        scan.rows,
        taken,
        options.shard_size or SHARD_ROWS[source.kind],
        options.batch or _batch_rows(source.kind, choice),
        column_types(source.columns, sample, options.format),
    )
    return entry, scan


def _batch_rows(kind: Kind, choice: Choice) -> int:
    """Return the default batch size; with engines two runs, so that their copies overlap."""
    largest = [
        profile[0].max[0]
        for engine in choice.engines
        if engine.tower == _TOWER[kind]
        for profile in engine.profiles
    ]
    return max(BATCH_ROWS[kind], 2 * max(largest, default=0))


def _files_used(bundle: Bundle, choice: Choice, kinds: Sequence[Kind]) -> dict[str, str]:
    """Return the bundle files that determine the vectors, with their sha256."""
    manifest, used = bundle.manifest, []
    for kind in kinds:
        tower = _TOWER[kind]
        engines = [engine.file for engine in choice.engines if engine.tower == tower]
        if engines:
            used += engines
            continue
        graphs = [graph for graph in manifest.graphs if graph.spec.tower == tower]
        fitting = [g for g in graphs if g.precision == choice.precision] or [
            g for g in graphs if g.precision == "float32"
        ]
        own = [g for g in fitting if g.dialect == choice.runtime] or fitting
        used.append(own[0].file)
    if "text" in kinds and manifest.tokenizer is not None:
        used.append(manifest.tokenizer)
    return {
        name: entry.sha256
        for name, entry in sorted(manifest.files.items())
        if any(name == file or name.startswith(file + ".") for file in used)
    }
