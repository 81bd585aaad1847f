"""Drift by stage: tokenizer, preprocessing, graph and precision, each changed alone.

Four steps lead from the reference to the candidate. Each step changes one stage and keeps the rest,
so a change of embeddings or recall in that step is caused by that stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import PIL

from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.batches import embed_token_ids
from mwa_export.encoder.cache import Cache
from mwa_export.encoder.encoder import Encoder
from mwa_export.errors import ImageError
from mwa_export.metrics.agreement import cosine_distances
from mwa_export.metrics.recall import Pairs, rank_both
from mwa_export.parity.cost import Clock
from mwa_export.parity.result import Cost, Stage, Vectors
from mwa_export.progress import Progress
from mwa_export.spec import Embeddings


@dataclass(frozen=True, slots=True)
class Embedder:
    """Embeds a test set with either side and measures the time.

    Embeddings of the reference may come from the cache.
    """

    reference: Encoder
    cache: Cache | None
    progress: Progress
    clocks: dict[int, Clock] = field(default_factory=dict)  # by the id of a backend

    def pictures(self, encoder: Encoder, data: RetrievalData) -> tuple[Embeddings, dict[int, str]]:
        """Embed all images.

        Returns (n_image, D) float32, and the reason for each row that could not be read. The
        vectors of those rows are NaN.
        """
        self.progress(f"embed the images: {encoder.info.name}", len(data.pictures))
        timed = self._clock(encoder).time(encoder)
        if self.cache is not None and encoder.backend is self.reference.backend:
            return self.cache.pictures(timed, data.pictures, self.progress)
        return timed.embed_pictures(data.pictures, on_rows=self.progress.advance)

    def texts(
        self,
        encoder: Encoder,
        data: RetrievalData,
        *,
        sequences: Sequence[Sequence[int]] | None = None,
    ) -> Embeddings:
        """Embed all captions, or given token ids of them. Returns (n_text, D) float32."""
        if sequences is None:
            sequences = encoder.encode(data.captions)
        self.progress(f"embed the captions: {encoder.info.name}", len(sequences))
        timed = self._clock(encoder).time(encoder)
        if self.cache is not None and encoder.backend is self.reference.backend:
            return self.cache.texts(timed.backend, sequences, self.progress)
        return embed_token_ids(timed.backend, sequences, on_rows=self.progress.advance)

    def costs(self, reference: Encoder, candidate: Encoder) -> tuple[Cost, ...]:
        """Size and time of both sides, and of the candidate in float32 if it runs in less."""
        exact = candidate.float32
        return (
            self._clock(reference).cost("reference", reference),
            *(() if exact is None else (self._clock(exact).cost("float32", exact),)),
            self._clock(candidate).cost("candidate", candidate),
        )

    def _clock(self, encoder: Encoder) -> Clock:
        return self.clocks.setdefault(id(encoder.backend), Clock())


class Drift(NamedTuple):
    """The stages, and the candidate's embeddings in float32."""

    stages: tuple[Stage, ...]
    exact: Vectors | None  # None: the candidate itself runs in float32


def drift_by_stage(
    reference: Encoder,
    candidate: Encoder,
    data: RetrievalData,
    first: Vectors,
    last: Vectors,
    embed: Embedder,
) -> Drift:
    """Measure the four stages. Only what a stage changes is embedded again.

    Args:
        first: embeddings of the reference.
        last: embeddings of the candidate.

    Raises:
        ImageError: an image can no longer be read.
    """
    walk = _Walk(reference, candidate, data, embed, first)
    walk.change_tokenizer()
    walk.change_preprocessing()
    graphs = f"{reference.info.runtime} against {candidate.info.runtime}, same inputs, float32"
    if candidate.float32 is None:
        walk.to("graph", graphs, last)
        walk.stay("precision", "same", f"{candidate.info.source} runs in float32")
        return Drift(tuple(walk.stages), None)
    exact = Vectors(walk.pictures(candidate.float32), embed.texts(candidate.float32, data))
    walk.to("graph", graphs, exact)
    precisions = f"float32 against {candidate.info.precision}, both on {candidate.info.runtime}"
    walk.to("precision", precisions, last)
    return Drift(tuple(walk.stages), exact)


