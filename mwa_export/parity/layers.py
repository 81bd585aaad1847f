"""Signal-to-noise ratio of the residual stream after every block, to find the faulty layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.batches import batches_by_length
from mwa_export.encoder.encoder import Encoder
from mwa_export.errors import ImageError, UsageError
from mwa_export.inputs.tokenizer import pad
from mwa_export.parity.result import LayerSnr
from mwa_export.progress import Progress, Silent
from mwa_export.runtimes.backend import Probe
from mwa_export.spec import TOWERS, ModelConfig, Tower

SAMPLES = 64  # images, and as many captions
_BATCH = 8

Inputs = tuple[NDArray[Any], ...]
Floats = NDArray[np.float32]


def layer_drift(
    reference: Encoder,
    candidate: Encoder,
    data: RetrievalData,
    *,
    progress: Progress | None = None,
) -> tuple[LayerSnr, ...]:
    """Compare both sides block by block on the candidate's inputs.

    SNR in dB is 10 log10(energy of the reference / energy of the difference). Energies are sums
    over the tokens that both sides compute, without padding, of up to 64 images and 64 captions.

    Raises:
        UsageError: the sides have different blocks.
        BundleError: a graph was not made by this package.
        ImageError: an image can no longer be read.
    """
    check_layers(reference, candidate)
    progress = progress or Silent()
    rng = np.random.default_rng(0)
    images = np.sort(rng.permutation(len(data.pictures))[:SAMPLES])
    texts = np.sort(rng.permutation(len(data.captions))[:SAMPLES])
    progress("compare layer by layer", len(images) + len(texts))
    batches = {
        "vision": _picture_batches(candidate, data, images),
        "text": _text_batches(candidate, data, texts),
    }
    found: list[LayerSnr] = []
    for tower in TOWERS:
        probes = _probe(reference, tower), _probe(candidate, tower)
        found += _compare(tower, probes, batches[tower], layer_names(candidate.config), progress)
    return tuple(found)


def layer_names(config: ModelConfig) -> list[str]:
    """Names of a probe's arrays, in order: "block 0" and so on, then "embedding"."""
    return [*(f"block {index}" for index in range(config.backbone.layers)), "embedding"]


def check_layers(reference: Encoder, candidate: Encoder) -> None:
    """Raise UsageError or BundleError if the blocks of the two sides cannot be compared."""
    ours, theirs = _shape(reference), _shape(candidate)
    if ours != theirs:
        raise UsageError(
            f"{reference.info.source} has {ours}; {candidate.info.source} has {theirs}. Layers can "
            "only be compared if these are equal. Omit `layers`."
        )
    for side in (reference, candidate):
        for tower in TOWERS:
            _probe(side, tower)


def _shape(side: Encoder) -> str:
    """Describe what must be equal for the blocks of two sides to be comparable."""
    b = side.config.backbone
    return (
        f"{b.layers} blocks of width {b.embed_dim}, {b.image_size} pixels, "
        f"{b.vocab_size} token ids, texts of up to {b.max_text_length} tokens"
    )


def _compare(
    tower: Tower,
    probes: tuple[Probe, Probe],
    batches: Iterator[Inputs],
    names: Sequence[str],
    progress: Progress,
) -> list[LayerSnr]:
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    for inputs in batches:
        mask = inputs[1] if tower == "text" else None
        for layer, (one, other) in enumerate(zip(*(p(inputs) for p in probes), strict=True)):
            one, other = _common_tokens(one, other, mask)
            signal[layer] += np.square(one, dtype=np.float64).sum()
            noise[layer] += np.square(one - other, dtype=np.float64).sum()
        progress.advance(len(inputs[0]))
    return [
        LayerSnr(tower, name, None if noise[i] == 0 else 10 * log10(signal[i] / noise[i]))
        for i, name in enumerate(names)
    ]


def _common_tokens(
    one: Floats, other: Floats, mask: NDArray[np.int64] | None
) -> tuple[Floats, Floats]:
    """Select tokens that both sides compute: all but padding, or token 0 if a side has no other."""
    if one.ndim == 2:  # embeddings
        return one, other
    if one.shape[1] != other.shape[1]:  # the last block of a merged graph computes one token
        return one[:, :1], other[:, :1]
    if mask is None or one.shape[1] == 1:
        return one, other
    return one[mask == 0], other[mask == 0]


def _probe(side: Encoder, tower: Tower) -> Probe:
    found = side.backend.probe(tower)
    if found is None:
        runtime = side.info.runtime.partition(" ")[0]
        raise UsageError(
            f"{side.info.name}: {runtime} fuses blocks and cannot return their outputs. Compare "
            "layers with `runtime=onnxruntime`, or omit `layers`."
        )
    return found


def _picture_batches(
    side: Encoder, data: RetrievalData, rows: NDArray[np.int64]
) -> Iterator[Inputs]:
    for start in range(0, len(rows), _BATCH):
        pixels = []
        for row in rows[start : start + _BATCH]:
            picture = data.pictures[row]
            try:
                pixels.append(side.pixels(picture, str(picture)))
            except ImageError as error:  # it could be read earlier in this run
                raise ImageError(f"{error} It changed during the run. Run again.") from error
        yield (np.stack(pixels),)


def _text_batches(side: Encoder, data: RetrievalData, rows: NDArray[np.int64]) -> Iterator[Inputs]:
    sequences = side.encode([data.captions[row] for row in rows])
    for batch in batches_by_length(sequences, _BATCH):
        yield pad([sequences[row] for row in batch])
