"""The JSON lines indexes that BEiT-3's own scripts write: one line per caption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mwa_export.data.fields import MAX_ID, Groups, id_field, json_rows, text_field
from mwa_export.data.test_set import RetrievalData
from mwa_export.errors import DataError
from mwa_export.inputs.content import Caption
from mwa_export.inputs.pictures import Picture
from mwa_export.inputs.tokenizer import BOS, EOS


def read_index(path: Path, *, images: Path | None = None) -> RetrievalData:
    """Read an index of BEiT-3. Whether the pictures exist is not looked at.

    Each line has `image_path`, `image_id` and `text_segment`, a text or its token ids.

    Args:
        path: the `.jsonl` file, which is one split.
        images: folder of the pictures; the file's own folder if not given.

    Raises:
        DataError: not such a file, an image without captions, an id with two pictures.
    """
    path = Path(path)
    root = path.parent if images is None else Path(images)
    groups = Groups(path)
    image_ids: dict[int, None] = {}  # ordered
    shared: dict[int, int] = {}
    for where, record in json_rows(path):
        image_id = id_field(record.get("image_id"), "`image_id`", where)
        name = text_field(record.get("image_path"), "`image_path`", where)
        row = groups.find_or_add(image_id, Picture(root / name), where, what="`image_id`")
        image_ids[image_id] = None
        groups.add_captions(row, [_caption(record, shared, where)])
    return groups.data(str(path), list(image_ids))


def _caption(record: dict[str, Any], shared: dict[int, int], where: str) -> Caption:
    value = record.get("text_segment")
    if value is None:
        raise DataError(
            f"{where}: {record['image_path']} is an image without captions: it has no "
            "`text_segment`. Expected an index for retrieval, with a text or token ids."
        )
    if not isinstance(value, list):
        return text_field(value, "`text_segment`", where)
    if not value:
        raise DataError(f"{where}: `text_segment` is blank. Fill it in or remove the line.")
    # All at once, as there are millions of tokens; one by one only to name the wrong one.
    if set(map(type, value)) != {int} or min(value) < 0 or max(value) > MAX_ID:
        for item in value:
            id_field(item, "a token of `text_segment`", where)
    if value[0] == BOS and value[-1] == EOS:
        raise DataError(
            f"{where}: `text_segment` has BOS and EOS ({BOS} and {EOS}) around it. Expected token "
            "ids without them, as BEiT-3 adds them when it reads. Remove them."
        )
    # And few of them differ: keep each int once.
    return tuple(map(shared.setdefault, value, value))
