"""Embed shards of texts: deduplicated, batched by length, and returned in their original order.

A thread reads and tokenizes the next shard while the model runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mwa_export.data.rows import Row, Source
from mwa_export.embed.pipeline import Channel, Line
from mwa_export.embed.rows import Collected, Setup, checked_rows, stable
from mwa_export.inputs.content import Caption
from mwa_export.inputs.decode import RowRefusedError, text_of
from mwa_export.inputs.tokenizer import PAD, Tokenizer, framed
from mwa_export.vectors.job import RowError, Shard
from mwa_export.vectors.shards import Embedded

WINDOW = 2048  # texts tokenized and held in memory at a time
_TOKENS = 1 << 14  # per batch, including padding: bounds the memory for long texts


@dataclass(slots=True)
class _Tokenized:
    """A shard's distinct texts as token ids."""

    shard: Shard
    numbers: list[int] = field(default_factory=list)  # row numbers
    ids: list[str] = field(default_factory=list)
    columns: list[tuple[object, ...]] = field(default_factory=list)
    which: list[int] = field(default_factory=list)  # for each row, its index in `different`
    different: list[bytes] = field(default_factory=list)  # int32 token ids of each distinct text
    errors: list[RowError] = field(default_factory=list)


def embed_text_shards(
    setup: Setup, tokenizer: Tokenizer, source: Source, shards: Iterable[Shard]
) -> Iterator[Embedded]:
    """Embed shards in order, without a pause between them.

    Raises:
        DataError: the source has changed since its scan.
    """
    on_rows = setup.on_rows
    setup.clock.threads |= {"read": 1, "decode": 1}  # SentencePiece starts threads of its own
    with Line(setup.clock) as line:
        ready: Channel[_Tokenized] = Channel(line, 1, None, "infer")

        def read() -> None:
            for shard in shards:
                ready.put(_tokenized(setup, source, shard, tokenizer, line))
            ready.close()

        line.start(read, "read")
        for entry in ready:
            on_rows(len(entry.errors), len(entry.errors))
            vectors = _vectors(setup, entry, line)
            collected = Collected()
            collected.errors = entry.errors
            before = len(entry.errors)
            if entry.numbers:
                collected.add(entry.numbers, entry.ids, entry.columns, vectors[entry.which])
            on_rows(0, len(collected.errors) - before)
            yield collected.finish(entry.shard)
        line.check()


def _tokenized(
    setup: Setup, source: Source, shard: Shard, tokenizer: Tokenizer, line: Line
) -> _Tokenized:
    """Read a shard's texts, window by window."""
    entry, known = _Tokenized(shard), dict[bytes, int]()
    window: list[tuple[int, Row, Caption]] = []

    def encode() -> None:
        line.check()
        with line.clock.working("decode"):
            cut = _encode(window, entry, known, tokenizer, setup.workers)
        if cut:
            line.clock.lose(f"text: more than {tokenizer.max_length} tokens, cut", cut)
        window.clear()

    for number, row, error in checked_rows(setup, source, shard):
        if error is not None:
            entry.errors.append(error)
            continue
        try:
            window.append((number, row, _caption(row.content, tokenizer)))
        except RowRefusedError as refusal:
            reason = stable(str(refusal))
            entry.errors.append(RowError(number, row.id, refusal.code, reason))
        if len(window) == WINDOW:
            encode()
    encode()
    return entry


def _caption(content: object, tokenizer: Tokenizer) -> Caption:
    """Check a text or its token ids. Raises RowRefusedError if they cannot be embedded."""
    if not isinstance(content, tuple):
        return text_of(content)
    if max(content) > tokenizer.mask_id:
        reason = f"expected token ids from 0 to {tokenizer.mask_id}, found {max(content)}"
        raise RowRefusedError("not-text", reason)
    return content


def _encode(
    window: Sequence[tuple[int, Row, Caption]],
    entry: _Tokenized,
    known: dict[bytes, int],
    tokenizer: Tokenizer,
    workers: int,
) -> int:
    """Tokenize a window of texts and add them. Returns how many were truncated."""
    different = dict.fromkeys(caption for _number, _row, caption in window)
    texts = [caption for caption in different if isinstance(caption, str)]
    cut = set[Caption]()
    encoded = iter(tokenizer.encode_all(texts, threads=workers, on_cut=cut.add))
    places = {}
    for text in different:
        if isinstance(text, str):
            ids = next(encoded)
        else:
            framed_ids = framed(text, tokenizer.max_length, text, cut.add)
            ids = np.array(framed_ids, np.int32).tobytes()
        place = known.setdefault(ids, len(known))
        if place == len(entry.different):
            entry.different.append(ids)
        places[text] = place
    for number, row, text in window:
        entry.numbers.append(number)
        entry.ids.append(row.id)
        entry.columns.append(row.columns)
        entry.which.append(places[text])
    return sum(text in cut for _number, _row, text in window)


def _vectors(setup: Setup, entry: _Tokenized, line: Line) -> NDArray[np.float32]:
    """Embed the distinct texts of a shard, in order: (len(entry.different), D) float32."""
    sequences = entry.different
    rows = np.bincount(entry.which, minlength=len(sequences))  # number of rows with each text
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences)) // 4
    order = np.argsort(lengths, kind="stable")
    flat = np.frombuffer(b"".join(sequences[place] for place in order.tolist()), np.int32)
    ends = np.cumsum(lengths[order])
    vectors: NDArray[np.float32] | None = None
    start = 0
    while start < len(order):
        line.check()
        stop = _batch_end(lengths[order], start, setup.batch)
        sizes = lengths[order[start:stop]]
        ids = np.full((stop - start, sizes[-1]), PAD, np.int64)
        valid = np.arange(sizes[-1]) < sizes[:, None]  # (B, T)
        ids[valid] = flat[ends[start] - sizes[0] : ends[stop - 1]]
        with line.clock.working("infer"):
            found = setup.backend.embed_texts(ids, (~valid).astype(np.int64))
        if vectors is None:
            vectors = np.empty((len(order), found.shape[1]), np.float32)
        vectors[order[start:stop]] = found
        setup.on_rows(int(rows[order[start:stop]].sum()), 0)
        start = stop
    return np.empty((0, 0), np.float32) if vectors is None else vectors


def _batch_end(lengths: NDArray[np.int64], start: int, batch: int) -> int:
    """Return the end of the batch that begins at ``start``. ``lengths`` ascend."""
    stop = min(start + batch, len(lengths))
    while stop - start > 1 and (stop - start) * int(lengths[stop - 1]) > _TOKENS:
        stop -= 1
    return stop
