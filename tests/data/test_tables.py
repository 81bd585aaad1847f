"""Rows of a table are captions; quotes, delimiters and encodings lose none."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mwa_export.data.fields import Columns
from mwa_export.data.tables import TableReader
from mwa_export.data.test_sets import DataOptions, parse_data
from mwa_export.errors import DataError


def write(folder: Path, content: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


def write_json(folder: Path, rows: list[Any]) -> Path:
    return write(folder, "".join(json.dumps(row) + "\n" for row in rows), "table.jsonl")


def test_repeated_images_are_one_picture_with_uneven_captions(tmp_path: Path) -> None:
    data = parse_data(write(tmp_path, "image,caption\nb.jpg,one\na.jpg,two\n./b.jpg,three\n"))
    assert [str(p) for p in data.pictures] == [
        str(path) for path in (tmp_path / "b.jpg", tmp_path / "a.jpg")
    ]
    assert data.image_ids.tolist() == [0, 1]
    assert data.captions == ("one", "two", "three")
    assert data.caption_image_ids.tolist() == [0, 1, 0]


def test_pictures_may_lie_elsewhere_or_have_absolute_paths(tmp_path: Path) -> None:
    absolute = str(tmp_path / "b.jpg")
    path = write(tmp_path, f"image,caption\na.jpg,one\n{absolute},two\n")
    (other := tmp_path / "other").mkdir()
    data = parse_data(path, DataOptions(images=other))
    assert [str(p) for p in data.pictures] == [str(tmp_path / "other" / "a.jpg"), absolute]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_quotes_newlines_and_marks_are_understood(
    tmp_path: Path, mark: str, delimiter: str, end: str
) -> None:
    caption = 'a, "b"; c\td\ne'
    table = io.StringIO()
    writer = csv.writer(table, delimiter=delimiter, lineterminator=end)
    writer.writerows([["id", " caption ", "image"], ["x", caption, "1.jpg"], [], ["y", "z", "2"]])
    data = parse_data(write(tmp_path, mark + table.getvalue()))
    assert data.captions == (caption, "z")


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
)
@example(["\x85", "a\u2028b", "\r"])
def test_every_caption_survives_csv_or_is_refused_as_blank(
    tmp_path_factory: pytest.TempPathFactory, captions: list[str]
) -> None:
    table = io.StringIO()
    writer = csv.writer(table, quoting=csv.QUOTE_ALL)
    writer.writerows([["image", "caption"], *(["a.jpg", caption] for caption in captions)])
    path = write(tmp_path_factory.getbasetemp(), table.getvalue())
    if captions and all(caption.strip() for caption in captions):
        assert parse_data(path).captions == tuple(captions)
    else:
        with pytest.raises(DataError, match=r"blank|has no images"):
            parse_data(path)


@pytest.mark.parametrize(
    ("name", "header", "row"),
    [
        ("t.csv", 'image;caption;"size, in cm"', 'a;b;"1,5"'),
        ("t.csv", "image;caption;notes, sources, more, of, these", "a;b;c"),
        ("t.csv", '"image","caption","a\tb;c"', "a,b,1"),
        ("t.csv", 'image,caption,5" pipe', "a,b,1"),
        ("t.csv", '"two\nlines;",image,caption', "1,a,b"),
        ("t.tsv", "image,caption\timage\tcaption", "1\ta\tb"),
        ("t.csv", "image,caption\timage,caption", "a,1,b"),
    ],
)
def test_the_delimiter_is_the_one_that_finds_the_columns(
    tmp_path: Path, name: str, header: str, row: str
) -> None:
    data = parse_data(write(tmp_path, f"{header}\n{row}\n", name))
    assert [str(picture) for picture in data.pictures] == [str(tmp_path / "a")]
    assert data.captions == ("b",)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_excel_saves_is_read(tmp_path: Path, end: str, encoding: str) -> None:
    path = tmp_path / "t.tsv"
    rows = ["Image\tCaption", "a\tein Käfer", 'b\t"two\rlines"', ""]
    path.write_bytes(end.join(rows).encode(encoding))
    assert parse_data(path).captions == ("ein Käfer", "two\rlines")


def test_nothing_behind_a_cell_above_the_limit_of_csv_is_lost(tmp_path: Path) -> None:
    long = "line, of text\n" * 11_000
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], ["a", "x"], ["b", long], ["c", "y"]])
    assert parse_data(path).captions == ("x", long, "y")
    heading = "n" * 140_000
    assert parse_data(write(tmp_path, f"image,caption,{heading}\na,b,1\n")).captions == ("b",)


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_cell_that_is_too_long_costs_its_own_row_only(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mwa_export.data.tables.MAX_LINE", 1000)
    before = csv.field_size_limit(1000)
    long = f"line, of text{end}" * 110
    path = write(tmp_path, f'text\nx\n"{long}"\ny\n{"z" * 1001}\nlast\n')
    try:
        reader = TableReader(str(path), "", Columns(), ("text",))
        found = [(r.captions, r.problem and r.problem.code) for r in reader.records()]
    finally:
        csv.field_size_limit(before)
    bad = ((), "malformed")
    assert found == [(("x",), None), bad, (("y",), None), bad, (("last",), None)]


@pytest.mark.parametrize(
    ("image", "caption"),
    [("IMAGE", "Caption"), ("FILEPATH", "Title"), ("File_Name", "TEXT"), ("Path", "captions"),
     ("URL", "caption"), ("image_path", "title"), (" filename ", "Text ")],
)  # fmt: skip
def test_usual_columns_are_found_without_regard_to_case(
    tmp_path: Path, image: str, caption: str
) -> None:
    data = parse_data(write(tmp_path, f"no,{caption},{image}\n1,b,a\n"))
    assert (data.captions, data.pictures[0].name) == (("b",), "a")


def test_the_first_of_several_usual_columns_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "title,text,caption,path,image\nt,x,c,p,i\n")
    data = parse_data(path)
    assert (data.captions, data.pictures[0].name) == (("c",), "i")
    data = parse_data(path, DataOptions("Path", "TITLE"))
    assert (data.captions, data.pictures[0].name) == (("t",), "p")


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path, "file_name,text,number\na.jpg,one,7\nb.jpg,two,3\na.jpg,three,7\n")
    data = parse_data(path, DataOptions("file_name", "text", "number"))
    assert data.captions == ("one", "two", "three")
    assert data.image_ids.tolist() == [7, 3]
    assert data.caption_image_ids.tolist() == [7, 3, 7]


@pytest.mark.parametrize("ids", [["x", "9"], ["07", "7"], ["-1", "2"], ["٣", "2"], ["9" * 19, "1"]])
def test_ids_that_are_no_plain_integers_are_numbered_by_first_occurrence(
    tmp_path: Path, ids: list[str]
) -> None:
    rows = "".join(f"{n}.jpg,c,{key}\n" for n, key in enumerate(ids))
    path = write(tmp_path, "image,caption,id\n" + rows)
    assert parse_data(path, DataOptions(image_id_column="id")).image_ids.tolist() == [0, 1]


def test_json_rows_may_hold_one_caption_or_a_list(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "caption": "one", "id": 5, "captions": None},
        {"image": "b.jpg", "captions": ["two", "three"], "id": "6"},
        {"image": "a.jpg", "caption": ["four"], "id": "5"},
    ]
    data = parse_data(write_json(tmp_path, rows), DataOptions(image_id_column="id"))
    assert data.captions == ("one", "two", "three", "four")
    assert data.image_ids.tolist() == [5, 6]
    assert data.caption_image_ids.tolist() == [5, 6, 6, 5]


def test_a_split_column_is_used_only_when_a_split_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "image,caption,split\na,one,val\nb,two,test\nc,,train\n")
    data = parse_data(path, DataOptions(split="test"))
    assert data.captions == ("two",)
    assert data.name == f"{path}, split test"
    with pytest.raises(DataError, match='csv:4: "caption" is blank'):
        parse_data(path)
    with pytest.raises(DataError, match=r"nothing in split 'dev'\. It has: test, train, val"):
        parse_data(path, DataOptions(split="dev"))


def test_several_splits_are_never_read_as_one_set(tmp_path: Path) -> None:
    path = write(tmp_path, "image,caption,split\na,one,val\nb,two,test\n")
    with pytest.raises(DataError, match=r"has the splits test, val\. Pass one of them"):
        parse_data(path)
    path = write(tmp_path, "image,caption,split\na,one,test\nb,two,test\n")
    assert len(parse_data(path).captions) == 2


def test_a_split_needs_its_column(tmp_path: Path) -> None:
    path = write(tmp_path, "image,caption\na,one\n")
    with pytest.raises(DataError, match=r"csv:2: has no splits.*Leave `split` out"):
        parse_data(path, DataOptions(split="test"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "csv:1: is blank. Expected a header"),
        ("\n\n", "csv:1: is blank. Expected a header"),
        ("image,caption\n", "has no images"),
        ("file,caption\na,b\n", r"no column for images \(image, .*\)\. It has: file, caption\."),
        ("image,words\na,b\n", r"no column for captions \(caption, .*\)\. It has: image, words\."),
        ("x,y\na,b\n", r"no column for images \(.*\), for captions \(.*\)\. It has: x, y"),
        ("image,caption,image\na,b,c\n", "columns of the same name: image"),
        ("image,caption\na,b\na, b, c\n", "csv:3: has 3 fields.*Expected 2.*quotes"),
        ("image,caption\na\n", "csv:2: has 1 fields"),
        ("image,caption\na, \n", 'csv:2: "caption" is blank'),
        ("image,caption\na,b\n,c\n", 'csv:3: "image" is blank'),
        ('image,caption\na,"b\nc"\na, \n', 'csv:4: "caption" is blank'),
        ('image,caption\na,"b\nc,d\n', "csv:2: is not valid CSV.*a quote in lines 2 to 3"),
        ('image,caption\na,"b" c\n', "csv:2: is not valid CSV.*double"),
        ('"image,caption\n', "csv:1: is not valid CSV"),
    ],
)
def test_malformed_csv_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=f"(?s){message}"):
        parse_data(write(tmp_path, content))


def test_a_quote_that_is_never_closed_costs_its_line_only(tmp_path: Path) -> None:
    path = write(tmp_path, 'text\nx\n"open\ny\na "" b\nz\n"again\n')
    found = list(TableReader(str(path), "", Columns(), ("text",)).records())
    assert [r.captions for r in found] == [("x",), (), ("y",), ('a "" b',), ("z",), ()]
    assert "a quote in lines 3 to 7" in found[1].problem.reason  # type: ignore[union-attr]


def test_a_text_with_nul_costs_its_row_only(tmp_path: Path) -> None:
    path = write(tmp_path, 'text\na\nb\0\n"c\0\nd"\ne\n')
    found = [r.captions for r in TableReader(str(path), "", Columns(), ("text",)).records()]
    assert [found[0], found[3]] == [("a",), ("e",)]
    assert [problem.code for [problem] in found[1:3]] == ["not-text"] * 2  # type: ignore[union-attr]


def test_a_field_of_json_lines_may_be_in_some_objects_only(tmp_path: Path) -> None:
    path = write_json(tmp_path, [{"text": "a"}, {"text": "b", "tag": 1}, {"text": "c"}])
    found = TableReader(str(path), "", Columns(carried=("tag",)), ("text",)).records()
    assert [record.columns for record in found] == [(None,), (1,), (None,)]
    with pytest.raises(DataError, match="has no column other"):
        list(TableReader(str(path), "", Columns(carried=("other",)), ("text",)).records())


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes("image,caption\na,b\na,é\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"csv:3: \"caption\" is not UTF-8.*Save the file as UTF-8"):
        parse_data(path)
    path.write_bytes("image,caption\na,b\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"csv: has no column for images"):
        parse_data(path)
    with pytest.raises(DataError, match=r"absent\.csv: no such file"):
        parse_data(tmp_path / "absent.csv")


def test_ids_and_pictures_belong_together_one_to_one(tmp_path: Path) -> None:
    options = DataOptions(image_id_column="id")
    path = write(tmp_path, "image,caption,id\na,x,1\nb,y,1\n")
    with pytest.raises(DataError, match=r"csv:3: the id 1 is .*b, but at .*csv:2 it is .*a\."):
        parse_data(path, options)
    path = write(tmp_path, "image,caption,id\na,x,1\na,y,2\n")
    with pytest.raises(DataError, match=r"csv:3: .*a has the id 2, but 1 in an earlier"):
        parse_data(path, options)
    with pytest.raises(DataError, match=r"no column number. It has"):
        parse_data(path, DataOptions(image_id_column="number"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"image": "b"},
            r"jsonl:2: has no \"caption\". It has: image\.",
        ),
        ({"caption": "c"}, r"jsonl:2: has no \"image\". It has: caption\."),
        ({"image": "b", "caption": "c", "captions": ["d"]}, 'has "caption" and "captions"'),
        ({"image": "b", "captions": ["c", ""]}, r"\"captions\"\[1\] is blank"),
        ({"image": "b", "captions": [3]}, r"\"captions\"\[0\] is of type int. Expected a text"),
        ({"image": "b", "caption": 3}, '"caption" is of type int. Expected a text'),
        ({"image": "b", "captions": []}, r"jsonl:2: \"captions\" is an empty list"),
        ({"image": 3, "caption": "c"}, '"image" is 3. Expected the path'),
        ([], r"jsonl:2: is \[\]. Expected a JSON object"),
    ],
)
def test_malformed_json_rows_are_named(tmp_path: Path, row: object, message: str) -> None:
    path = write_json(tmp_path, [{"image": "a", "caption": "x"}, row])
    with pytest.raises(DataError, match=message):
        parse_data(path)


@pytest.mark.parametrize("value", [None, 1.5, " ", True])
def test_json_ids_are_texts_or_integers(tmp_path: Path, value: object) -> None:
    path = write_json(tmp_path, [{"image": "a", "caption": "x", "id": value}])
    with pytest.raises(DataError, match=r"jsonl:1: \"id\" is .*(Expected an image id|Fill it in)"):
        parse_data(path, DataOptions(image_id_column="id"))


@given(st.sampled_from(["random.csv", "random.tsv", "random.jsonl"]), st.binary(max_size=60))
def test_random_bytes_are_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    with pytest.raises(DataError):
        parse_data(path)


@given(st.text(st.sampled_from('a,;\t"\n\r\0\ufeff '), max_size=40))
def test_random_rows_are_read_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: str
) -> None:
    path = write(tmp_path_factory.getbasetemp(), "image,caption\n" + content)
    try:
        data = parse_data(path)
    except DataError:
        return
    assert len(data.captions) == len(data.caption_image_ids) > 0
