"""All commands read a record as the same rows: tables, indexes, JSON, tars."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from embed_samples import png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tar_files import tar_of

from mwa_export.cli.options import DataSet, data_options
from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.data.test_sets import DataOptions, parse_data, read_data
from mwa_export.errors import DataError, UsageError
from mwa_export.inputs.content import Kind

Rows = list[tuple[str, str]]
"""Each caption with the name of its picture."""

RED: Rows = [("red.png", "a red square")]

# The five tables of the plan that one of two families of readers rejected, and others like them.
TABLES: dict[str, tuple[str, str, Rows]] = {
    "semicolons, and a comma in a quoted heading": (
        "semicolon.csv",
        'image;caption;"tags, in order"\nred.png;a red square;"a, b"\n',
        RED,
    ),
    "a list of captions": (
        "captions.jsonl",
        '{"image": "red.png", "captions": ["a red square", "red"]}\n',
        [*RED, ("red.png", "red")],
    ),
    "a tab in a quoted heading": (
        "tab_heading.csv",
        '"image","caption","a\tb"\nred.png,a red square,1\n',
        RED,
    ),
    "column text": ("text_column.csv", "image,text\nred.png,a red square\n", RED),
    "column image_path": ("image_path.csv", "image_path,caption\nred.png,a red square\n", RED),
    "headings in odd case": (
        "case.tsv",
        "FILEPATH\tTitle\nred.png\ta red square\nblue.png\tblue; or so\n",
        [*RED, ("blue.png", "blue; or so")],
    ),
    "a byte order mark before a quoted heading": (
        "mark.csv",
        '\ufeff"Caption";"File_Name"\r\n"a ""red""\nsquare";red.png\r\n',
        [("red.png", 'a "red"\nsquare')],
    ),
    "one caption, a list, and null": (
        "mixed.ndjson",
        '{"Image": "red.png", "caption": "a"}\n\n'
        '{"Image": "blue.png", "caption": null, "captions": ["b", "c"]}\n',
        [("red.png", "a"), ("blue.png", "b"), ("blue.png", "c")],
    ),
    "an index of BEiT-3": (
        "index.jsonl",
        '{"image_path": "red.png", "text_segment": "a", "image_id": 3}\n'
        '{"image_path": "blue.png", "text_segment": "b", "image_id": 1}\n',
        [("red.png", "a"), ("blue.png", "b")],
    ),
    "Karpathy's JSON": (
        "karpathy.json",
        json.dumps(
            {"images": [{"filename": "red.png", "split": "test", "imgid": 0,
                         "sentences": [{"raw": "a"}, {"raw": "b"}]}]}
        ),
        [("red.png", "a"), ("red.png", "b")],
    ),
    "COCO's JSON": (
        "coco.json",
        json.dumps(
            {"images": [{"file_name": "red.png", "id": 7}, {"file_name": "blue.png", "id": 5}],
             "annotations": [{"image_id": 5, "caption": "b"}, {"image_id": 7, "caption": "a"}]}
        ),
        [("red.png", "a"), ("blue.png", "b")],
    ),
}  # fmt: skip


def by_a_test_set(path: str) -> Rows:
    """As the library reads `compare_models(..., data=PATH)`."""
    data = read_data(path)
    names = dict(zip(data.image_ids.tolist(), (p.name for p in data.pictures), strict=True))
    return [
        (names[owner], str(caption))
        for owner, caption in zip(data.caption_image_ids.tolist(), data.captions, strict=True)
    ]


def by_the_options(flag: str) -> Callable[[str], Rows]:
    """As `parity`, `bench`, `quantize` and `trt` read what follows the flag."""

    def read(path: str) -> Rows:
        found: Rows = []

        @click.command()
        @data_options("help", held_back="help")
        def command(data: DataSet, held_back: DataSet) -> None:
            for given_set in (data, held_back):
                if (test_set := given_set.read()) is not None:
                    assert given_set.path is not None
                    found.extend(by_a_test_set(given_set.path))
                    assert len(test_set.captions) == len(found)

        done = CliRunner().invoke(command, [flag, path], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return found

    return read


def parsed(arguments: list[str]) -> dict[str, DataSet]:
    """What a command with both sets gets."""
    found: dict[str, DataSet] = {}

    @click.command()
    @data_options("help", held_back="help")
    def command(**sets: DataSet) -> None:
        found.update(sets)

    command.main(arguments, standalone_mode=False)
    return found


def test_the_columns_are_those_of_both_sets_and_the_split_is_of_one() -> None:
    columns = ["--image-column", "a", "--caption-column", "b", "--max-excluded", "2"]
    one = ["--data", "x", "--split", "s", "--images", "i"]
    other = ["--held-back", "y", "--held-back-split", "t", "--held-back-images", "j"]
    sets = parsed([*columns, *one, *other])
    expected = {"data": ("x", "s", "i"), "held_back": ("y", "t", "j")}
    for name, (path, split, images) in expected.items():
        assert sets[name].path == path
        options = DataOptions(**sets[name].how)
        assert options == DataOptions("a", "b", None, split, images, 2)


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--images", "x"], "--data"),
        (["--held-back", "x", "--split", "y"], "--data"),
        (["--data", "x", "--held-back-split", "y"], "--held-back"),
        (["--caption-column", "x"], "--data"),
    ],
)
def test_options_of_a_set_that_is_not_there_are_refused(arguments: list[str], flag: str) -> None:
    with pytest.raises(UsageError, match=f"{flag} .* without it"):
        parsed(arguments)


def by_embed(path: str, tmp_path: Path) -> tuple[set[str], list[str]]:
    """Pictures and texts as `embed` reads them."""
    found: dict[str, list[str]] = {}
    kinds: tuple[Kind, ...] = ("image", "text")
    for kind in kinds:
        source = open_source(kind, path, SourceOptions())
        rows = list(source.rows(0, source.scan(tmp_path / kind).rows))
        assert not [row.problem for row in rows if row.problem]
        found[kind] = [r.content if isinstance(r.content, str) else r.content.name for r in rows]  # type: ignore[union-attr]
    return set(found["image"]), found["text"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with both pictures."""
    for seed, name in enumerate(("red.png", "blue.png")):
        (tmp_path / name).write_bytes(png(seed))
    return tmp_path


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("interface", ["library", "--data", "--held-back", "embed"])
def test_every_interface_reads_the_same_rows(name: str, interface: str, folder: Path) -> None:
    file, content, rows = TABLES[name]
    path = folder / file
    path.write_bytes(content.encode())
    if interface == "embed":
        pictures, texts = by_embed(str(path), folder / "work")
        assert (pictures, texts) == ({picture for picture, _ in rows}, [text for _, text in rows])
    else:
        read = by_a_test_set if interface == "library" else by_the_options(interface)
        assert read(str(path)) == rows


