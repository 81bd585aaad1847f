"""Drift is attributed to its stage: tokenizer, preprocessing, graph or precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import spm_model
from numpy.typing import NDArray
from parity_files import PIECES, export, states, write_test_set, write_tokenizer
from PIL import Image

from mwa_export.data.test_set import RetrievalData
from mwa_export.data.test_sets import read_data
from mwa_export.encoder.encoder import Encoder
from mwa_export.errors import ImageError, UsageError
from mwa_export.inputs.tokenizer import OnCut, Tokenizer
from mwa_export.model.options import ModelOptions
from mwa_export.parity import stages
from mwa_export.parity.run import RunOptions, compare_models, compare_sides
from mwa_export.spec import Embeddings, Tower


class Noisy:
    """A backend whose embeddings have noise added: a stand-in for a low precision."""

    name = "noisy"

    def __init__(self, backend: Any, strength: float = 0.3) -> None:
        self.backend, self.strength = backend, strength
        self.image_size = backend.image_size

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        return self._noisy(self.backend.embed_images(pixels))

    def embed_texts(
        self, token_ids: NDArray[np.int64], padding_mask: NDArray[np.int64]
    ) -> Embeddings:
        return self._noisy(self.backend.embed_texts(token_ids, padding_mask))

    def probe(self, tower: Tower) -> None:
        """Nothing to see."""

    def _noisy(self, embeddings: Embeddings) -> Embeddings:
        noise = np.random.default_rng(1).standard_normal(embeddings.shape)
        noisy = embeddings + self.strength * noise / np.sqrt(embeddings.shape[1])
        return np.asarray(noisy / np.linalg.norm(noisy, axis=1, keepdims=True), np.float32)


def other_tokenizer(side: Encoder, files: Path) -> Encoder:
    path = write_tokenizer(files, seed=1)
    tokenizer = Tokenizer.from_file(path, max_length=side.max_length)
    return replace(side, tokenizer=tokenizer, tokenizer_sha256="other")


def other_pixels(side: Encoder, _files: Path) -> Encoder:
    def prepare(image: Image.Image) -> NDArray[np.uint8]:
        size = side.image["size"]
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.NEAREST))

    return replace(side, prepare=prepare, image={**side.image, "resize": "nearest"})


def other_graph(side: Encoder, _files: Path) -> Encoder:
    return replace(side, backend=Noisy(side.backend))


def other_precision(side: Encoder, _files: Path) -> Encoder:
    return replace(side, backend=Noisy(side.backend), open_float32=lambda: side.backend)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "damage", "towers"),
    [
        ("tokenizer", other_tokenizer, ("text",)),
        ("preprocessing", other_pixels, ("vision",)),
        ("graph", other_graph, ("vision", "text")),
        ("precision", other_precision, ("vision", "text")),
    ],
)
def test_damage_is_traced_to_its_stage(
    files: Path,
    data: RetrievalData,
    sides: tuple[Encoder, Encoder],
    stage: str,
    damage: Any,
    towers: tuple[str, ...],
) -> None:
    reference, candidate = sides
    run = RunOptions(any_space=True)
    result = compare_sides(reference, damage(candidate, files), data, run=run).result
    for found in result.stages:
        cosines = {"vision": found.vision_cosine, "text": found.text_cosine}
        hit = {tower for tower, value in cosines.items() if value is not None and value < 0.9999}
        assert hit == (set(towers) if found.name == stage else set()), found
    # What the stages cost adds up to what the whole conversion cost.
    whole = [direction.recalls[0].difference for direction in result.directions]
    assert sum(found.tr1 or 0 for found in result.stages) == pytest.approx(whole[0])
    assert sum(found.ir1 or 0 for found in result.stages) == pytest.approx(whole[1])


def test_noise_of_known_strength_is_measured_as_such(
    data: RetrievalData, sides: tuple[Encoder, Encoder], files: Path
) -> None:
    reference, candidate = sides
    result = compare_sides(reference, other_graph(candidate, files), data).result
    for cosines in result.cosines:
        assert cosines.mean == pytest.approx(1 / np.sqrt(1 + 0.3**2), abs=0.005)


@pytest.mark.slow
def test_other_image_size_is_another_space_whose_stages_are_told_apart(
    files: Path, data: RetrievalData, tmp_path: Path
) -> None:
    export(
        files / "checkpoint.pth",
        tmp_path / "64",
        files / "tokenizer-0.spm",
        options=ModelOptions(image_size=64),
    )
    arguments = files / "bundle", tmp_path / "64", data
    with pytest.raises(UsageError, match="differ in model configuration, image preprocessing"):
        compare_models(*arguments)
    result = compare_models(*arguments, run=RunOptions(any_space=True)).result
    assert states(result)["preprocessing"] == "not measured"
    assert "size: 32 against 64" in result.stages[1].detail
    assert states(result)["graph"] == "changed"
    with pytest.raises(UsageError, match=r"32 pixels.*64 pixels.*Omit `layers`"):
        compare_models(*arguments, run=RunOptions(any_space=True, layers=True))


def test_tokens_that_the_reference_cannot_read_are_not_measured_alone(
    files: Path, data: RetrievalData, sides: tuple[Encoder, Encoder]
) -> None:
    reference, candidate = sides
    small = replace(
        reference.config, backbone=replace(reference.config.backbone, text_positions=10)
    )
    result = compare_sides(
        replace(reference, config=small, tokenizer=Short(spm_model(PIECES))),
        candidate,
        data,
        run=RunOptions(any_space=True),
    ).result
    assert states(result)["tokenizer"] == "not measured"
    assert "cannot read them" in result.stages[0].detail


class Short(Tokenizer):
    """A tokenizer that cuts texts early."""

    def encode(self, text: str, on_cut: OnCut = str) -> list[int]:
        return [*super().encode(text, on_cut)[:5], 2]


def test_picture_that_becomes_unreadable_during_the_run_stops_it(
    files: Path, sides: tuple[Encoder, Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_data(write_test_set(tmp_path / "data"))
    measured = stages.drift_by_stage

    def later(*arguments: Any) -> Any:
        (tmp_path / "data" / "003.png").write_bytes(b"no picture")
        return measured(*arguments)

    monkeypatch.setattr("mwa_export.parity.run.drift_by_stage", later)
    with pytest.raises(ImageError, match=r"003\.png.*changed during the run"):
        compare_sides(sides[0], other_precision(sides[1], files), data)


def test_each_stage_is_measured_from_where_the_one_before_ended(
    files: Path, data: RetrievalData, sides: tuple[Encoder, Encoder]
) -> None:
    """A graph that went wrong, and a precision that undoes it: both must show."""
    reference, candidate = sides
    odd = replace(candidate, open_float32=lambda: Noisy(candidate.backend))
    result = compare_sides(reference, odd, data).result
    assert result.cosines[0].mean > 0.9999
    for stage in result.stages[2:]:
        assert stage.vision_cosine == pytest.approx(1 / np.sqrt(1 + 0.3**2), abs=0.005)
        assert stage.text_cosine == pytest.approx(1 / np.sqrt(1 + 0.3**2), abs=0.005)


def test_captions_that_a_side_cuts_are_counted_and_said(
    files: Path, sides: tuple[Encoder, Encoder], tmp_path: Path
) -> None:
    data = read_data(write_test_set(tmp_path / "data"))
    long = " ".join(["a red circle above a blue square"] * 40)
    data = replace(data, captions=(long, long, *data.captions[2:]))
    result = compare_sides(*sides, data).result
    assert result.cut_captions == (2, 2)
    assert any("2 captions of more than" in warning for warning in result.warnings)
    preprocessing = next(s for s in result.stages if s.name == "preprocessing")
    for fact in ("tokens", "Pillow", "runtime", "pixels"):
        assert fact in preprocessing.detail


def test_nothing_is_said_where_nothing_is_cut(
    sides: tuple[Encoder, Encoder], data: RetrievalData
) -> None:
    result = compare_sides(*sides, data).result
    assert result.cut_captions == (0, 0)
    assert not any("tokens" in warning for warning in result.warnings)
