"""Describe a bundle as tables and as JSON."""

from __future__ import annotations

from typing import Any

from mwa_export.bundle.bundle import Bundle
from mwa_export.model.summary import config_rows


def bundle_json(bundle: Bundle) -> dict[str, Any]:
    """Return the manifest as JSON data, with the bundle's path and size in bytes."""
    return {
        "bundle": str(bundle.path),
        "bytes": _bytes_of(bundle),
        **bundle.manifest.to_json(),
    }


def bundle_rows(bundle: Bundle) -> list[tuple[str, str]]:
    """Return (label, value) pairs for a table."""
    manifest = bundle.manifest
    rows = [
        ("bundle", f"{bundle.path} ({_bytes_of(bundle) / 1e6:,.1f} MB)"),
        ("embedding space", manifest.space_id[:16]),
        ("made by", f"mwa-export {manifest.export.mwa_export}"),
        *(("from", f"{source.file} ({source.layout})") for source in manifest.export.sources),
        *config_rows(manifest.model, manifest.towers),
    ]
    if "text" in manifest.towers:
        carried = manifest.tokenizer or "none: the bundle takes only token ids"
        rows += [("longest text", f"{manifest.max_length} tokens"), ("tokenizer", carried)]
    return rows


def graph_rows(bundle: Bundle) -> list[tuple[str, ...]]:
    """Return (file, tower, precision, target runtime, MB) of every graph and engine."""
    manifest = bundle.manifest

    def megabytes(file: str) -> str:
        return f"{sum(manifest.files[name].bytes for name in manifest.files_of(file)) / 1e6:,.1f}"

    graphs = [(g.file, g.spec.tower, g.precision, g.dialect) for g in manifest.graphs]
    engines = [(e.file, e.tower, e.precision, e.made_by) for e in manifest.engines]
    return [(*row, megabytes(row[0])) for row in (*graphs, *engines)]


def _bytes_of(bundle: Bundle) -> int:
    return sum(entry.bytes for entry in bundle.manifest.files.values())
