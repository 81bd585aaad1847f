"""Tokenize captions exactly like the reference's SentencePiece tokenizer, without transformers.

Ids are SentencePiece ids + 1, like in fairseq. BOS is 0, PAD 1, EOS 2 and UNK 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import DataError, TokenizerError
from mwa_export.inputs.content import Caption
from mwa_export.spec import MAX_TOKENS, BackboneConfig

BOS, PAD, EOS, UNK = 0, 1, 2, 3
_OFFSET = 1
TEXT_SPEC: dict[str, int] = {"bos": BOS, "pad": PAD, "eos": EOS, "unk": UNK, "offset": _OFFSET}
"""The special ids and the offset to SentencePiece's ids, as data for the manifest."""
_SPARE_ROWS = 128  # vocabularies are padded to round sizes by at most this many rows


OnCut = Callable[[Caption], object]
"""Called with each caption that is cut because it exceeds the model's longest text."""


def _ignore(_caption: Caption) -> None:
    """Default for ``on_cut``: do nothing."""


class Tokenizer:
    """A SentencePiece model plus the reference's special tokens."""

    def __init__(self, model: bytes, *, max_length: int = MAX_TOKENS, name: str = "model") -> None:
        import sentencepiece

        self.max_length = max_length
        self._name = name
        try:
            if not model:  # SentencePiece would silently load no model
                raise RuntimeError("it is empty")
            self._sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise TokenizerError(
                f"{name}: is not a SentencePiece model ({error}). "
                "Pass the .spm file that belongs to the checkpoint, such as beit3.spm."
            ) from error
        self._unknown = self._sentencepiece.unk_id()
        specials = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": UNK, "<mask>": self.mask_id}
        self._specials = specials
        # Like the reference, recognize special tokens in a caption: a literal "</s>" becomes EOS.
        self._split = re.compile("(" + "|".join(map(re.escape, specials)) + ")").split

    @classmethod
    def from_file(cls, path: Path, *, max_length: int = MAX_TOKENS) -> Tokenizer:
        """Read a `.spm` file.

        Raises:
            TokenizerError: the file is missing or is not a SentencePiece model.
        """
        path = Path(path)
        try:
            if path.exists() and not path.is_file():  # reading a pipe or device may not end
                raise TokenizerError(
                    f"{path}: is not a file. Expected a SentencePiece model (.spm)."
                )
            model = path.read_bytes()
        except OSError as error:
            raise TokenizerError(
                f"{path}: cannot be read ({error.strerror}). Expected a SentencePiece model (.spm)."
            ) from error
        return cls(model, max_length=max_length, name=str(path))

    @property
    def mask_id(self) -> int:
        """Id of `<mask>`, which comes after the last piece."""
        return int(self._sentencepiece.get_piece_size()) + _OFFSET

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise TokenizerError unless this tokenizer fits a vocabulary of ``vocab_size`` rows."""
        needed = self.mask_id + 1
        if not needed <= vocab_size <= needed + _SPARE_ROWS:
            raise TokenizerError(
                f"{self._name}: has {needed} ids ({needed - 2} pieces and 2 more), but the "
                f"checkpoint's vocabulary has {vocab_size} rows. Expected {needed} to "
                f"{needed + _SPARE_ROWS} rows. Pass the tokenizer that training used."
            )

    def encode(self, text: str, on_cut: OnCut = _ignore) -> list[int]:
        """Tokenize one caption: ids with BOS and EOS, cut to ``max_length`` with both kept.

        ``on_cut`` is called with the caption if it is cut.
        """
        ids: list[int] = []
        for part in self._split(text):
            special = self._specials.get(part)
            if special is not None:
                ids.append(special)
            else:
                ids.extend(self._encode_plain(part))
        return framed(ids, self.max_length, text, on_cut)

    def encode_all(
        self, texts: Sequence[str], *, threads: int = 1, on_cut: OnCut = _ignore
    ) -> list[bytes]:
        """Tokenize many texts, several times faster than `encode`: int32 ids of each as bytes."""
        plain = [text for text in texts if "<" not in text]
        pieces = iter(self._plain_pieces(plain, threads, on_cut))
        return [
            np.array(self.encode(text, on_cut), np.int32).tobytes() if "<" in text else next(pieces)
            for text in texts
        ]

    def _plain_pieces(self, texts: Sequence[str], threads: int, on_cut: OnCut) -> Iterator[bytes]:
        """Tokenize texts without "<", which cannot contain special tokens."""
        if not texts:
            return
        longest = self.max_length - 2
        whole = self._sentencepiece.encode(texts, num_threads=threads)
        for text, ids in zip(texts, whole, strict=True):
            if len(ids) > longest:
                on_cut(text)
        encoded = [ids[:longest] for ids in whole]
        ends = np.cumsum([len(ids) + 2 for ids in encoded])
        starts = np.concatenate([[0], ends[:-1]])
        inner = np.ones(ends[-1], np.bool_)
        inner[starts] = inner[ends - 1] = False
        plain = np.fromiter(chain.from_iterable(encoded), np.int32)
        all_ids = np.full(ends[-1], BOS, np.int32)
        all_ids[ends - 1] = EOS
        all_ids[inner] = np.where(plain == self._unknown, UNK, plain + _OFFSET)
        buffer = all_ids.tobytes()
        for start, end in zip((starts * 4).tolist(), (ends * 4).tolist(), strict=True):
            yield buffer[start:end]

    def batch(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokenize captions: (token_ids, padding_mask), both (B, longest) int64, 1 = padding."""
        return pad([self.encode(text) for text in texts])

    def _encode_plain(self, text: str) -> list[int]:
        pieces = self._sentencepiece.encode(text)
        return [UNK if piece == self._unknown else piece + _OFFSET for piece in pieces]


