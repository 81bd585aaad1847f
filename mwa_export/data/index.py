"""Read the JSON lines index files that BEiT-3's scripts write, with one line per caption."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mwa_export.data.fields import (
    MAX_ID,
    Columns,
    Fields,
    Record,
    has_caption,
    id_field,
    text_field,
)
from mwa_export.inputs.content import Caption, Kind, Problem
from mwa_export.inputs.tokenizer import BOS, EOS


@dataclass(frozen=True)
class IndexFields(Fields):
    """The fields `image_path`, `image_id` and `text_segment`, which is a text or its token ids."""

    shared: dict[int, int] = field(default_factory=dict)  # interned token ids, to save memory

    def record(self, values: Mapping[str, Any], where: str) -> Record:
        """Make the record of a line."""
        image_id = id_field(values.get("image_id"), '"image_id"')
        return super().record(values, where)._replace(image_id=image_id)

    def captions_of(self, values: Mapping[str, Any]) -> tuple[Caption | Problem, ...]:
        """Return the caption of a line."""
        return (self._caption(values),) if self.captions else ()

    def _caption(self, values: Mapping[str, Any]) -> Caption | Problem:
        value = values.get("text_segment")
        if value is None:
            return Problem(
                "null",
                f"{values.get('image_path')} is an image without a caption (no "
                '"text_segment"). Expected a retrieval index with texts or token ids.',
            )
        if not isinstance(value, list):
            return text_field(value, '"text_segment"')
        if not value:
            return Problem("empty-text", '"text_segment" is blank. Fill it in or remove the line.')
        # Check all tokens at once for speed, and one by one only to name the wrong one.
        if set(map(type, value)) != {int} or min(value) < 0 or max(value) > MAX_ID:
            ids = (id_field(item, 'a token of "text_segment"') for item in value)
            return next(item for item in ids if isinstance(item, Problem))
        if value[0] == BOS and value[-1] == EOS:
            return Problem(
                "malformed",
                f'"text_segment" starts with BOS ({BOS}) and ends with EOS ({EOS}). Expected token '
                "ids without them, because BEiT-3 adds them. Remove them.",
            )
        return tuple(map(self.shared.setdefault, value, value))


def index_fields(
    values: Mapping[str, Any],
    there: Collection[str],
    columns: Columns,
    kinds: tuple[Kind, ...],
    where: str,
) -> IndexFields | None:
    """Return the fields of a BEiT-3 index; None if the file is another table.

    Args:
        values: the first line.
        there: names of all fields in the first lines.
        columns: the user's names of columns.
        kinds: what the records need.
        where: the file and line, for messages.
    """
    pair = {"image_path", "image_id"} <= values.keys() and not has_caption(values)
    if columns.image or columns.caption or not ("text_segment" in values or pair):
        return None
    found = replace(columns, image="image_path").find(there, ("image",), where)
    return IndexFields(
        image="image_path" if "image" in kinds else None,
        captions=("text_segment",) if "text" in kinds else (),
        id=found.id,
        carried=found.carried,
    )
