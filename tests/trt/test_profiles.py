"""User-given ranges become shapes of every input, or a message that says what is wrong."""

from __future__ import annotations

import pytest
from configs import MWA
from hypothesis import given
from hypothesis import strategies as st

from mwa_export.bundle.engine import ShapeRange
from mwa_export.errors import ProfileError
from mwa_export.spec import text_spec, vision_spec
from mwa_export.trt.profiles import Span, profile_of, profiles_of, text_lengths

SIZE = MWA.backbone.image_size


@given(st.lists(st.integers(1, 999), min_size=3, max_size=3).map(sorted))
def test_three_ascending_numbers_are_a_span(numbers: list[int]) -> None:
    span = Span.parse(",".join(map(str, numbers)), "batch")
    assert [span.min, span.opt, span.max] == numbers


def test_one_number_fixes_an_axis() -> None:
    assert Span.parse("8", "batch") == Span(8, 8, 8)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,64,32", "opt batch 64 is above max batch 32"),
        ("5,4,32", "min batch 5 is above opt batch 4"),
        ("0,1,2", "is not MIN,OPT,MAX"),
        ("1,2", "is not MIN,OPT,MAX"),
        ("1,2,3,4", "is not MIN,OPT,MAX"),
        ("few", "is not MIN,OPT,MAX"),
        ("", "is not MIN,OPT,MAX"),
    ],
)
def test_other_spans_are_refused_with_what_was_given(text: str, found: str) -> None:
    with pytest.raises(ProfileError) as error:
        Span.parse(text, "batch")
    assert str(error.value).startswith(f"`batch` {text}: {found}")


def test_every_axis_of_a_tower_gets_its_sizes() -> None:
    (image,) = profile_of(vision_spec(MWA.backbone), Span(1, 8, 32))
    assert image == ShapeRange("image", (1, 3, SIZE, SIZE), (8, 3, SIZE, SIZE), (32, 3, SIZE, SIZE))
    (pixels,) = profile_of(vision_spec(MWA.backbone, image_input="uint8"), Span(1, 8, 32))
    assert pixels.opt == (8, SIZE, SIZE, 3)
    ids, mask = profile_of(text_spec(MWA.backbone), Span(1, 8, 32), Span(2, 5, 9))
    assert (ids.min, ids.opt, ids.max) == ((1, 2), (8, 5), (32, 9))
    assert (ids.name, mask.name) == ("token_ids", "padding_mask")
    assert (mask.min, mask.opt, mask.max) == (ids.min, ids.opt, ids.max)


def test_each_range_of_batches_is_a_profile_of_its_own() -> None:
    profiles = profiles_of(vision_spec(MWA.backbone), [Span(1, 1, 4), Span(5, 32, 64)])
    assert [profile[0].max[0] for profile in profiles] == [4, 64]


def test_a_text_tower_without_lengths_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"text/token_ids: .* length .*`lengths` MIN,OPT,MAX"):
        profile_of(text_spec(MWA.backbone), Span(1, 8, 32))


def test_shapes_out_of_order_are_refused() -> None:
    with pytest.raises(ProfileError, match="image: axis 1 has min 2, opt 3 and max 1"):
        ShapeRange("image", (1, 2), (1, 3), (1, 1))
    with pytest.raises(ProfileError, match="differ in rank"):
        ShapeRange("image", (1, 2), (1, 2, 3), (1, 2))


def test_lengths_default_to_all_that_the_model_has() -> None:
    assert text_lengths(None, 64) == Span(2, 16, 64)
    assert text_lengths(None, 8) == Span(2, 8, 8)
    assert text_lengths(Span(3, 4, 5), 64) == Span(3, 4, 5)


def test_lengths_that_no_text_has_are_refused() -> None:
    with pytest.raises(ProfileError, match=r"max length 65 is above 64.*lengths=2,64,64"):
        text_lengths(Span(2, 65, 65), 64)
    with pytest.raises(ProfileError, match="too short"):
        text_lengths(Span(1, 1, 1), 64)
