"""Cost of each side: the size of its model and the time per embedding."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from numpy.typing import NDArray

from mwa_export.encoder.encoder import Encoder
from mwa_export.parity.result import Contender, Cost
from mwa_export.runtimes.backend import Backend, Probe
from mwa_export.spec import TOWERS, Embeddings, Tower


@dataclass(frozen=True, slots=True)
class Clock:
    """Milliseconds per row of every call of a backend."""

    calls: dict[Tower, list[float]] = field(default_factory=lambda: {t: [] for t in TOWERS})

    def time(self, encoder: Encoder) -> Encoder:
        """Return the encoder with every call of its backend timed."""
        return replace(encoder, backend=_Timed(encoder.backend, self))

    def cost(self, side: Contender, encoder: Encoder) -> Cost:
        """Size and median time of the encoder; a median is robust against a busy machine."""
        vision, text = (median(calls) if calls else None for calls in map(self.calls.get, TOWERS))
        return Cost(side, encoder.model_bytes, vision, text)


@dataclass(frozen=True, slots=True)
class _Timed:
    """Wraps a backend and times its calls."""

    backend: Backend
    clock: Clock

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def image_size(self) -> int:
        return self.backend.image_size

    def embed_images(self, pixels: NDArray[Any]) -> Embeddings:
        return self._timed("vision", self.backend.embed_images, pixels)

    def embed_texts(self, token_ids: NDArray[Any], padding_mask: NDArray[Any]) -> Embeddings:
        return self._timed("text", self.backend.embed_texts, token_ids, padding_mask)

    def probe(self, tower: Tower) -> Probe | None:
        return self.backend.probe(tower)

    def _timed(self, tower: Tower, call: Callable[..., Embeddings], *inputs: Any) -> Embeddings:
        start = time.perf_counter()
        found = call(*inputs)
        self.clock.calls[tower].append(1000 * (time.perf_counter() - start) / len(found))
        return found
