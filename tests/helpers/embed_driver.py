"""Run `mwa-export` in a separate process, with `list:N` as a generated source of N rows."""

from __future__ import annotations

from unittest import mock

from embed_samples import ListSource, pictures, texts

from mwa_export.cli.main import main
from mwa_export.data import sources
from mwa_export.data.sources import SourceOptions
from mwa_export.inputs.content import Kind


def open_source(kind: Kind, spec: str, _options: SourceOptions) -> ListSource:
    count = int(spec.removeprefix("list:"))
    return pictures(count, bad=(5, 40)) if kind == "image" else texts(count)


if __name__ == "__main__":
    with mock.patch.object(sources, "open_source", open_source):
        main()
