"""Tables in a terminal that says it has hardly any columns."""

from __future__ import annotations

import pytest
from commands import run


@pytest.mark.parametrize("columns", ["0", "1", "12"])
def test_tables_keep_a_width_that_can_be_read(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert "instructions" in run("doctor").stdout
