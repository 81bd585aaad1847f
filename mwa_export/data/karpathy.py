"""Karpathy's JSON of COCO and Flickr30k."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

from mwa_export.data.fields import Groups, id_field, split_is_empty, text_field, unreadable
from mwa_export.data.test_set import RetrievalData
from mwa_export.errors import DataError
from mwa_export.inputs.pictures import Picture


def read_karpathy(
    path: Path, *, split: str | None = "test", images: Path | None = None
) -> RetrievalData:
    """Read one split of a Karpathy JSON. Whether the pictures exist is not looked at.

    Args:
        path: the JSON file.
        split: "test", "val", "train" or "restval"; None is "test".
        images: folder of the pictures; the file's own folder if not given.

    Raises:
        DataError: not such a file, an empty split, repeated ids, a picture without captions.
    """
    path = Path(path)
    root = path.parent if images is None else Path(images)
    split = "test" if split is None else split
    entries = _entries(path)
    groups = Groups(path)
    for number, entry in enumerate(entries):
        if entry["split"] == split:
            _add(groups, entry, root, f"{path}: images[{number}]")
    if entries and not groups.keys:
        raise split_is_empty(path, split, {entry["split"] for entry in entries})
    image_ids = [entry["imgid"] for entry in entries if entry["split"] == split]
    return groups.data(f"{path}, split {split}", image_ids)


def _add(groups: Groups, entry: dict[str, Any], root: Path, where: str) -> None:
    filename = text_field(entry.get("filename"), "`filename`", where)
    folder = entry.get("filepath") or ""  # Flickr30k has none
    if folder:
        folder = text_field(folder, "`filepath`", where)
    where = f"{where}, {filename}"
    image_id = id_field(entry.get("imgid"), "`imgid`", where)
    row = groups.add(image_id, Picture(root / folder / filename), where, what="`imgid`")
    sentences = entry.get("sentences")
    if not isinstance(sentences, list) or not all(isinstance(item, dict) for item in sentences):
        raise _not_karpathy(where, f"`sentences` is {reprlib.repr(sentences)}")
    groups.add_captions(
        row,
        [
            text_field(sentence.get("raw"), f"`raw` of sentence {n}", where)
            for n, sentence in enumerate(sentences)
        ],
    )


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        # Half of COCO's file are words of captions once more. Dropped while they are parsed.
        document = json.loads(path.read_bytes(), object_hook=_without_tokens)
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise _not_karpathy(str(path), str(error)) from error
    entries = document.get("images") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise _not_karpathy(str(path), "it has no list `images`")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("split"), str):
            raise _not_karpathy(str(path), f"images[{number}] has no `split`")
    return entries


def _without_tokens(value: dict[str, Any]) -> dict[str, Any]:
    value.pop("tokens", None)
    return value


def _not_karpathy(where: str, found: str) -> DataError:
    return DataError(
        f"{where}: is not a Karpathy JSON ({found}). Expected an object with `images`, each with "
        "`filename`, `split`, `imgid` and `sentences`, as dataset_coco.json has them."
    )
