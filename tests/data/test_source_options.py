"""Every source uses its options or refuses them before reading a row."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from embed_samples import png

from mwa_export.cli.flags import with_flags
from mwa_export.data.rows import Row
from mwa_export.data.sources import SourceOptions, open_sources
from mwa_export.errors import MwaExportError
from mwa_export.inputs.content import Kind

RECORDS = [{"image": f"{n}.png", "photo": f"{1 - n}.png", "caption": f"a {n}", "alt": f"b {n}",
            "key": f"k{n}", "note": n, "split": "xy"[n]} for n in range(2)]  # fmt: skip


def table(root: Path, name: str) -> Path:
    rows = [list(RECORDS[0]), *(map(str, record.values()) for record in RECORDS)]
    (root / name).write_text("".join(",".join(row) + "\n" for row in rows))
    return root / name


def lines(root: Path, name: str, records: list[dict[str, Any]]) -> Path:
    (root / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return root / name


def index(root: Path) -> Path:
    rows = [r | {"image_path": r["image"], "text_segment": r["caption"], "image_id": r["note"]}
            for r in RECORDS]  # fmt: skip
    for row in rows:
        del row["image"], row["caption"]
    return lines(root, "index.jsonl", rows)


def parquet(root: Path, name: str, **columns: Any) -> Path:
    import pyarrow
    import pyarrow.parquet

    named = {name: [record[name] for record in RECORDS] for name in RECORDS[0]}
    pyarrow.parquet.write_table(pyarrow.table(named | columns), root / name)
    return root / name


def tar(root: Path) -> Path:
    with tarfile.open(root / "t.tar", "w") as file:
        for n, record in enumerate(RECORDS):
            members = {"png": png(n), "side.png": png(1 - n), "json": json.dumps(record).encode()}
            for extension, data in members.items():
                info = tarfile.TarInfo(f"s{n}.{extension}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return root / "t.tar"


def karpathy(root: Path) -> Path:
    images = [{"filename": r["image"], "imgid": n, "split": r["split"],
               "sentences": [{"raw": r["caption"]}]} for n, r in enumerate(RECORDS)]  # fmt: skip
    (root / "k.json").write_text(json.dumps({"images": images}))
    return root / "k.json"


def listed(root: Path, name: str, text: str) -> Path:
    (root / name).write_text(text)
    return root / name


SOURCES: dict[str, tuple[tuple[Kind, ...], Callable[[Path], object]]] = {
    "folder": (("image", "text"), lambda root: root),
    "glob": (("image",), lambda root: f"{root}/*.png"),
    "picture": (("image",), lambda root: root / "0.png"),
    "list": (("image",), lambda root: listed(root, "list.txt", "0.png\n1.png\n")),
    "lines": (("text",), lambda root: listed(root, "lines.txt", "a 0\na 1\n")),
    "standard input": (("text",), lambda root: "-"),
    "CSV": (("image", "text"), lambda root: table(root, "t.csv")),
    "JSON lines": (("image", "text"), lambda root: lines(root, "t.jsonl", RECORDS)),
    "index": (("image", "text"), index),
    "Karpathy": (("image", "text"), karpathy),
    "Parquet of paths": (("image", "text"), lambda root: parquet(root, "p.parquet")),
    "Parquet of bytes": (
        ("image",),
        lambda root: parquet(root, "b.parquet", image=[png(0), png(1)], photo=[png(1), png(0)]),
    ),
    "tar": (("image", "text"), tar),
}
VALUES: dict[str, Any] = {"id_column": "key", "image_column": "photo", "text_column": "alt",
                          "columns": ("note",), "split": "y", "image_root": "other"}  # fmt: skip


def test_every_option_has_a_value_here() -> None:
    for_urls = {"timeout", "retries"}  # which any table may hold
    assert set(VALUES) == {option.name for option in fields(SourceOptions)} - for_urls


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder, first in ((tmp_path / "in", 0), (tmp_path / "other", 5)):
        folder.mkdir()
        for n in range(2):
            (folder / f"{n}.png").write_bytes(png(first + n))
            (folder / f"{n}.txt").write_text(f"a {n}")
    return tmp_path / "in"


def read(kind: Kind, spec: object, work: Path, **options: Any) -> list[Row]:
    images, texts = (str(spec), None) if kind == "image" else (None, str(spec))
    [source] = open_sources(images, texts, SourceOptions(**options))
    return list(source.rows(0, source.scan(work).rows))


def content(row: Row) -> object:
    return row.content if isinstance(row.content, str | bytes) else row.content.read()  # type: ignore[union-attr]


@pytest.mark.parametrize("option", VALUES)
@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, (kinds, _) in SOURCES.items() for kind in kinds]
)
def test_an_option_is_honoured_or_refused(
    name: str, kind: Kind, option: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a 0\na 1\n")))
    spec = SOURCES[name][1](root)
    value = str(tmp_path / "other") if option == "image_root" else VALUES[option]
    if name == "tar" and option == "image_column":
        value = "side.png"
    try:
        rows = read(kind, spec, tmp_path, **{option: value})
    except MwaExportError:
        return
    assert not [row.problem for row in rows if row.problem]
    texts = {"text_column": ["b 0", "b 1"], "split": ["a 1"]}
    seeds = {"image_column": [1, 0], "image_root": [5, 6], "split": [1]}
    expected: list[object] = list(texts.get(option, ["a 0", "a 1"]))
    if kind == "image":
        expected = [png(seed) for seed in seeds.get(option, [0, 1])]
    assert [content(row) for row in rows] == expected
    if option == "id_column":
        assert [row.id for row in rows] == ["k0", "k1"]
    if option == "columns":
        assert [[str(value) for value in row.columns] for row in rows] == [["0"], ["1"]]


HONOURED = [
    *((name, kind, option) for name in ("CSV", "JSON lines", "index", "tar", "Parquet of paths")
      for kind in ("image", "text") for option in ("id_column", "columns")),
    *((name, "image", "image_root") for name in ("CSV", "list", "Karpathy", "Parquet of paths")),
    *((name, "image", "image_column") for name in ("CSV", "tar", "Parquet of bytes")),
    *((name, "text", "text_column") for name in ("CSV", "tar", "Parquet of paths")),
    *((name, "text", "split") for name in ("CSV", "Karpathy", "JSON lines")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "option"), HONOURED)
def test_what_a_source_has_is_not_refused(
    name: str, kind: Kind, option: str, root: Path, tmp_path: Path
) -> None:
    value = str(tmp_path / "other") if option == "image_root" else VALUES[option]
    value = "side.png" if (name, option) == ("tar", "image_column") else value
    assert read(kind, SOURCES[name][1](root), tmp_path, **{option: value})


@pytest.mark.parametrize("option", ["id_column", "columns", "text_column", "image_column"])
def test_a_tar_without_what_is_named_says_what_it_has(
    option: str, root: Path, tmp_path: Path
) -> None:
    kind: Kind = "text" if option == "text_column" else "image"
    value = ("absent",) if option == "columns" else "absent"
    with pytest.raises(MwaExportError, match=r"no sample has absent.*have: .*png"):
        read(kind, tar(root), tmp_path, **{option: value})


def test_an_id_that_says_nothing_gives_the_number_and_objects_are_json(tmp_path: Path) -> None:
    given: list[Any] = ["", "  ", None, True, {"a": 1}, 7]
    records = [{"caption": "c", "key": value} for value in given]
    source = read("text", lines(tmp_path, "t.jsonl", records), tmp_path, id_column="key")
    assert [row.id for row in source] == ["0", "1", "2", "true", '{"a": 1}', "7"]


def test_a_column_that_is_named_twice_is_refused() -> None:
    with pytest.raises(MwaExportError, match="`columns=note,key,note`: expected each name once"):
        SourceOptions(columns=("note", "key", "note"))


def test_a_parquet_column_that_is_there_twice_is_one_error(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["title", "title"])
    pyarrow.parquet.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(MwaExportError, match="columns of the same name: title"):
        read("text", tmp_path / "t.parquet", tmp_path)


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("option", [{"columns": ("note",)}, {"id_column": "note"}])
@pytest.mark.parametrize("data", [b"{bad", b"[1]"])
def test_a_tar_sample_whose_json_is_needed_and_broken_fails(
    kind: Kind, option: dict[str, Any], data: bytes, tmp_path: Path
) -> None:
    members = {"a.txt": b"a", "a.png": png(0), "a.json": data}
    members |= {"b.txt": b"b", "b.png": png(1), "b.json": b'{"note": "n"}'}
    with tarfile.open(tmp_path / "t.tar", "w") as file:
        for name, held in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(held)
            file.addfile(info, io.BytesIO(held))
    bad, good = read(kind, tmp_path / "t.tar", tmp_path, **option)
    assert bad.problem is not None
    assert bad.problem.code == "malformed"
    assert good.problem is None


def test_what_a_file_calls_a_field_is_not_shown_as_a_flag(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [{"image": " "}, {"image": []}]
    rows = read("image", lines(tmp_path, "t.jsonl", records), tmp_path)
    assert rows[0].problem is not None
    assert rows[0].problem.code == "null"
    message = str(rows[1].problem)
    assert with_flags(message, "embed") == message
    assert '"image" is []' in message
    for option, flag in (("text_column", "--text-column"), ("id_column", "--id-column")):
        with pytest.raises(MwaExportError, match="has no columns") as caught:
            read("text", karpathy(tmp_path), tmp_path, **{option: "x"})
        assert flag in with_flags(str(caught.value), "embed")