def framed(
    ids: Sequence[int], max_length: int, caption: Caption = "", on_cut: OnCut = _ignore
) -> list[int]:
    """Add BOS and EOS to ids, cut to ``max_length`` with both kept."""
    if len(ids) > max_length - 2:
        on_cut(caption)
    return [BOS, *ids[: max_length - 2], EOS]


def pad(sequences: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pad id lists: (token_ids, padding_mask), both (B, longest) int64, mask 1 = padding."""
    longest = max((len(ids) for ids in sequences), default=0)
    token_ids = np.full((len(sequences), longest), PAD, dtype=np.int64)
    padding_mask = np.ones((len(sequences), longest), dtype=np.int64)
    for row, ids in enumerate(sequences):
        token_ids[row, : len(ids)] = ids
        padding_mask[row, : len(ids)] = 0
    return token_ids, padding_mask


def encode_captions(
    captions: Sequence[Caption],
    tokenizer: Tokenizer | None,
    backbone: BackboneConfig,
    source: str,
    on_cut: OnCut = _ignore,
) -> list[list[int]]:
    """Convert captions to token ids with BOS and EOS, cut to the longest text of the model.

    Args:
        captions: texts, or stored ids without BOS and EOS.
        tokenizer: needed only for texts.
        backbone: gives the size of the vocabulary and the longest text.
        source: the model's name, for messages.
        on_cut: called with each caption that is cut.

    Raises:
        TokenizerError: a caption is a text and there is no tokenizer.
        DataError: a stored id is not in the vocabulary.
    """
    rows = []
    for caption in captions:
        if not isinstance(caption, str):
            if caption and not 0 <= min(caption) <= max(caption) < backbone.vocab_size:
                raise DataError(
                    f"the captions contain the token id "
                    f"{min(caption) if min(caption) < 0 else max(caption)}. Expected 0 to "
                    f"{backbone.vocab_size - 1}, the vocabulary of {source}. Tokenize the captions "
                    "for this model."
                )
            rows.append(framed(caption, backbone.max_text_length, caption, on_cut))
        elif tokenizer is not None:
            rows.append(tokenizer.encode(caption, on_cut))
        else:
            raise TokenizerError(
                f"{source}: has no tokenizer, but the captions are texts. Pass a SentencePiece "
                "model: `tokenizer=FILE.spm`"
            )
    return rows
