"""Embed a test set with either side of a comparison, from the cache where that is possible."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.batches import embed_pictures, embed_token_ids
from mwa_export.encoder.cache import Cache
from mwa_export.encoder.encoder import Side
from mwa_export.progress import Progress
from mwa_export.runtimes.backend import Backend
from mwa_export.spec import Embeddings


@dataclass(frozen=True, slots=True)
class Embedder:
    """Embeds a test set with either side; what the reference computes may come from the cache."""

    reference: Side
    cache: Cache | None
    progress: Progress

    def pictures(
        self,
        side: Side,
        data: RetrievalData,
        *,
        backend: Backend | None = None,
        prepared_by: Side | None = None,
    ) -> tuple[Embeddings, dict[int, str]]:
        """All pictures, by default with the side's own backend and preprocessing.

        Returns (n_image, D) and the reason for each row that could not be read; those are NaN.
        """
        backend, maker = backend or side.backend, prepared_by or side
        self.progress(f"embed the pictures: {_label(side, backend)}", len(data.pictures))
        if self.cache is not None and backend is self.reference.backend:
            return self.cache.pictures(
                backend, data.pictures, maker.prepare, maker.image, self.progress
            )
        return embed_pictures(
            backend, data.pictures, prepare=maker.prepare, on_rows=self.progress.advance
        )

    def texts(
        self,
        side: Side,
        data: RetrievalData,
        *,
        backend: Backend | None = None,
        encoded_by: Side | None = None,
    ) -> Embeddings:
        """All captions, by default with the side's own backend and tokenizer. (n_text, D)."""
        backend = backend or side.backend
        sequences = (encoded_by or side).encode(data.captions)
        self.progress(f"embed the captions: {_label(side, backend)}", len(sequences))
        if self.cache is not None and backend is self.reference.backend:
            return self.cache.texts(backend, sequences, self.progress)
        return embed_token_ids(backend, sequences, on_rows=self.progress.advance)


def _label(side: Side, backend: Backend) -> str:
    if backend is not side.float32:
        return side.info.name
    return f"{Path(side.info.source).resolve().name} on {side.info.runtime}, float32"
