"""Compare several runtimes and precisions of a bundle with one reference, in one run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mwa_export.bundle.bundle import Bundle
from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.encoder import Encoder
from mwa_export.encoder.open import open_bundle
from mwa_export.errors import RuntimeUnavailableError, UsageError
from mwa_export.parity.measure import CompareOptions
from mwa_export.parity.run import Finished, RunOptions, compare_sides, open_reference
from mwa_export.progress import Progress, Silent
from mwa_export.runtimes.choose import choose
from mwa_export.runtimes.machine import this_machine
from mwa_export.runtimes.options import PRECISIONS, RuntimeOptions


def every_candidate(bundle: Bundle, options: RuntimeOptions) -> list[RuntimeOptions]:
    """Return all runtimes and precisions that the bundle contains and this machine can run.

    All other settings are taken from ``options``.
    """
    pairs = [(runtime, kind) for runtime, kinds in PRECISIONS.items() for kind in kinds]
    asked = [
        replace(options, runtime=runtime, precision=precision)
        for runtime, precision in pairs
        if runtime != "torch"
    ]
    return [candidate for candidate in asked if _obstacle(bundle, candidate) is None]


def compare_candidates(
    reference: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    data: RetrievalData,
    candidates: Sequence[RuntimeOptions],
    *,
    run: RunOptions | None = None,
    options: CompareOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Finished]:
    """Compare a bundle on several runtimes, or in several precisions, with one reference.

    The test set is embedded with the reference only once. Without a cache, these embeddings are
    kept in a temporary folder until the end.

    Args:
        reference: a checkpoint, or a bundle.
        bundle: the bundle to check.
        data: the test set.
        candidates: runtimes and precisions; empty: all that the bundle contains and this machine
            can run.
        run, options, progress: see `compare_models`. Of ``run.runtime``, only the threads are used
            if ``candidates`` are given.

    Returns:
        A result for each candidate, by its name such as "openvino-int8".

    Raises:
        UsageError: ``run`` has options that apply to a single candidate only.
        RuntimeUnavailableError: a given candidate cannot run on this machine.
    """
    run, progress = run or RunOptions(), progress or Silent()
    if run.graphs or run.layers:
        given = "graphs" if run.graphs else "layers"
        raise UsageError(f"`{given}` cannot be used with several candidates. Omit it.")
    progress("open the bundle")
    opened = Bundle.open(bundle)
    chosen = list(candidates) or every_candidate(opened, run.runtime)
    for asked in candidates:  # fail now, not after hours of embedding
        if error := _obstacle(opened, asked):
            raise error
    found: dict[str, Finished] = {}
    decides: Encoder | None = None
    with TemporaryDirectory() as folder:
        for named in chosen:
            name = f"{named.runtime}-{named.precision}"
            progress(f"open the bundle: {name}")
            candidate = open_bundle(opened, runtime=named, lent_tokenizer=run.tokenizer)
            if decides is None:
                progress("open the reference")
                decides = open_reference(Path(reference), candidate, run)
            how = replace(run, runtime=named, cache=run.cache or Path(folder))
            found[name] = compare_sides(
                decides, candidate, data, run=how, options=options, progress=progress
            )
    return found


def _obstacle(bundle: Bundle, options: RuntimeOptions) -> RuntimeUnavailableError | None:
    """Why this machine cannot run a runtime and precision; None if it can."""
    try:
        choose(bundle.manifest, options, this_machine(bundle.manifest, options))
    except RuntimeUnavailableError as error:
        return error
    return None
