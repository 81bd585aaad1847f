"""Outputs in .npy and JSON Lines need no extra and do not depend on installed packages."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import files_below, refused, run
from embed_samples import ONNX, ListSource, embed, errors, pictures, texts, vectors_of

from mwa_export.data.rows import Row
from mwa_export.embed.run import Execution
from mwa_export.embed.update import Update
from mwa_export.errors import DataError, MissingPackageError
from mwa_export.files import sha256_of
from mwa_export.search.run import Query, open_output, search_output
from mwa_export.vectors.manifest import read_manifest, write_manifest
from mwa_export.vectors.output import Output
from mwa_export.vectors.verify import verify

UPDATE = Execution(update=Update())
RETRY = Execution(update=Update(source=False, retry_failed=True))
SOURCES = [pictures(21, bad=(3, 20)), texts(30)]


@pytest.fixture(scope="module")
def bundle(files: Path) -> Path:
    return files / "bundle"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package of the extras `embed` and `remote` can be imported."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("pyarrow", "fsspec")]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("pyarrow", "pyarrow.parquet", "fsspec", "s3fs", "aiohttp", "urllib3"):
        monkeypatch.setitem(sys.modules, name, None)


def found(out: Path) -> list[str]:
    """Ids of the texts that are nearest to a text."""
    result = search_output(open_output(out, "texts"), Query("abc"), runtime=ONNX)
    return [hit.id for hit in result.hits]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_everything_works_without_extras_and_gives_the_same_bytes(
    bundle: Path, tmp_path: Path, request: pytest.FixtureRequest, dtype: str
) -> None:
    options: dict[str, Any] = {"format": "npy", "dtype": dtype}
    expected, out = tmp_path / "expected", tmp_path / "out"
    embed(bundle, SOURCES, expected, **options)
    request.getfixturevalue("bare")
    embed(bundle, SOURCES, out, **options)
    assert files_below(out) == files_below(expected)
    assert "pyarrow" not in read_manifest(out)["versions"]
    assert verify(out).findings == ()
    assert len(found(out)) == 5
    assert [(e["row"], e["kind"], e["code"]) for e in errors(out)] == [
        (3, "image", "not-a-picture"),
        (20, "image", "not-a-picture"),
        (7, "text", "null"),
    ]
    fixed = [pictures(21, bad=(20,), fingerprint="beef"), SOURCES[1]]
    summary = embed(bundle, fixed, out, UPDATE, **options)
    assert (summary.complete, summary.errors) == (True, "errors.jsonl")
    assert summary.kept == 20 + 29
    assert [e["row"] for e in errors(out)] == [20, 7]
    assert embed(bundle, fixed, out, RETRY, **options).complete
    assert verify(out).findings == ()


def test_rows_are_json_lines_beside_their_vectors(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed(bundle, SOURCES, out, format="npy", dtype="int8")
    assert {path.suffix for path in out.glob("*/*")} == {".npy", ".jsonl"}
    vectors = np.load(out / "images" / "part-00000.npy")
    lines = (out / "images" / "part-00000.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["row"] for row in rows] == [0, 1, 2, 4, 5, 6, 7]
    assert [*rows[0]] == ["row", "id", "fingerprint", "scale"]
    scales = np.array([row["scale"] for row in rows], np.float32)
    lengths = np.linalg.norm(vectors.astype(np.float32) * scales[:, None], axis=1)
    np.testing.assert_allclose(lengths, 1, atol=0.05)


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    embed(bundle, SOURCES, whole, format="npy")

    class Stopped(ListSource):
        def rows(self, start: int, stop: int) -> Any:
            if start >= 16:
                raise DataError("stopped")
            return super().rows(start, stop)

    with pytest.raises(DataError, match="stopped"):
        embed(bundle, [SOURCES[0], Stopped("text", SOURCES[1].items)], out, format="npy")
    assert list(out.glob("images/*.jsonl"))
    assert not (out / "errors.jsonl").exists()
    embed(bundle, SOURCES, out, format="npy")
    assert files_below(out) == files_below(whole)


@pytest.mark.usefixtures("bare")
def test_parquet_is_refused_before_anything_is_read_or_written(
    bundle: Path, tmp_path: Path
) -> None:
    message = refused("embed", "none", "--texts", "none.txt", "-o", tmp_path / "out")
    assert 'pip install "mwa-export[embed]"' in message
    assert "--format npy" in message
    with pytest.raises(MissingPackageError, match="format=npy"):
        embed(bundle, SOURCES, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("source", "extra"),
    [
        ("a.parquet", "embed"),
        ("a.jsonl.zst", "embed"),
        ("http://example.org/a.csv", "remote"),
        ("s3://a/a.csv", "remote"),
        ("http://example.org/*.tar", "remote"),
        ("ftp://a/a.csv", "embed"),
    ],
)
def test_a_source_that_needs_an_extra_names_it_before_anything_is_written(
    bundle: Path, tmp_path: Path, source: str, extra: str
) -> None:
    out = tmp_path / "out"
    message = refused("embed", bundle, "--texts", source, "-o", out, "--format", "npy")
    assert f'pip install "mwa-export[{extra}]"' in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "package", "extra"),
    [
        (["--faiss"], "faiss", "faiss"),
        (["--engine", "ray"], "ray", "ray"),
        (["--runtime", "openvino"], "openvino", "openvino"),
    ],
)
def test_an_option_that_needs_an_extra_names_it_before_anything_is_written(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    package: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "t.txt").write_text("a red bus\n")
    out = tmp_path / "out"
    message = refused("embed", bundle, "--texts", tmp_path / "t.txt", "-o", out, *flags)
    assert f'pip install "mwa-export[{extra}]"' in message
    assert not out.exists()


AT = datetime(2026, 3, 29, 1, 2, 3, 456789)
VALUES: dict[str, tuple[str, list[Any]]] = {  # column -> its type, some values
    "word": ("string", ["a", "", "line\nbreak \u2028 \U0001f68c", None]),
    "count": ("int64", [0, -(2**63), 2**63 - 1, None]),
    "share": ("double", [0.1, float("nan"), float("-inf"), -0.0]),
    "mixed": ("double", [1.5, float("inf"), 5e-324, None]),
    "flag": ("bool", [True, False, None, True]),
    "data": ("binary", [b"", b"\x00\xff", None, b"abc"]),
    "day": ("date", [date(1, 1, 1), date(9999, 12, 31), None, date(2026, 2, 28)]),
    "local": ("timestamp", [AT, AT.replace(microsecond=0), None, datetime(1, 1, 1)]),
    "zoned": ("timestamp", [AT.replace(tzinfo=timezone(timedelta(hours=h))) for h in range(4)]),
}


def test_carried_columns_come_back_exactly_without_arrow(
    bundle: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("bare")
    columns = [values for _kind, values in VALUES.values()]
    rows = [Row(f"r{n}", "abc", tuple(column[n] for column in columns)) for n in range(4)]
    out = tmp_path / "out"
    embed(bundle, [ListSource("text", rows, tuple(VALUES))], out, format="npy")
    output = Output.load(out)
    assert output is not None
    types = dict(output.job.input("text").columns)
    assert types == {name: kind for name, (kind, _values) in VALUES.items()}
    stored = output.read("texts/part-00000").columns
    for name, (_kind, values) in VALUES.items():
        assert list(map(repr, stored[name])) == list(map(repr, values)), name
    line = json.loads((out / "texts" / "part-00000.jsonl").read_text().split("\n")[1])
    assert base64.b64decode(line["data"]) == b"\x00\xff"
    assert (line["share"], line["day"]) == ("NaN", "9999-12-31")
    gone = ListSource("text", rows[:1], tuple(VALUES), "beef")
    keep = Execution(update=Update(vanished="keep"))
    embed(bundle, [gone], out, keep, format="npy")
    again = Output.load(out)
    assert again is not None
    assert repr(again.read("texts/part-00000").columns) == repr(stored)


def test_what_has_no_type_of_its_own_is_json_text_and_a_misfit_is_an_error(
    bundle: Path, tmp_path: Path
) -> None:
    rows = [
        Row("a", "abc", (Decimal("1.50"), 1, 2.0, {"deep": [1]})),
        Row("b", "abc", (Decimal("2"), 5.0, 7, "\udcff")),
        Row("c", "abc", ("x", 1.5, 1.0, None)),
        Row("d", "abc", ("x", 2**63, 1.0, None)),
        Row("e", "abc", ("x", 1e300, 1.0, None)),
        Row("f", "abc", ("x", 1, 10**400, None)),
        Row("g", "abc", ("x", 1, 2**53 + 1, None)),
        Row("h", "abc", ("x", True, 1.0, None)),
    ]
    rows = [rows[0], *[Row(f"n{n}", "abc", rows[0].columns) for n in range(1000)], *rows[1:]]
    for format in ("npy", "parquet"):
        out = tmp_path / format
        names = ("price", "count", "share", "any")
        embed(bundle, [ListSource("text", rows, names)], out, format=format, shard_size=2000)
        assert [e["id"] for e in errors(out)] == ["c", "d", "e", "f", "g", "h"]
        assert {e["code"] for e in errors(out)} == {"column-type"}
    output = Output.load(tmp_path / "npy")
    assert output is not None
    stored = output.read("texts/part-00000").columns
    assert {name: values[0] for name, values in stored.items()} == {
        "price": '"1.50"',
        "count": 1,
        "share": 2.0,
        "any": '{"deep": [1]}',
    }
    assert {name: values[-1] for name, values in stored.items()} == {
        "price": '"2"',
        "count": 5,
        "share": 7.0,
        "any": "\\udcff",
    }


def as_earlier_versions_wrote(out: Path) -> None:
    """Put Parquet in the place of the JSON Lines of an output."""
    import pyarrow as pa
    import pyarrow.parquet

    output, manifest = Output.load(out), read_manifest(out)
    assert output is not None
    shards = [shard for folder in manifest["shards"].values() for shard in folder]
    moved = [(f"{shard['stem']}.jsonl", shard["files"][1]) for shard in shards]
    for name, entry in [*moved, ("errors.jsonl", manifest["errors"])]:
        lines = (out / name).read_text().splitlines()
        path = (out / name).with_suffix(".parquet")
        rows = [json.loads(line) for line in lines]
        for row in rows:
            row["fingerprint"] = row["fingerprint"] and bytes.fromhex(row["fingerprint"])
        table = pa.Table.from_pylist(rows)
        if "scale" in table.column_names:
            at = table.column_names.index("scale")
            table = table.set_column(at, "scale", table["scale"].cast(pa.float32()))
        pyarrow.parquet.write_table(table, path)
        (out / name).unlink()
        entry |= {
            "file": path.relative_to(out).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
    write_manifest(out, manifest)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_outputs_of_earlier_versions_with_parquet_beside_npy_can_be_used(
    bundle: Path, tmp_path: Path, dtype: str
) -> None:
    options: dict[str, Any] = {"format": "npy", "dtype": dtype}
    new, old = tmp_path / "new", tmp_path / "old"
    embed(bundle, SOURCES, new, **options)
    shutil.copytree(new, old)
    as_earlier_versions_wrote(old)
    assert verify(old).findings == ()
    assert found(old) == found(new)
    np.testing.assert_array_equal(vectors_of(old, "images")[1], vectors_of(new, "images")[1])
    changed = [pictures(22, bad=(3, 20), fingerprint="beef"), SOURCES[1]]
    assert embed(bundle, changed, old, UPDATE, **options).kept == 21 + 30 - 1
    assert not list(old.rglob("*.parquet"))
    assert verify(old).findings == ()


DAMAGE: list[tuple[Any, str]] = [
    (lambda lines: lines[:-1], "is missing a row"),
    (lambda lines: [lines[0][:-9], *lines[1:]], "line 1: "),
    (lambda lines: ["[" * 100_000, *lines[1:]], "line 1: it is nested too deeply"),
    (lambda lines: [lines[0], "[]", *lines[2:]], "line 2: "),
    (lambda lines: [lines[0], lines[1].replace('"row":9', '"row":"9"'), *lines[2:]], "line 2: "),
    (lambda lines: [lines[0].replace('"row":8', '"row":8.0'), *lines[1:]], "expected int"),
    (lambda lines: [lines[0].replace('"id"', '"name"'), *lines[1:]], "line 1: it has no 'id'"),
    (lambda lines: [lines[0].replace('"id":"t8"', '"id":null'), *lines[1:]], "has no number"),
    (lambda lines: [lines[0].replace('"row":8', '"row":9'), *lines[1:]], "occur more than once"),
    (lambda lines: [lines[0].replace('"t8"', '"t9"'), *lines[1:]], "1 ids occur more than once"),
    (lambda lines: lines[::-1], "its rows are not in order"),
]


@pytest.fixture(scope="module")
def whole(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("npy") / "out"
    embed(bundle, [texts(30)], out, format="npy")
    return out


@pytest.mark.parametrize(("change", "said"), DAMAGE)
def test_damage_that_the_manifest_vouches_for_is_found(
    whole: Path, tmp_path: Path, change: Any, said: str
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    manifest, path = read_manifest(out), out / "texts" / "part-00001.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in change(lines)))
    entry = manifest["shards"]["texts"][1]["files"][1]
    entry |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_manifest(out, manifest)
    findings = verify(out).findings
    assert findings
    if said == "is missing a row":
        assert any("expected float32 of shape (7," in finding for finding in findings)
    else:
        assert any(said in finding for finding in findings), findings


def test_damaged_errors_are_found(whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    path = out / "errors.jsonl"
    path.write_text(path.read_text()[:-5] + "\n")
    assert any("errors.jsonl: cannot be read (line 1" in f for f in verify(out).findings)
    path.write_text("")
    assert any("rows are neither embedded nor failed: 7" in f for f in verify(out).findings)


def test_the_command_tells_where_the_reasons_are(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\na red bus\n\n\n" + "a\n" * 20 + '""\n')
    out = tmp_path / "out"
    outcome = run(
        *("embed", bundle, "--texts", tmp_path / "t.csv", "-o", out, "--format", "npy"),
        *("--runtime", "onnxruntime"),
    )
    assert outcome.status == 0, outcome
    assert str(out / "errors.jsonl") in outcome.stderr
    assert run("embed", "--verify", out).status == 0
    assert run("search", out, "a red bus", "--runtime", "onnxruntime").status == 0
