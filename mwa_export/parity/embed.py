"""Embed a test set with either side of a comparison, from the cache where that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.batches import embed_token_ids
from mwa_export.encoder.cache import Cache
from mwa_export.encoder.encoder import Encoder
from mwa_export.progress import Progress
from mwa_export.spec import Embeddings


@dataclass(frozen=True, slots=True)
class Embedder:
    """Embeds a test set with either side; what the reference computes may come from the cache."""

    reference: Encoder
    cache: Cache | None
    progress: Progress

    def pictures(self, encoder: Encoder, data: RetrievalData) -> tuple[Embeddings, dict[int, str]]:
        """Embed all pictures.

        Returns (n_image, D) and the reason for each row that could not be read; those are NaN.
        """
        self.progress(f"embed the pictures: {encoder.info.name}", len(data.pictures))
        if self.cache is not None and encoder.backend is self.reference.backend:
            return self.cache.pictures(encoder, data.pictures, self.progress)
        return encoder.embed_pictures(data.pictures, on_rows=self.progress.advance)

    def texts(
        self,
        encoder: Encoder,
        data: RetrievalData,
        *,
        sequences: Sequence[Sequence[int]] | None = None,
    ) -> Embeddings:
        """Embed all captions, or the token ids that another tokenizer made of them. (n_text, D)."""
        if sequences is None:
            sequences = encoder.encode(data.captions)
        self.progress(f"embed the captions: {encoder.info.name}", len(sequences))
        if self.cache is not None and encoder.backend is self.reference.backend:
            return self.cache.texts(encoder.backend, sequences, self.progress)
        return embed_token_ids(encoder.backend, sequences, on_rows=self.progress.advance)
