"""Every source of `embed` yields all its rows in order, from any start."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import tarfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from embed_samples import png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mwa_export.data.rows import Row, Source
from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.errors import DataError
from mwa_export.inputs.content import Kind

NAMES = ["a.png", "b/c.png", "b/d.png", "e.png"]


def opened(kind: Kind, spec: object, **options: Any) -> Source:
    return open_source(kind, str(spec), SourceOptions(**options))


def scanned(source: Source, work: Path) -> list[Row]:
    work.mkdir(exist_ok=True)
    return list(source.rows(0, source.scan(work).rows))


def write_folder(root: Path) -> Path:
    for seed, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(seed))
    return root


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def parquet(path: Path, **columns: Sequence[object]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def make(name: str, root: Path) -> Source:
    """Four rows, of every kind of source."""
    folder = write_folder(root / "photos")
    if name == "folder":
        return opened("image", folder)
    if name == "glob":
        return opened("image", f"{folder}/**/*.p[n]g")
    if name == "list":
        (folder / "list.txt").write_text("\n".join(NAMES))
        return opened("image", folder / "list.txt")
    if name == "csv":
        lines = [f"{n},{p},c{n}" for n, p in enumerate(NAMES)]
        (folder / "t.csv").write_text("\n".join(["key,image,note", *lines]))
        return opened("image", folder / "t.csv", id_column="key", columns=("note",))
    if name == "jsonl":
        lines = [json.dumps({"caption": f"text {n}", "n": n}) for n in range(4)]
        (root / "t.jsonl").write_text("\n".join(lines))
        return opened("text", root / "t.jsonl", columns=("n",))
    if name == "karpathy":
        images = [{"filename": p, "sentences": [{"raw": p}], "split": "x"} for p in NAMES]
        (folder / "k.json").write_text(json.dumps({"images": images}))
        return opened("image", folder / "k.json")
    if name == "parquet-bytes":
        return opened("image", parquet(root / "p.parquet", image=[png(n) for n in range(4)]))
    if name == "parquet-texts":
        path = parquet(root / "p.parquet", text=list("abcd"), key=list("wxyz"))
        return opened("text", path, id_column="key")
    if name == "tars":
        for n in range(2):
            members = {f"{n}{k}.{e}": png(k) if e == "png" else b"cat"
                       for k in range(2) for e in ("png", "txt")}  # fmt: skip
            write_tar(root / f"{n}.tar", members)
        return opened("image", root / "{0..1}.tar")
    (root / "t.txt").write_text("a\nb\nc\nd\n")
    return opened("text", root / "t.txt")


SOURCES = ["folder", "glob", "list", "csv", "jsonl", "karpathy", "parquet-bytes",
           "parquet-texts", "tars", "lines"]  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None
)
@given(data=st.data())
def test_any_part_is_that_part_of_all_rows(
    name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("source")
    source = make(name, root)
    everything = scanned(source, root / "work")
    assert len(everything) == 4
    assert all(row.problem is None for row in everything)
    assert len({row.id for row in everything}) == 4
    start, stop = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))
    copy = pickle.loads(pickle.dumps(source))
    assert list(copy.rows(start, stop)) == everything[start:stop]


@pytest.mark.parametrize("name", SOURCES)
def test_rows_hold_what_the_source_holds(name: str, tmp_path: Path) -> None:
    rows = scanned(make(name, tmp_path), tmp_path / "work")
    if isinstance(rows[0].content, str):
        texts = [f"text {n}" for n in range(4)] if name == "jsonl" else list("abcd")
        assert [row.content for row in rows] == texts
    else:
        found = [c if isinstance(c := row.content, bytes) else c.read() for row in rows]  # type: ignore[union-attr]
        expected = [0, 1, 0, 1] if name == "tars" else [0, 1, 2, 3]
        assert found == [png(seed) for seed in expected]
    columns = {"csv": [(f"c{n}",) for n in range(4)], "jsonl": [(n,) for n in range(4)]}
    assert [row.columns for row in rows] == columns.get(name, [()] * 4)
    ids = {"csv": list("0123"), "tars": ["00", "01", "10", "11"], "parquet-texts": list("wxyz")}
    in_files = name in ("folder", "glob", "list", "karpathy")
    assert [row.id for row in rows] == (NAMES if in_files else ids.get(name, list("0123")))


def test_bad_files_of_a_folder_are_rows_with_problems(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "photos")
    (root / "dir.jpg").mkdir()
    (root / "dir.jpg" / "in.png").write_bytes(png(1))
    (root / "loop").symlink_to(root)
    (root / "self.jpg").symlink_to(root / "self.jpg")
    (root / "gone.jpg").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe.jpg")
    (root / ".hidden.png").write_bytes(png(1))
    odd = os.fsencode(root) + b"/z\xff.png"
    Path(os.fsdecode(odd)).write_bytes(png(2))
    listener = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(root)  # the name of a socket is short
    try:
        listener.bind("socket.jpg")
    finally:
        os.chdir(here)
        listener.close()
    rows = scanned(opened("image", root), tmp_path / "work")
    problems = {row.id: row.problem for row in rows}
    assert {id for id, problem in problems.items() if problem is None} == {
        *NAMES,
        "dir.jpg/in.png",
        "z\\xff.png",
    }
    assert problems["gone.jpg"] is not None
    assert problems["gone.jpg"].code == "missing"
    words = {"dir.jpg": "a directory", "self.jpg": "cannot be read", "gone.jpg": "no such file",
             "pipe.jpg": "a pipe", "socket.jpg": "a socket"}  # fmt: skip
    for id, word in words.items():
        assert word in str(problems.pop(id))
    assert all(row.content is None for row in rows if row.problem)
    assert rows[-1].content.read() == png(2)  # type: ignore[union-attr]


def test_a_changed_picture_changes_the_fingerprint_and_stops_rows(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "photos")
    source = opened("image", root)
    first = source.scan(tmp_path)
    assert opened("image", root).scan(tmp_path).fingerprint == first.fingerprint
    (root / "e.png").write_bytes(png(9) + b"longer")
    with pytest.raises(DataError, match=r"e\.png: has changed since"):
        list(source.rows(0, 4))
    assert len(list(source.rows(0, 3))) == 3
    assert opened("image", root).scan(tmp_path).fingerprint != first.fingerprint


def test_touching_a_table_of_texts_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a\nb\n")
    first = opened("text", path).scan(tmp_path).fingerprint
    os.utime(path, (1, 1))
    assert opened("text", path).scan(tmp_path).fingerprint == first
    path.write_text("a\nc\n")
    assert opened("text", path).scan(tmp_path).fingerprint != first


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_duplicate_ids_are_the_later_rows(form: str, tmp_path: Path) -> None:
    keys = ["a", "b", "a", "c", "b", "a"]
    path = tmp_path / f"t.{form}"
    if form == "parquet":
        parquet(path, text=["t"] * 6, key=keys)
    else:
        path.write_text("\n".join(json.dumps({"text": "t", "key": key}) for key in keys))
    assert opened("text", path, id_column="key").scan(tmp_path).duplicates.tolist() == [2, 4, 5]


def test_bad_texts_are_rows_with_problems(tmp_path: Path) -> None:
    values = ["good", "", "  ", None, 7, "a\0b", "\ud800", "x" * 1_000_001]
    lines = [json.dumps({"text": value}) for value in values]
    (tmp_path / "t.jsonl").write_text("\n".join([*lines, "{broken", "[1]"]))
    rows = scanned(opened("text", tmp_path / "t.jsonl"), tmp_path)
    problems = [("empty-text", "blank"), ("empty-text", "blank"), ("null", "null"),
                ("not-text", "type int"), ("not-text", "binary"), ("not-text", "binary"),
                ("too-large", "characters"), ("malformed", "not JSON"),
                ("malformed", "Expected a JSON object")]  # fmt: skip
    assert rows[0] == Row("0", "good")
    assert len(rows) == 1 + len(problems)
    for row, (code, word) in zip(rows[1:], problems, strict=True):
        assert row.content is None
        assert row.problem is not None
        assert row.problem.code == code
        assert word in row.problem.reason


def test_a_folder_or_glob_of_text_files_has_a_text_of_each(tmp_path: Path) -> None:
    root = tmp_path / "captions"
    files = {"a.txt": b"\xef\xbb\xbfa dog\n", "b/c.TXT": b"two\nlines\n", "b/d.txt": b" \n",
             "e.jpg": b"no text", "f.txt": b"\xff"}  # fmt: skip
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "g.txt").mkdir()
    rows = scanned(opened("text", root), tmp_path / "work")
    assert [(row.id, row.content, row.problem and row.problem.code) for row in rows] == [
        ("a.txt", "a dog", None),
        ("b/c.TXT", "two\nlines", None),
        ("b/d.txt", None, "empty-text"),
        ("f.txt", None, "not-text"),
        ("g.txt", None, "unreadable"),
    ]
    globbed = scanned(opened("text", f"{root}/*.txt"), tmp_path / "work")
    assert [row.id for row in globbed] == ["a.txt", "f.txt", "g.txt"]


def test_a_bad_line_of_csv_is_one_failed_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'text,n\na,1\nb\n"c ""d""\ne",2\n\xff,3\n')
    rows = scanned(opened("text", tmp_path / "t.csv", columns=("n",)), tmp_path)
    assert [row.content for row in rows] == ["a", None, 'c "d"\ne', None]
    assert "1 fields" in str(rows[1].problem)
    assert "not UTF-8" in str(rows[3].problem)


def test_a_cut_tar_keeps_its_whole_members(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", {f"{n}.png": png(n) for n in range(3)})
    with tarfile.open(path) as tar:
        last = tar.getmember("2.png")
    os.truncate(path, last.offset_data + 10)
    rows = scanned(opened("image", path), tmp_path)
    assert [row.problem is None for row in rows] == [True, True, False]
    assert "10 of" in str(rows[2].problem)
    os.truncate(path, last.offset)  # between two members: what followed is not known
    rows = scanned(opened("image", path), tmp_path)
    assert [row.problem is None for row in rows] == [True, True, False]
    assert "not a complete tar" in str(rows[2].problem)


def test_parquet_of_a_wrong_type_fails_each_row_and_garbage_the_source(tmp_path: Path) -> None:
    rows = scanned(opened("image", parquet(tmp_path / "p.parquet", image=[1, None])), tmp_path)
    assert '"image" is 1' in str(rows[0].problem)
    assert "null" in str(rows[1].problem)
    (tmp_path / "q.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not a complete Parquet file"):
        opened("text", tmp_path / "q.parquet").scan(tmp_path)


def test_a_missing_column_is_an_error_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("words\na\n")
    with pytest.raises(DataError, match=r"no column for captions \(caption, .*\)\. It has: words"):
        opened("text", tmp_path / "t.csv").scan(tmp_path)
    assert len(scanned(opened("text", tmp_path / "t.csv", text_column="words"), tmp_path)) == 1


def test_standard_input_can_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    source = opened("text", "-")
    assert source.scan(tmp_path).rows == 2
    for _ in range(2):
        assert [row.content for row in source.rows(0, 2)] == ["one", "two"]


@pytest.mark.parametrize("spec", ["memory://mwa", "memory://mwa/tars/t.tar", "memory://mwa/t.csv"])
def test_remote_pictures_are_read(spec: str, tmp_path: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    tar = write_tar(tmp_path / "t.tar", {"a.png": png(1)}).read_bytes()
    files = {"a.png": png(1), "tars/t.tar": tar, "t.csv": b"image\na.png\n"}
    for name, data in files.items():
        system.pipe_file(f"/mwa/{name}", data)
    try:
        [row] = scanned(opened("image", spec), tmp_path)
        assert row.content.read() == png(1)  # type: ignore[union-attr]
    finally:
        system.rm("/mwa", recursive=True)


@pytest.mark.slow
def test_memory_does_not_grow_by_objects_per_row(tmp_path: Path) -> None:
    count = 200_000
    with (tmp_path / "t.txt").open("w") as file:
        file.writelines(f"text number {n}\n" for n in range(count))
    source = opened("text", tmp_path / "t.txt")
    tracemalloc.start()
    try:
        assert source.scan(tmp_path).rows == count
        assert tracemalloc.get_traced_memory()[1] < 100 * count
        tracemalloc.reset_peak()
        assert next(iter(source.rows(count - 1, count))).content == f"text number {count - 1}"
        assert tracemalloc.get_traced_memory()[1] < 30 * count
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["t.txt", "t.jsonl", "t.csv"])
def test_lines_end_in_any_way(end: str, name: str, tmp_path: Path) -> None:
    lines = {"t.txt": ["a", "b"], "t.csv": ["text", "a", "b"],
             "t.jsonl": ['{"text": "a"}', '{"text": "b"}']}[name]  # fmt: skip
    (tmp_path / name).write_bytes(end.join(lines).encode())
    assert [row.content for row in scanned(opened("text", tmp_path / name), tmp_path)] == ["a", "b"]
    write_tar(tmp_path / "t.tar", {"k.txt": end.join("ab").encode()})
    rows = scanned(opened("text", tmp_path / "t.tar"), tmp_path)
    assert [row.content for row in rows] == ["a", "b"]
