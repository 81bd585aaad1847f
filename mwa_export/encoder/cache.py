"""Cache of embeddings, keyed by a hash of everything that determines them.

An entry is a folder named by the hash of its key, with one file per chunk of rows. Chunks are
written atomically, so an interrupted run resumes where it stopped. Any change to weights, options,
runtime, images or token ids changes the key, so stale entries are never used.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from mwa_export.encoder.batches import (
    IMAGE_BATCH,
    TEXT_BATCH,
    batches_by_length,
    distinct,
    embed_token_ids,
)
from mwa_export.encoder.encoder import Encoder
from mwa_export.errors import BundleError, ImageError
from mwa_export.files import new_file
from mwa_export.inputs.content import Readable
from mwa_export.progress import Progress, Silent
from mwa_export.runtimes.backend import Backend
from mwa_export.spec import Embeddings

log = logging.getLogger(__name__)

VERSION = 2  # of the key and of the chunk format; part of the key
_PICTURES = 16 * IMAGE_BATCH  # images in a chunk
_TEXTS = 64 * TEXT_BATCH  # texts in a chunk
_DIGEST = hashlib.sha256().digest_size  # a chunk starts with the digest of the rest


def default_cache() -> Path | None:
    """`$XDG_CACHE_HOME/mwa-export/parity`, by default in `~/.cache`; None: no home folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "mwa-export" / "parity"
    except RuntimeError as error:  # a user without a passwd entry, as in some containers
        log.warning("embeddings are not cached: %s", error)
        return None


@dataclass(frozen=True, slots=True)
class Cache:
    """Embeddings of one model, cached in a folder."""

    folder: Path
    identity: Mapping[str, Any]  # weights, options, runtime and its version, preprocessing

    def pictures(
        self,
        encoder: Encoder,
        pictures: Sequence[Readable],
        progress: Progress | None = None,
    ) -> tuple[Embeddings, dict[int, str]]:
        """Embed images like `Encoder.embed_pictures`, from the cache where possible."""
        progress = progress or Silent()
        inputs = {
            "pictures": hash_pictures(pictures),
            "preprocessing": dict(encoder.image),
            "pillow": PIL.__version__,
        }
        entry = self._entry("vision", inputs)
        parts: list[Embeddings] = []
        failures: dict[int, str] = {}
        for start in range(0, len(pictures), _PICTURES):
            chunk = pictures[start : start + _PICTURES]
            file = entry / f"{start:09d}.chunk"
            found = _load(file, len(chunk))
            if found is None:
                found = encoder.embed_pictures(chunk, on_rows=progress.advance)
                if _will_fail_again(encoder, [chunk[row] for row in sorted(found[1])]):
                    _save(file, *found)
                else:
                    found = encoder.embed_pictures(chunk)
            else:
                progress.advance(len(chunk))
            parts.append(found[0])
            failures |= {start + row: reason for row, reason in found[1].items()}
        return _joined(parts), failures

    def texts(
        self, backend: Backend, sequences: Sequence[Sequence[int]], progress: Progress | None = None
    ) -> Embeddings:
        """Embed token ids like `embed_token_ids`, from the cache where possible."""
        progress = progress or Silent()
        entry = self._entry("text", {"token_ids": _hash_json(sequences)})
        sequences, which = distinct(sequences)
        progress.advance(len(which) - len(sequences))
        embeddings: Embeddings | None = None
        for number, rows in enumerate(batches_by_length(sequences, _TEXTS)):
            file = entry / f"{number:09d}.chunk"
            found = _load(file, len(rows))
            if found is None:
                chunk = [sequences[row] for row in rows]
                found = embed_token_ids(backend, chunk, on_rows=progress.advance), {}
                _save(file, *found)
            else:
                progress.advance(len(rows))
            if embeddings is None:
                embeddings = np.empty((len(sequences), found[0].shape[1]), np.float32)
            embeddings[rows] = found[0]
        assert embeddings is not None
        return embeddings[which]

    def _entry(self, tower: str, inputs: Mapping[str, Any]) -> Path:
        key = {"version": VERSION, "tower": tower, "model": self.identity, "inputs": inputs}
        return self.folder / _hash_json(key)


def hash_pictures(pictures: Sequence[Readable]) -> str:
    """Hex sha256 over the bytes of all images in order, or over the error of an unreadable one."""

    def one(picture: Readable) -> bytes:
        try:
            return hashlib.sha256(picture.read()).digest()
        except ImageError as error:
            return hashlib.sha256(b"unreadable: " + str(error).encode()).digest()

    digest = hashlib.sha256()
    with ThreadPoolExecutor(8) as pool:  # hashing and reading release the GIL
        for part in pool.map(one, pictures):
            digest.update(part)
    return digest.hexdigest()


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _will_fail_again(encoder: Encoder, failed: Sequence[Readable]) -> bool:
    """Whether all failed images fail because of their bytes, which are part of the key.

    A momentary failure of a disk or network must not be cached.
    """
    if not failed:
        return True
    try:
        for picture in failed:
            picture.read()
    except ImageError:
        return False
    return len(encoder.embed_pictures(failed)[1]) == len(failed)


def _joined(parts: Sequence[Embeddings]) -> Embeddings:
    """Join chunks to one array; a chunk in which every image failed has no width of its own."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [p if p.shape[1] else np.full((len(p), width), np.nan, np.float32) for p in parts]
    )


def _save(file: Path, embeddings: Embeddings, failures: Mapping[int, str]) -> None:
    content = io.BytesIO()
    np.savez(
        content,
        embeddings=embeddings,
        failed_rows=np.array(sorted(failures), np.int64),
        reasons=np.array([failures[row] for row in sorted(failures)], np.str_),
    )
    digest = hashlib.sha256(content.getbuffer()).digest()
    try:
        with new_file(file) as partial:
            partial.write_bytes(digest + content.getbuffer())
    except (BundleError, OSError) as error:
        _not_kept(file.parent.parent, getattr(error.__cause__ or error, "strerror", None))


@cache
def _not_kept(folder: Path, reason: str | None) -> None:
    """Warn once that embeddings are not cached."""
    log.warning("%s: cannot be written (%s), so embeddings are not cached", folder, reason)


def _load(file: Path, rows: int) -> tuple[Embeddings, dict[int, str]] | None:
    """Read a chunk; None if it is missing or damaged, so that it is computed again."""
    try:
        if not file.is_file():
            return None
        content = file.read_bytes()
        if hashlib.sha256(memoryview(content)[_DIGEST:]).digest() != content[:_DIGEST]:
            raise ValueError("its hash is wrong")
        with np.load(io.BytesIO(content[_DIGEST:])) as arrays:
            embeddings = arrays["embeddings"]
            failed, reasons = arrays["failed_rows"].tolist(), arrays["reasons"].tolist()
    except (OSError, ValueError) as error:
        log.warning("%s: is damaged (%s) and is computed again", file, error)
        return None
    if embeddings.ndim != 2 or len(embeddings) != rows or embeddings.dtype != np.float32:
        log.warning("%s: has an unexpected shape and is computed again", file)
        return None
    return embeddings, dict(zip(failed, reasons, strict=True))