@pytest.fixture
def memory() -> Iterator[Callable[[str, bytes], str]]:
    """Write files that fsspec keeps in memory; gives their addresses."""
    import fsspec

    system = fsspec.filesystem("memory")

    def write(name: str, data: bytes) -> str:
        system.pipe_file(f"/same/{name}", data)
        return f"memory://same/{name}"

    yield write
    system.rm("/same", recursive=True)


@pytest.mark.parametrize("name", TABLES)
def test_every_interface_reads_the_same_rows_remotely(
    name: str, memory: Callable[[str, bytes], str], tmp_path: Path
) -> None:
    file, content, rows = TABLES[name]
    for seed, picture in enumerate(("red.png", "blue.png")):
        memory(picture, png(seed))
    url = memory(file, content.encode())
    assert by_a_test_set(url) == rows
    assert by_the_options("--data")(url) == rows
    data = read_data(url)
    assert data.pictures[0].read() == png(0)
    assert str(data.pictures[0]) == "memory://same/red.png"
    pictures, texts = by_embed(url, tmp_path)
    assert (pictures, texts) == ({picture for picture, _ in rows}, [text for _, text in rows])


def parquet(path: Path, **columns: list[object]) -> str:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return str(path)


def test_parquet_with_lists_of_captions_is_read_by_all(folder: Path) -> None:
    captions: list[object] = [["a"], ["b", "c"], ["d"]]
    names: list[object] = ["red.png", "blue.png", "red.png"]
    path = parquet(folder / "t.parquet", Path=names, Captions=captions)
    data = read_data(path)
    assert data.captions == ("a", "b", "c", "d")
    assert data.caption_image_ids.tolist() == [0, 1, 1, 0]
    images: list[object] = [png(n) for n in range(3)]
    path = parquet(folder / "p.parquet", image=images, text=captions)
    data = read_data(path)
    assert [picture.read() for picture in data.pictures] == images
    assert data.caption_image_ids.tolist() == [0, 1, 1, 2]
    source = open_source("text", path, SourceOptions())
    assert source.scan(folder).rows == 4
    for start in range(4):
        found = [(row.id, row.content) for row in source.rows(start, 4)]
        assert found == [("0", "a"), ("1#0", "b"), ("1#1", "c"), ("2", "d")][start:]


