"""`mwa-export` in a process of its own, with `list:N` as a source of N rows made on the way."""

from __future__ import annotations

from typing import Any
from unittest import mock

from embed_samples import ListSource, pictures, texts

from mwa_export.cli import embed_cmd
from mwa_export.cli.main import main


def _sources(values: dict[str, Any]) -> list[ListSource]:
    made = []
    for name, make in (("images", pictures), ("texts", texts)):
        if values[name]:
            count = int(values[name].removeprefix("list:"))
            made.append(make(count, bad=(5, 40)) if name == "images" else make(count))
    return made


if __name__ == "__main__":
    with mock.patch.object(embed_cmd, "_sources", _sources):
        main()
