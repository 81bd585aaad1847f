"""The demo's images and captions are reproducible, well formed and truthful."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mwa_export.demo.scenes import picture_from_seed, write_scenes
from mwa_export.demo.words import STYLES, Family, Group, Scene, captions_from_scene

FAMILIES: tuple[Family, ...] = ("base", "target")


def read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "again"):
        write_scenes(tmp_path / name, family="target", count=4, seed=5)
    assert files(tmp_path / "first") == files(tmp_path / "again")


def test_another_seed_writes_other_pictures(tmp_path: Path) -> None:
    for seed in (5, 6):
        write_scenes(tmp_path / str(seed), family="base", count=3, seed=seed)
    first, second = files(tmp_path / "5"), files(tmp_path / "6")
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scene_does_not_depend_on_how_many_are_drawn(tmp_path: Path, family: Family) -> None:
    few = read(write_scenes(tmp_path / "few", family=family, count=2, seed=9))
    many = read(write_scenes(tmp_path / "many", family=family, count=5, seed=9))
    assert many["images"][:2] == few["images"]
    name = "test_000002.jpg"
    assert files(tmp_path / "many")[name] == files(tmp_path / "few")[name]


def test_written_files_hold_the_pictures_drawn_in_memory(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, family="target", count=2, seed=3, split="val")
    picture = picture_from_seed("target", 3, 1)
    assert (tmp_path / "images" / "val_000002.jpg").read_bytes() == picture.jpeg
    raw = [sentence["raw"] for sentence in read(path)["images"][1]["sentences"]]
    assert raw == picture.captions


def test_json_has_the_karpathy_form(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, family="base", count=3, seed=1, split="val")
    assert path == tmp_path / "dataset.json"
    data = read(path)
    assert set(data) == {"dataset", "images"}
    sentids = []
    for number, image in enumerate(data["images"]):
        fields = {"filepath", "filename", "split", "imgid", "cocoid", "sentids", "sentences"}
        assert set(image) == fields
        assert (image["split"], image["imgid"]) == ("val", number)
        assert (tmp_path / image["filepath"] / image["filename"]).is_file()
        assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]]
        for sentence in image["sentences"]:
            assert set(sentence) == {"raw", "tokens", "imgid", "sentid"}
            assert sentence["imgid"] == number
            assert sentence["tokens"] == [token.lower() for token in sentence["tokens"]]
            assert " ".join(sentence["tokens"]) in sentence["raw"].lower().replace(",", "")
        sentids += image["sentids"]
    assert sentids == list(range(15))


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_jpeg_files_of_160_by_120_with_something_on_them(family: Family) -> None:
    for index in range(20):
        picture = picture_from_seed(family, 0, index)
        image = Image.open(io.BytesIO(picture.jpeg))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (160, 120))
        assert np.asarray(image).std() > 3
        assert set(np.unique(picture.owners)) == set(range(len(picture.scene.groups) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_each_picture_has_five_captions_of_sentence_length(family: Family) -> None:
    lengths = []
    for index in range(100):
        captions = picture_from_seed(family, 1, index).captions
        assert len(captions) == 5
        assert len(set(captions)) > 1
        assert all(text[0].isupper() and text.endswith(".") for text in captions)
        assert not any("  " in text or "{" in text for text in captions)
        lengths += [len(text.split()) for text in captions]
    assert min(lengths) >= 2
    assert max(lengths) <= 40
    assert np.median(lengths) > 8


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_caption_names_shape_and_colour_of_every_group(family: Family) -> None:
    style = STYLES[family]
    stems = {"leaf": "lea"}  # leaf, leaves
    for index in range(60):
        picture = picture_from_seed(family, 2, index)
        caption = picture.captions[0].lower()
        for group in picture.scene.groups:
            names = [stems.get(name, name) for name in style.shapes[group.shape]]
            assert any(name in caption for name in names), (caption, group)
            assert any(colour in caption for colour in style.colours[group.colour])


def test_captions_tell_count_and_order_truly() -> None:
    leaves = Group("leaf", "teal", "plain", "small", 3)
    fish = Group("fish", "pink", "checked", "large", 1)
    scene = Scene((leaves, fish), "row", "night", dim=False)
    seen = set()
    for seed in range(40):
        captions = captions_from_scene(scene, STYLES["target"], np.random.default_rng(seed))
        text = captions[1].lower()
        assert "three" in text
        assert "leaves" in text
        assert "day" not in " ".join(captions)  # it is night
        order = text.index("leaves") < text.index("fish")
        right_of = "to the right of" in text or "on the right, " in text
        assert order != right_of, text
        seen.add(right_of)
    assert seen == {True, False}


@pytest.mark.slow
def test_families_differ_in_things_and_words() -> None:
    words = {}
    for family in FAMILIES:
        texts = [text for i in range(100) for text in picture_from_seed(family, 4, i).captions]
        words[family] = set(" ".join(texts).lower().replace(".", "").replace(",", "").split())
    only_base, only_target = words["base"] - words["target"], words["target"] - words["base"]
    assert {"square", "circle", "orange", "striped"} <= only_base
    assert {"mushroom", "fish", "teal", "hollow"} <= only_target
    assert {"two", "small", "above"} <= words["base"] & words["target"]