def test_members_of_a_sample_may_lie_apart(
    memory: Callable[[str, bytes], str], tmp_path: Path
) -> None:
    members = {"a.png": png(1), "b.png": png(2), "b.txt": b"two\n2", "a.json": b'{"captions": "1"}'}
    path = tmp_path / "t.tar"
    path.write_bytes(tar_of(members))
    for spec in str(path), memory("t.tar", tar_of(members)):
        data = read_data(spec)
        assert data.captions == ("1", "two", "2")
        assert [picture.read() for picture in data.pictures] == [png(1), png(2)]
        assert by_embed(spec, tmp_path / "work") == ({"a.png", "b.png"}, ["1", "two", "2"])


def test_a_folder_of_tars_may_be_remote(memory: Callable[[str, bytes], str]) -> None:
    for n in range(2):
        memory(f"set/{n}.tar", tar_of({f"{n}.png": png(n), f"{n}.txt": b"text %d" % n}))
    assert read_data("memory://same/set").captions == ("text 0", "text 1")
    assert read_data("memory://same/set/{0..1}.tar").captions == ("text 0", "text 1")
    with pytest.raises(DataError, match="no such file or folder"):
        read_data("memory://same/absent.csv")


def test_token_ids_of_an_index_are_captions_everywhere(folder: Path) -> None:
    path = folder / "index.jsonl"
    lines = [{"image_path": "red.png", "text_segment": [9, 7], "image_id": n} for n in range(2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_data(path).captions == ((9, 7), (9, 7))
    source = open_source("text", str(path), SourceOptions(columns=("image_id",)))
    rows = list(source.rows(0, source.scan(folder).rows))
    assert [(row.id, row.content, row.columns) for row in rows] == [
        ("0", (9, 7), (0,)),
        ("1", (9, 7), (1,)),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"image": "red.png", "caption": "a", "captions": ["b"]}', '"captions"'),
        ("t.jsonl", '{"image": "red.png", "captions": []}', '"captions" is an empty list'),
        ("t.csv", "image,text\nred.png,a,b\n", "has 3 fields"),
        ("k.json", '{"images": [], "annotations": [{"image_id": 2}]}', "2, which is not listed"),
    ],
)
def test_what_a_test_set_refuses_is_a_failed_row(
    folder: Path, name: str, content: str, message: str
) -> None:
    path = folder / name
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_data(path)
    source = open_source("text", str(path), SourceOptions())
    [row] = source.rows(0, source.scan(folder).rows)
    assert row.problem is not None
    assert message in row.problem.reason


def test_texts_that_differ_within_a_sample_are_one_failed_row(tmp_path: Path) -> None:
    members = {"a.png": png(1), "a.txt": b"one", "a.json": b'{"caption": "two"}'}
    (tmp_path / "t.tar").write_bytes(tar_of(members))
    with pytest.raises(DataError, match="differ"):
        read_data(tmp_path / "t.tar")
    source = open_source("text", str(tmp_path / "t.tar"), SourceOptions())
    [row] = source.rows(0, source.scan(tmp_path).rows)
    assert row.problem is not None
    assert "differ" in row.problem.reason


@pytest.mark.parametrize("split", ["a", "b"])
def test_a_split_is_the_same_rows_for_all(folder: Path, split: str) -> None:
    path = folder / "t.csv"
    path.write_text("image,text,Split\nred.png,one,a\nblue.png,two,b\nred.png,three,a\n")
    expected = ["one", "three"] if split == "a" else ["two"]
    assert read_data(path, DataOptions(split=split)).captions == tuple(expected)
    source = open_source("text", str(path), SourceOptions(split=split))
    assert [row.content for row in source.rows(0, source.scan(folder).rows)] == expected
    with pytest.raises(DataError, match=r"nothing in split 'c'\. It has: a, b"):
        open_source("text", str(path), SourceOptions(split="c")).scan(folder)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
            .filter(str.strip),
            min_size=2, max_size=2,
        ),
        min_size=1, max_size=5,
    ),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["image", "Path", "URL"]),
    st.sampled_from(["text", "CAPTION"]),
)  # fmt: skip
def test_any_table_gives_the_texts_that_were_written(
    tmp_path: Path, rows: list[list[str]], delimiter: str, image: str, caption: str
) -> None:
    path = tmp_path / "any.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([[image, "a,b;c\td", caption], *([p, "x", text] for p, text in rows)])
    texts = [text for _, text in rows]
    source = open_source("text", str(path), SourceOptions())
    assert [row.content for row in source.rows(0, source.scan(tmp_path).rows)] == texts
    data = parse_data(path)
    assert data.captions == tuple(texts)
