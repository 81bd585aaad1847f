"""Sources on a real S3 server on the loopback interface."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from embed_samples import png
from tar_files import tar_of
from web import Web, hang, status

from mwa_export.data.rows import Row
from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.data.test_sets import read_data
from mwa_export.errors import ImageError, RemoteError
from mwa_export.inputs.content import Kind

s3fs = pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")
pytestmark = pytest.mark.slow  # the server takes seconds to start
FILES = {
    "d/a.png": png(0),
    "d/b::c [1].png": png(1),
    "t.csv": b"image,caption\nd/a.png,one\ns3://box/d/b::c [1].png,two\n",
    "tars/0.tar": tar_of({"0.png": png(0), "0.txt": b"one"}),
    "tars/1.tar": tar_of({"1.png": png(1), "1.txt": b"two"}),
    "empty.txt": b"",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer("127.0.0.1", 0)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


def use(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "no_proxy": "*",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def box(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket."""
    use(server, monkeypatch)
    system = s3fs.S3FileSystem()
    if not system.exists("box"):
        system.mkdir("box")
        for name, data in FILES.items():
            system.pipe_file(f"box/{name}", data)
    return "s3://box"


def rows(kind: Kind, spec: str, work: Path, **options: Any) -> list[Row]:
    source = open_source(kind, spec, SourceOptions(**{"retries": 1, **options}))
    return list(source.rows(0, source.scan(work).rows))


def read(found: list[Row]) -> list[Any]:
    contents: list[Any] = [row.content for row in found]
    return [c if isinstance(c, str | bytes) else c.read() for c in contents]


def test_tables_tars_folders_and_globs_are_read(box: str, tmp_path: Path) -> None:
    both = [png(0), png(1)]
    assert read(rows("image", f"{box}/t.csv", tmp_path)) == both
    assert read(rows("text", f"{box}/t.csv", tmp_path)) == ["one", "two"]
    assert [row.id for row in rows("image", f"{box}/d", tmp_path)] == ["a.png", "b::c [1].png"]
    for spec in f"{box}/d", f"{box}/d/*.png", f"{box}/tars", f"{box}/tars/?.tar":
        assert read(rows("image", spec, tmp_path)) == both
    assert read_data(f"{box}/tars").captions == ("one", "two")
    assert rows("text", f"{box}/empty.txt", tmp_path) == []


def test_parquet_is_read_by_ranges(box: str, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.table({"image": [png(0), png(1)]}), tmp_path / "t.parquet", row_group_size=1
    )
    s3fs.S3FileSystem().put_file(str(tmp_path / "t.parquet"), "box/p/t.parquet")
    for spec in f"{box}/p/t.parquet", f"{box}/p":
        assert read(rows("image", spec, tmp_path)) == [png(0), png(1)]


def test_what_is_not_there_is_missing(box: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(f"{box}/absent.png\ns3://other/absent.png")
    for row in rows("image", str(tmp_path / "t.txt"), tmp_path / "w"):
        with pytest.raises(ImageError) as error:
            read([row])
        assert error.value.code == "missing"
    with pytest.raises(RemoteError, match=r"absent\.csv"):
        rows("image", f"{box}/absent.csv", tmp_path)


@pytest.mark.parametrize(
    ("behaviour", "code", "requests"),
    [(status(403), "forbidden", 1), (status(503), "unreachable", 3), (hang, "timeout", 3)],
)
def test_failures_of_the_store_have_codes_and_are_retried(
    web: Web,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    behaviour: Any,
    code: str,
    requests: int,
) -> None:
    use(web.url, monkeypatch)
    web.odd["/box/a.png"] = behaviour
    (tmp_path / "t.txt").write_text("s3://box/a.png")
    [row] = rows("image", str(tmp_path / "t.txt"), tmp_path / "w", timeout=0.5, retries=2)
    with pytest.raises(ImageError) as error:
        read([row])
    assert (error.value.code, web.count("/box/a.png")) == (code, requests)
