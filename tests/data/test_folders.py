"""A folder yields each of its images once, and reports skipped files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from commands import run
from embed_samples import png
from picture_formats import GOOD
from PIL import Image

from mwa_export.data.rows import Scan
from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.errors import DataError
from mwa_export.inputs.content import Kind
from mwa_export.inputs.formats import FORMATS, extensions


def ids(spec: object, work: Path, kind: Kind = "image") -> tuple[list[str], Scan]:
    source = open_source(kind, str(spec), SourceOptions())
    scan = source.scan(work)
    return [row.id for row in source.rows(0, scan.rows)], scan


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(len(name)))
    return root


def test_every_extension_that_pillow_has_for_a_format_that_is_read_is_listed() -> None:
    Image.init()
    known = {end for end, name in Image.registered_extensions().items() if name in FORMATS}
    assert {end[1:] for end in known} | {"mpo", "svg", "pdf", "iim", "heic", "jxl"} <= extensions()
    assert not extensions() & {"txt", "json", "csv", "mpg", "xml", "npy", "cls"}


def test_pictures_of_every_extension_and_of_none_are_rows(tmp_path: Path) -> None:
    names = [f"a.{end.upper()}" for end in ("jpe", "pnm", "pbm", "pcx", "j2k", "jxl", "avif")]
    root = write(tmp_path / "photos", *names)
    marked = [name for name in GOOD if name not in ("IM", "IMT", "PCD", "SPIDER", "TGA")]
    for name in marked:
        (root / f"no-extension-{name}").write_bytes(GOOD[name]())
    (root / "LICENSE").write_text("Permission is granted")
    found, scan = ids(root, tmp_path)
    assert found == sorted([*names, *(f"no-extension-{name}" for name in marked)])
    assert scan.skipped == {"without extension": 1}


def test_files_shorter_than_a_mark_are_no_pictures(tmp_path: Path) -> None:
    root = write(tmp_path / "p", "a.png")
    for size in range(4):
        (root / f"short{size}").write_bytes(b"II*"[:size])
    found, scan = ids(root, tmp_path)
    assert (found, scan.skipped) == (["a.png"], {"without extension": 4})


def test_what_is_passed_over_is_counted_by_extension(tmp_path: Path) -> None:
    root = write(tmp_path / "p", "a.png", "b/x.txt", "b/y.TXT", "c.d/z", "v.mp4", ".git/x.png")
    (root / "c.d/z").write_bytes(b"Makefile")
    found, scan = ids(root, tmp_path)
    assert found == ["a.png"]
    assert scan.skipped == {".txt": 2, "without extension": 1, ".mp4": 1, "hidden": 1}
    (root / "b/x.txt").write_text("a cat")
    (root / "b/y.TXT").write_text("a dog")
    found, scan = ids(root, tmp_path, "text")
    assert found == ["b/x.txt", "b/y.TXT"]
    assert scan.skipped == {".png": 1, "without extension": 1, ".mp4": 1, "hidden": 1}
    found, scan = ids(f"{root}/*.png", tmp_path)
    assert (found, scan.skipped) == (["a.png"], {})


def test_a_run_says_once_what_it_passed_over(files: Path, tmp_path: Path) -> None:
    root = write(tmp_path / "p", "a.png", "x.mp4", "y.mp4")
    arguments = ("embed", files / "bundle", "--images", root, "-o", tmp_path / "out")
    outcome = run(*arguments, "--runtime", "onnxruntime", "--dry-run")
    assert "not rows: 2 .mp4" in " ".join(outcome.stdout.split())
    outcome = run(*arguments, "--runtime", "onnxruntime", "--log-json", tmp_path / "log")
    assert outcome.stderr.count("not rows: 2 .mp4") == 1
    start = json.loads((tmp_path / "log").read_text().splitlines()[0])
    assert start["inputs"]["images"]["skipped"] == {".mp4": 2}


def test_cross_linked_folders_give_each_picture_once_under_its_own_name(tmp_path: Path) -> None:
    root = write(tmp_path / "p", *(f"{n}/{k}.png" for n in "klm" for k in range(2)))
    for n in "klm":
        for other in "klm":
            (root / n / f"a-link-to-{other}").symlink_to(root / other)
    (root / "a-link").symlink_to(root / "m")
    found, scan = ids(root, tmp_path)
    assert found == [f"{n}/{k}.png" for n in "klm" for k in range(2)]
    assert scan.skipped == {"links to folders that are read under another name": 10}
    assert ids(f"{root}/**/*.png", tmp_path)[0] == found


def test_folders_elsewhere_and_hidden_ones_are_walked_through_a_link_once(tmp_path: Path) -> None:
    root = write(tmp_path / "p", "a.png", ".cache/files/b.png")
    write(tmp_path / "far", "c.png")
    (root / "in").symlink_to(root / ".cache" / "files")
    (root / "out").symlink_to(tmp_path / "far")
    (root / "out2").symlink_to(tmp_path / "far")
    assert ids(root, tmp_path)[0] == ["a.png", "in/b.png", "out/c.png"]


def test_a_pattern_that_names_a_link_finds_what_is_behind_it(tmp_path: Path) -> None:
    root = write(tmp_path / "p", "2024/deep/a.png", "2025/deep/b.png")
    (root / "2025" / "last").symlink_to(root / "2024" / "deep")
    assert ids(f"{root}/*/last/*.png", tmp_path)[0] == ["2025/last/a.png"]


ODD = ["[2020]", "a*b?", "{1..2}", "line\nbreak", "a b", "käfer", "\u202egnp", os.fsdecode(b"\xff")]


@pytest.mark.parametrize("name", ODD)
def test_names_of_folders_with_odd_characters_are_taken_as_they_are(
    name: str, tmp_path: Path
) -> None:
    root = write(tmp_path / "up" / name, "a.png", f"{name}/b.png")
    write(tmp_path / "up" / "2", "wrong.png")
    assert len(ids(root, tmp_path)[0]) == 2
    assert ids(f"{root}/*.png", tmp_path)[0] == ["a.png"]
    assert len(ids(f"{root}/**/*.png", tmp_path)[0]) == 2
    (root / "list.txt").write_text("a.png\n")
    assert ids(root / "list.txt", tmp_path)[0] == ["a.png"]


def test_one_picture_is_a_source(tmp_path: Path) -> None:
    root = write(tmp_path / "[p]", "a.png", "b.png", "plain")
    for name in ("a.png", "plain"):
        source = open_source("image", str(root / name), SourceOptions())
        [row] = source.rows(0, source.scan(tmp_path).rows)
        assert (row.id, row.content.read()) == (name, png(len(name)))  # type: ignore[union-attr]
    for name in ("absent.png", "list.xyz"):
        with pytest.raises(DataError, match="no such file or folder"):
            open_source("image", str(root / name), SourceOptions())


@pytest.mark.parametrize(("kind", "picture"), [("image", "deep/b.jpg"), ("text", "n.txt")])
def test_a_folder_of_shards_and_other_rows_is_refused(
    kind: Kind, picture: str, tmp_path: Path
) -> None:
    root = write(tmp_path / "p", picture, "stray.tar")
    with pytest.raises(DataError, match=rf"\.tar files and {kind}s \({picture}\).*/\*\.tar"):
        open_source(kind, str(root), SourceOptions())
    (root / "stray.tar").rename(root / "_stray.tar")
    found, scan = ids(root, tmp_path, kind)
    assert (found, scan.skipped) == ([picture], {".tar": 1})
    write(root, "a.tar", "b.parquet")
    with pytest.raises(DataError, match=r"\.tar files and \.parquet files"):
        open_source(kind, str(root), SourceOptions())


def test_what_lies_beside_the_parts_of_a_table_is_counted(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    root = tmp_path / "parts"
    (root / "_temporary").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), root / "part-0.parquet")
    for name in ("_SUCCESS", ".part-0.crc", "_old.parquet", "_temporary/x.parquet", "stats.json"):
        (root / name).write_bytes(b"")
    found, scan = ids(root, tmp_path, "text")
    assert found == ["0", "1"]
    assert scan.skipped == {"hidden": 1, ".parquet": 2, ".json": 1, "without extension": 1}


def test_a_glob_of_texts_takes_text_files_only_and_none_is_for_tables(tmp_path: Path) -> None:
    root = write(tmp_path / "g", "a.zip", "b.xlsx", "c/d.txt")
    (root / "e.txt").write_text("a cat")
    found, scan = ids(f"{root}/*", tmp_path, "text")
    assert (found, scan.skipped) == (["e.txt"], {".zip": 1, ".xlsx": 1})
    write(root, "t1.tsv", "t2.tsv")
    for spec in ("*.tsv", "t{1,2}.tsv", "t?.jsonl"):
        with pytest.raises(DataError, match="matches several tables"):
            open_source("text", f"{root}/{spec}", SourceOptions())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.png", "no such file or folder"),
        ("{a.png,b.png}", "no such file or folder. Braces work only for tars"),
        ("nul\0.png", "no such file or folder"),
        ("zip.doc", "is a zip archive"),
        ("text.doc", "it is not an image"),
        ("pipe.png", "is not a regular file"),
    ],
)
def test_what_is_no_source_of_pictures_has_a_true_reason(
    name: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "zip.doc").write_bytes(b"PK\3\4....")
    (tmp_path / "text.doc").write_bytes(b"Dear Sir")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=reason):
        open_source("image", str(tmp_path / name), SourceOptions())
