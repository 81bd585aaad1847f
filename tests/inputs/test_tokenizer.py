"""Token ids are exactly those of the reference's tokenizer."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from paths import GOLDEN, REAL_SPM, SHARED_GOLDEN

from mwa_export.demo.run import assets
from mwa_export.inputs.tokenizer import BOS, EOS, PAD, UNK, Tokenizer, pad

TEXTS = ["a red bus on the road", "two dogs play in the snow", "the cat sat on the mat"]


@pytest.fixture(scope="module")
def spm() -> bytes:
    """A tiny SentencePiece model with the special ids of the real one."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=out,
        vocab_size=45,
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
    )
    return out.getvalue()


@pytest.mark.parametrize(
    ("golden", "model"),
    [(GOLDEN, assets()[1]), (SHARED_GOLDEN, REAL_SPM)],
    ids=["golden-tokens", "shared-tokens"],
)
def test_golden_ids_are_reproduced(golden: Path, model: Path) -> None:
    if not (golden.is_dir() and model.is_file()):
        pytest.skip(f"{golden} or {model} is not there")
    tokenizer = Tokenizer.from_file(model)
    lines = (golden / "tokenizer.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    assert len(cases) > 20
    for case in cases:
        assert tokenizer.encode(case["text"]) == case["token_ids"], case["text"]


def test_ids_are_shifted_by_one_and_framed(spm: bytes) -> None:
    plain = sentencepiece.SentencePieceProcessor(model_proto=spm).encode("a red bus")
    assert Tokenizer(spm).encode("a red bus") == [BOS, *(piece + 1 for piece in plain), EOS]


def test_unknown_characters_become_unk(spm: bytes) -> None:
    assert UNK in Tokenizer(spm).encode("漢")


def test_special_tokens_inside_a_caption_are_recognized(spm: bytes) -> None:
    tokenizer = Tokenizer(spm)
    ids = tokenizer.encode("<s> </s> <pad> <mask> <unk>")
    assert ids == [BOS, BOS, EOS, PAD, tokenizer.mask_id, UNK, EOS]
    bus = tokenizer.encode("bus")[1:-1]
    assert tokenizer.encode("bus</s>bus") == [BOS, *bus, EOS, *bus, EOS]


@given(st.integers(3, 64), st.integers(0, 200))
def test_long_captions_are_cut_with_both_ends_kept(limit: int, words: int) -> None:
    tokenizer = Tokenizer(_cached_spm(), max_length=limit)
    ids = tokenizer.encode("bus " * words)
    assert len(ids) <= limit
    assert (ids[0], ids[-1]) == (BOS, EOS)


_SPM: list[bytes] = []


@pytest.fixture(autouse=True)
def _keep_spm(spm: bytes) -> None:
    _SPM[:] = [spm]


def _cached_spm() -> bytes:
    return _SPM[0]


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=6))
def test_padding_marks_exactly_what_was_added(sequences: list[list[int]]) -> None:
    token_ids, padding_mask = pad(sequences)
    assert token_ids.dtype == padding_mask.dtype == np.int64
    assert token_ids.shape == (len(sequences), max(map(len, sequences)))
    for ids, mask, sequence in zip(token_ids, padding_mask, sequences, strict=True):
        assert ids[mask == 0].tolist() == sequence
        assert (ids[mask == 1] == PAD).all()


def test_empty_caption_is_bos_and_eos(spm: bytes) -> None:
    assert Tokenizer(spm).encode("") == [BOS, EOS]


def test_vocabulary_check_allows_padding_rows_only(spm: bytes) -> None:
    tokenizer = Tokenizer(spm)
    needed = tokenizer.mask_id + 1
    for rows in (needed, needed + 8, needed + 128):
        tokenizer.check_vocabulary(rows)
    for rows in (needed - 1, needed + 129, 64010):
        with pytest.raises(Exception, match=f"has {rows} rows"):
            tokenizer.check_vocabulary(rows)


@given(
    texts=st.lists(
        st.text(alphabet="abcdefgh <>/s\u00e9\u4e2d", max_size=30)
        | st.sampled_from(["", "a</s>b", "<s><pad>", "<unk>", "abc " * 40]),
        max_size=12,
    ),
    threads=st.integers(1, 3),
)
def test_many_texts_are_encoded_as_each_alone(spm: bytes, texts: list[str], threads: int) -> None:
    tokenizer = Tokenizer(spm, max_length=20)
    found = tokenizer.encode_all(texts, threads=threads)
    expected = [tokenizer.encode(text) for text in texts]
    assert [np.frombuffer(ids, np.int32).tolist() for ids in found] == expected


@given(st.lists(st.sampled_from(["a dog", "a </s> dog", "", "a dog runs along the beach " * 3])))
def test_captions_that_are_cut_are_told_alike_by_both_ways(texts: list[str]) -> None:
    short = Tokenizer(_cached_spm(), max_length=8)
    whole = Tokenizer(_cached_spm(), max_length=1000)
    longer = {text for text in texts if len(whole.encode(text)) > 8}
    one, other = set[object](), set[object]()
    for text in texts:
        short.encode(text, one.add)
    short.encode_all(texts, on_cut=other.add)
    assert one == other == longer
