"""Numbers and their nouns agree."""

from __future__ import annotations

import pytest

from mwa_export.report.numbers import counted


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1234567, "1,234,567 rows")]
)
def test_only_one_thing_is_singular(value: int, words: str) -> None:
    assert counted(value, "row") == words
