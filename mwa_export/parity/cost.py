"""What each side costs: the size of its model, and the time that embedding with it takes."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from mwa_export.encoder.encoder import Encoder
from mwa_export.parity.result import Contender, Cost
from mwa_export.runtimes.backend import Backend, Probe
from mwa_export.spec import Embeddings, Tower


@dataclass(frozen=True, slots=True)
class Clock:
    """Rows that a backend embedded, and the time spent in it."""

    seconds: defaultdict[Tower, float] = field(default_factory=lambda: defaultdict(float))
    rows: Counter[Tower] = field(default_factory=Counter)

    def time(self, encoder: Encoder) -> Encoder:
        """The same encoder; each call of its backend is timed."""
        return replace(encoder, backend=_Timed(encoder.backend, self))

    def cost(self, side: Contender, encoder: Encoder) -> Cost:
        """What the encoder that was timed costs."""
        ms: dict[Tower, float] = {
            tower: 1000 * self.seconds[tower] / rows for tower, rows in self.rows.items()
        }
        return Cost(side, encoder.model_bytes, ms.get("vision"), ms.get("text"))


@dataclass(frozen=True, slots=True)
class _Timed:
    """A backend whose calls are timed."""

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
        self.clock.seconds[tower] += time.perf_counter() - start
        self.clock.rows[tower] += len(found)
        return found
