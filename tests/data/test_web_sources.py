"""Sources over HTTP: every format, folders and globs, with and without range requests."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
import web as odd
from embed_samples import png
from tar_files import tar_of
from web import Web

from mwa_export.data.remote import files as remote_files
from mwa_export.data.remote.files import RemotePicture
from mwa_export.data.rows import Row
from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.data.test_sets import DataOptions, read_data
from mwa_export.errors import DataError, MissingPackageError, OptionsError, RemoteError
from mwa_export.inputs.content import Kind

pyarrow = pytest.importorskip("pyarrow")
FILES = {
    "a.png": png(0),
    "b.png": png(1),
    "t.txt": b"a.png\nb.png\n",
    "t.csv": b"image,caption\na.png,one\nb.png,two\n",
    "t.tsv": "image\tcaption\na.png\tone\nb.png\ttwo\n".encode("utf-16"),
    "t.jsonl": b'{"image": "a.png", "caption": "one"}\n{"image": "b.png", "caption": "two"}\n',
    "t.json": json.dumps(
        {
            "images": [
                {"filename": f"{n}.png", "imgid": i, "sentences": [{"raw": caption}]}
                for i, (n, caption) in enumerate([("a", "one"), ("b", "two")])
            ]
        }
    ).encode(),
    "t.tar": tar_of({"a.png": png(0), "a.txt": b"one", "b.png": png(1), "b.txt": b"two"}),
}


def parquet(**columns: list[object]) -> bytes:
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file, row_group_size=1)
    return file.getvalue()


FILES["t.parquet"] = parquet(image=[png(0), png(1)], caption=["one", "two"])


def rows(kind: Kind, spec: str, work: Path, **options: object) -> list[Row]:
    how = SourceOptions(**{"retries": 1, "timeout": 5, **options})  # type: ignore[arg-type]
    source = open_source(kind, spec, how)
    return list(source.rows(0, source.scan(work).rows))


def contents(found: list[Row]) -> list[object]:
    return [r.content if isinstance(r.content, bytes | str) else r.content.read() for r in found]  # type: ignore[union-attr]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("t.")])
def test_every_format_is_read_over_http(web: Web, name: str, ranges: bool, tmp_path: Path) -> None:
    web.files, web.ranges = {f"/d/{n}": data for n, data in FILES.items()}, ranges
    signed = f"{web.url}/d/{name}?X-Amz-Signature=0/9.tar&n=1"
    assert contents(rows("image", signed, tmp_path)) == [png(0), png(1)]
    texts = contents(rows("text", signed, tmp_path))
    assert texts == (["a.png", "b.png"] if name == "t.txt" else ["one", "two"])
    assert {path.partition("?")[2] for path, _ in web.asked if f"/{name}" in path} == {
        "X-Amz-Signature=0/9.tar&n=1"
    }
    if name != "t.txt":
        data = read_data(signed, DataOptions())
        assert (data.captions, data.pictures[1].read()) == (("one", "two"), png(1))
        assert "0/9" not in data.name


def test_lines_are_read_across_blocks(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "_HEAD", 10)
    monkeypatch.setattr(remote_files, "_BUFFER", 64)
    lines = [f"text {'x' * (n % 90)} {n}" for n in range(300)]
    web.files["/t.txt"] = "\n".join(lines).encode()
    assert contents(rows("text", f"{web.url}/t.txt", tmp_path)) == lines
    web.files["/none.txt"] = b""
    assert rows("text", f"{web.url}/none.txt", tmp_path) == []


def test_folders_and_globs_are_listed(web: Web, tmp_path: Path) -> None:
    for n in range(2):
        web.files[f"/tars/{n}.tar"] = tar_of({f"{n}.png": png(n), f"{n}.txt": b"tar %d" % n})
        web.files[f"/parquet/{n}.parquet"] = parquet(image=[png(n)], caption=[f"parquet {n}"])
        web.files[f"/deep/{n}/p.png"] = png(n)
        web.files[f"/deep/{n}/p.md"] = b"no picture"
    for kind in "tars/", "tars/*.tar", "tars/{0..1}.tar":
        assert contents(rows("text", f"{web.url}/{kind}", tmp_path)) == ["tar 0", "tar 1"]
        assert read_data(f"{web.url}/{kind}").captions == ("tar 0", "tar 1")
    for kind in "parquet/", "parquet/[01].parquet":
        assert contents(rows("text", f"{web.url}/{kind}", tmp_path)) == ["parquet 0", "parquet 1"]
    for kind in "deep/", "deep", "deep/**/*.png":
        found = rows("image", f"{web.url}/{kind}", tmp_path)
        assert [row.id for row in found] == ["0/p.png", "1/p.png"]
        assert contents(found) == [png(0), png(1)]


@pytest.mark.parametrize("behaviour", [odd.status(403), odd.status(500), odd.hang, odd.reset])
@pytest.mark.parametrize("name", ["t.csv", "t.tar", "t.parquet", "t.json", "d/"])
def test_a_source_that_cannot_be_read_is_one_error(
    web: Web, name: str, behaviour: odd.Behaviour, tmp_path: Path
) -> None:
    web.odd[f"/{name}"] = behaviour
    with pytest.raises(RemoteError) as error:
        rows("image", f"{web.url}/{name}?sig=5ec", tmp_path, timeout=0.2, retries=0)
    assert web.url in str(error.value)
    assert "5ec" not in str(error.value)


def test_a_tar_that_is_lost_in_the_middle_is_an_error_and_not_its_end(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "_HEAD", 1024)
    monkeypatch.setattr(remote_files, "_BUFFER", 1024)

    def fails_later(handler: odd.Handler) -> None:
        if handler.headers.get("Range", "").startswith("bytes=0-"):
            handler.send_file(FILES["t.tar"])
        else:
            handler.answer(503)

    web.odd["/t.tar"] = fails_later
    with pytest.raises(RemoteError, match="503"):
        rows("image", f"{web.url}/t.tar", tmp_path)


def test_a_file_that_changes_while_it_is_read_is_noticed(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "_HEAD", 10)
    states = [b"text\n" * 9, b"TEXT\n" * 9]
    web.odd["/t.txt"] = lambda handler: handler.send_file(states.pop(0) if states else b"")
    with pytest.raises(DataError, match="changed"):
        rows("text", f"{web.url}/t.txt", tmp_path)


def test_a_row_of_a_remote_table_does_not_read_the_local_disk(web: Web, tmp_path: Path) -> None:
    inside, outside = tmp_path / "in" / "a.png", tmp_path / "b.png"
    inside.parent.mkdir()
    for path in inside, outside:
        path.write_bytes(png(0))
    names = ["a.png", outside.as_uri(), str(outside), "../b.png", "memory://b.png"]
    web.files["/t.csv"] = "\n".join(["image", *names]).encode()
    web.files["/t.parquet"] = parquet(image=list(names), caption=list(names))
    web.files["/t.txt"] = "\n".join(names).encode()
    for table in "t.csv", "t.parquet", "t.txt":
        for root in str(inside.parent), None:
            found = rows("image", f"{web.url}/{table}", tmp_path / "w", image_root=root)
            refused = [r.id for r in found if r.problem and r.problem.code == "not-allowed"]
            assert len(refused) == (4 if root else 2)
            left = [row for row in found if row.problem is None]
            if root:
                assert contents(left) == [png(0)]
            else:  # they are looked for on the server
                assert all(isinstance(row.content, RemotePicture) for row in left)
                assert all(str(row.content).startswith(web.url) for row in left)
    with pytest.raises(DataError, match="expected a URL"):
        read_data(f"{web.url}/t.parquet")


def test_file_urls_are_guarded_as_paths_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a b.png").write_bytes(png(0))
    names = [(tmp_path / name).as_uri() for name in ("pipe.png", "a b.png", "absent.png")]
    table = tmp_path / "t.txt"
    table.write_text("\n".join(names))
    pipe, good, absent = rows("image", table.as_uri(), tmp_path / "w")
    assert pipe.problem is not None
    assert pipe.problem.code == "unreadable"
    assert contents([good]) == [png(0)]
    assert absent.problem is not None
    assert absent.problem.code == "missing"


def test_chains_of_file_systems_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("caption\nsecret\n")
    for chain in "simplecache::file://", "reference://::file://", "filecache::":
        with pytest.raises(DataError):
            rows("text", f"{chain}{tmp_path}/t.csv", tmp_path / "w", retries=0)


@pytest.mark.parametrize(
    ("package", "spec"),
    [
        ("urllib3", "http://127.0.0.1:1/t.csv"),
        ("aiohttp", "http://127.0.0.1:1/d/"),
        ("s3fs", "s3://b/t.csv"),
    ],
)
def test_the_error_names_the_extra(
    package: str, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"mwa-export\[remote\]"):
        rows("image", spec, tmp_path)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}])
def test_patience_that_cannot_be_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionsError):
        SourceOptions(**options)  # type: ignore[arg-type]
