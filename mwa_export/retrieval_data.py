"""A retrieval test set: which pictures, which captions, and what belongs together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import DataError


@dataclass(frozen=True, slots=True)
class RetrievalData:
    """Pictures and captions of one split, in the order of the file."""

    image_ids: NDArray[np.int64]  # (n_image,), unique
    image_paths: tuple[Path, ...]  # n_image
    captions: tuple[str, ...]  # n_text
    caption_image_ids: NDArray[np.int64]  # (n_text,)


def read_karpathy(path: Path, *, split: str = "test", images: Path | None = None) -> RetrievalData:
    """Read a Karpathy JSON, as COCO and Flickr30k have it.

    Args:
        path: the JSON file.
        split: "test", "val", "train" or "restval".
        images: folder of the pictures; the file's own folder if not given.

    Raises:
        DataError: not such a file, an empty split, repeated ids, a picture without captions or
            missing on disk. Never a silently smaller test set.
    """
    root = Path(path).parent if images is None else images
    entries = [entry for entry in _entries(path) if entry["split"] == split]
    if not entries:
        splits = sorted({str(entry["split"]) for entry in _entries(path)})
        raise DataError(f"{path}: has no pictures in split {split!r}. It has: {', '.join(splits)}.")
    ids, paths, captions, owners = [], [], [], []
    for entry in entries:
        file = root / entry.get("filepath", "") / entry["filename"]
        texts = [sentence["raw"] for sentence in entry["sentences"]]
        if not texts:
            raise DataError(f"{path}: {entry['filename']} has no captions.")
        ids.append(entry["imgid"])
        paths.append(file)
        captions += texts
        owners += [entry["imgid"]] * len(texts)
    if len(set(ids)) != len(ids):
        raise DataError(f"{path}: {len(ids) - len(set(ids))} imgid values occur more than once.")
    missing = [file for file in paths if not file.is_file()]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(paths)} pictures are missing, the first is "
            f"{missing[0]}. Give the right picture folder."
        )
    return RetrievalData(
        np.asarray(ids, np.int64), tuple(paths), tuple(captions), np.asarray(owners, np.int64)
    )


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))["images"]
        for entry in entries:
            entry["split"], entry["filename"], entry["imgid"], entry["sentences"]
        return entries
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: is not a Karpathy JSON ({error!r}). Expected an object with `images`, each "
            "with `filename`, `split`, `imgid` and `sentences`."
        ) from error
