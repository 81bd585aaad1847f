"""Read the JSON files of COCO and Flickr30k: Karpathy's, with splits, and COCO's own."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mwa_export.data.compressed import open_plain
from mwa_export.data.fields import Record, escaped, id_field, text_field
from mwa_export.data.files import readable, unreadable
from mwa_export.errors import DataError
from mwa_export.inputs.content import Caption, Problem


@dataclass(frozen=True, slots=True)
class KarpathyReader:
    """Reads Karpathy's or COCO's JSON of images and captions. The file is parsed in memory.

    An image's key is its file name. Its captions are its `sentences`, or the `annotations` with
    its `id`. An annotation of an unlisted image is a record without an image.
    """

    name: str
    root: str

    def records(self) -> Iterator[Record]:
        """Yield every image, then the annotations of unlisted images."""
        document = self._document()
        captions: dict[object, list[object]] = {}
        annotations = document.get("annotations")
        for item in annotations if isinstance(annotations, list) else ():
            if isinstance(item, dict):
                captions.setdefault(str(item.get("image_id")), []).append(item.get("caption"))
        for number, entry in enumerate(document["images"]):
            where = f"{readable(self.name)}: images[{number}]"
            if isinstance(entry, dict):
                yield _record(entry, captions.pop(str(entry.get("id")), []), number, where)
            else:
                yield Record(where, problem=_not_karpathy(f"it is {reprlib.repr(entry)}"))
        for image_id, orphans in captions.items():
            reason = f"the annotation belongs to image {image_id}, which is not listed."
            problem = Problem("malformed", reason)
            where = f"{readable(self.name)}: annotations"
            key = escaped(f"annotations of {image_id}")
            yield Record(where, None, (problem,) * len(orphans), key, numbered=True)

    def _document(self) -> dict[str, Any]:
        try:
            with open_plain(self.name) as file:
                # Half of COCO's file repeats the captions as tokens, which are dropped here.
                document = json.loads(file.read(), object_hook=_without_tokens)
        except OSError as error:
            raise unreadable(self.name, error) from error
        except MemoryError as error:
            raise DataError(f"{readable(self.name)}: does not fit in memory.") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{readable(self.name)}: {_not_karpathy(error).reason}") from error
        if not isinstance(document, dict) or not isinstance(document.get("images"), list):
            problem = _not_karpathy('"images" is missing or not a list')
            raise DataError(f"{readable(self.name)}: {problem.reason}")
        return document


def _record(entry: dict[str, Any], captions: list[object], number: int, where: str) -> Record:
    key, file_name = f"images[{number}]", entry.get("filename") or entry.get("file_name")
    if isinstance(file_name, str):
        key, where = escaped(file_name), f"{where}, {escaped(file_name)}"
    split = entry.get("split")
    name = "id" if "id" in entry and "imgid" not in entry else "imgid"
    return Record(
        where,
        _path(entry.get("filepath") or "", file_name),  # Flickr30k has no folder
        _captions(entry, captions),
        key,
        id_field(entry.get(name), f'"{name}"'),
        split if isinstance(split, str) else None,
        numbered=True,
    )


def _path(folder: object, file_name: object) -> str | Problem:
    for name, value in (("filename", file_name), ("filepath", folder)):
        if not isinstance(value, str) or (name == "filename" and not value.strip()):
            found = "missing" if value is None else reprlib.repr(value)
            return Problem("malformed", f'"{name}" is {found}. Expected a name.')
    return os.path.join(str(folder), str(file_name))


def _captions(entry: dict[str, Any], annotated: list[object]) -> tuple[Caption | Problem, ...]:
    sentences = entry.get("sentences")
    if sentences is None:
        return tuple(text_field(text, 'its "caption"') for text in annotated)
    if not isinstance(sentences, list):
        return (_not_karpathy(f'"sentences" is {reprlib.repr(sentences)}'),)
    return tuple(
        text_field(sentence.get("raw"), f'"raw" of sentence {n}')
        if isinstance(sentence, dict)
        else _not_karpathy(f'"sentences"[{n}] is {reprlib.repr(sentence)}')
        for n, sentence in enumerate(sentences)
    )


def _without_tokens(value: dict[str, Any]) -> dict[str, Any]:
    value.pop("tokens", None)
    return value


def _not_karpathy(found: object) -> Problem:
    return Problem(
        "malformed",
        f'is not a Karpathy JSON ({found}). Expected an object with "images", each with '
        '"filename", "split", "imgid" and "sentences", as in dataset_coco.json.',
    )