@dataclass
class _Walk:
    """State on the way from the reference to the candidate, and the stages so far."""

    reference: Encoder
    candidate: Encoder
    data: RetrievalData
    embed: Embedder
    here: Vectors
    recall: tuple[float, float] | None = None  # TR@1 and IR@1 here, once they are known
    stages: list[Stage] = field(default_factory=list)

    def change_tokenizer(self) -> None:
        """Replace the reference's token ids with the candidate's."""
        ours = self.reference.encode(self.data.captions)
        theirs = self.candidate.encode(self.data.captions)
        differing = sum(one != other for one, other in zip(ours, theirs, strict=True))
        if not differing:
            detail = f"all {len(ours)} captions have the same token ids on both sides"
            return self.stay("tokenizer", "same", detail)
        detail = f"{differing} of {len(ours)} captions have different token ids"
        vocabulary = self.reference.config.backbone.vocab_size
        if max(map(max, theirs)) >= vocabulary or max(map(len, theirs)) > self.reference.max_length:
            detail += "; the reference cannot read them, so their effect is part of graph"
            return self.stay("tokenizer", "not measured", detail)
        texts = self.embed.texts(self.reference, self.data, sequences=theirs)
        return self.to("tokenizer", detail, Vectors(self.here.images, texts))

    def change_preprocessing(self) -> None:
        """Replace the reference's pixels with the candidate's."""
        ours, theirs = dict(self.reference.image), dict(self.candidate.image)
        versions = versions_compared(self.reference, self.candidate)
        if ours == theirs:
            same = f"{ours['colour']}, {ours['resize']}, {ours['size']} pixels on both sides"
            return self.stay("preprocessing", "same", "; ".join([same, *versions]))
        differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
        said = [f"{n}: {ours.get(n)} against {theirs.get(n)}" for n in differing]
        detail = "; ".join([*said, *versions])
        if ours["size"] != theirs["size"]:
            detail += "; the reference cannot read that size, so its effect is part of graph"
            return self.stay("preprocessing", "not measured", detail)
        theirs_on_ours = replace(
            self.reference, image=self.candidate.image, prepare=self.candidate.prepare
        )
        images = self.pictures(theirs_on_ours)
        return self.to("preprocessing", detail, Vectors(images, self.here.texts))

    def pictures(self, encoder: Encoder) -> Embeddings:
        """Embed images that both sides could read before."""
        images, failed = self.embed.pictures(encoder, self.data)
        if failed:
            raise ImageError(f"{failed[min(failed)]} It changed during the run. Run again.")
        return images

    def stay(self, name: str, state: Literal["same", "not measured"], detail: str) -> None:
        """Record a stage that changes nothing, or whose change cannot be measured separately."""
        self.stages.append(Stage(name, state, detail))

    def to(self, name: str, detail: str, there: Vectors) -> None:
        """Record a stage that leads to ``there``, or "same" if the embeddings are bit-identical."""
        here = self.here
        if np.array_equal(here.images, there.images) and np.array_equal(here.texts, there.texts):
            return self.stay(name, "same", f"{detail}: no embedding differs")
        before, after = self.recall or self._recall_at_1(here), self._recall_at_1(there)
        self.stages.append(
            Stage(
                name=name,
                state="changed",
                detail=detail,
                vision_cosine=_cosine(here.images, there.images),
                text_cosine=_cosine(here.texts, there.texts),
                tr1=after[0] - before[0],
                ir1=after[1] - before[1],
            )
        )
        self.here, self.recall = there, after
        return None

    def _recall_at_1(self, vectors: Vectors) -> tuple[float, float]:
        tr, ir = rank_both(*vectors, Pairs(self.data.image_ids, self.data.caption_image_ids))
        return tr.recall(1), ir.recall(1)


def versions_compared(reference: Encoder, candidate: Encoder) -> list[str]:
    """Describe the longest text, Pillow version and runtime of both sides.

    Both sides run with the Pillow of this process; a bundle records the one it was made with.
    """
    sides = (reference, candidate)
    lengths, runtimes = [f"{s.max_length} tokens" for s in sides], [s.info.runtime for s in sides]
    made = {s.made_with["pillow"] for s in sides if "pillow" in s.made_with} - {PIL.__version__}
    pillow = f"Pillow {PIL.__version__} on both sides"
    if made:
        pillow += f" (a bundle was made with {' and '.join(sorted(made))})"
    return [_against("longest text", lengths), pillow, _against("runtime", runtimes)]


def _against(name: str, values: list[str]) -> str:
    return f"{name}: {' against '.join(dict.fromkeys(values))}"


def _cosine(before: Embeddings, after: Embeddings) -> float | None:
    """Mean cosine; None if nothing changed, or if the widths differ."""
    if before.shape != after.shape or np.array_equal(before, after):
        return None
    return float(1 - cosine_distances(before, after).mean())
