"""FAISS indexes for an output."""

from __future__ import annotations

import numpy as np

from mwa_export.files import new_file
from mwa_export.optional import require
from mwa_export.typed_json import json_from_value
from mwa_export.vectors.entries import FileEntry
from mwa_export.vectors.manifest import read_manifest, write_manifest
from mwa_export.vectors.output import Output
from mwa_export.vectors.shards import restored


def add_indexes(output: Output) -> None:
    """Write an exact inner-product index per kind and add it to the manifest.

    Position i of the index is the i-th embedded row. Holds all vectors of a kind in memory.

    Raises:
        MissingPackageError: faiss is not installed.
        DataError: the manifest or a shard is missing or damaged.
    """
    faiss = require("faiss")
    manifest = read_manifest(output.folder)
    for folder in [name for name in manifest["shards"] if name not in manifest["indexes"]]:
        index, name = faiss.IndexFlatIP(output.job.width), f"{folder}.faiss"
        for shard in manifest["shards"][folder]:
            stored = output.read(shard["stem"])
            index.add(np.ascontiguousarray(restored(stored.vectors, stored.scales)))
        with new_file(output.folder / name) as partial:
            faiss.write_index(index, str(partial))
            entry = FileEntry.of(name, index.ntotal, partial)
        manifest["indexes"][folder] = json_from_value(entry)
    write_manifest(output.folder, manifest)
