"""A full run of `embed` accounts for every row, and every vector belongs to its row."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from commands import files_below
from embed_samples import ONNX, ListSource, embed, errors, pictures, texts, vectors_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mwa_export.bundle.bundle import Bundle
from mwa_export.data.rows import Row
from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.embed.plan import Slice
from mwa_export.embed.rehearse import rehearse
from mwa_export.embed.run import Execution
from mwa_export.encoder.open import load
from mwa_export.errors import DataError, MwaExportError, UsageError
from mwa_export.inputs.content import Problem
from mwa_export.runtimes.onnxrt import OnnxBackend
from mwa_export.vectors.job import EmbedOptions, Job, shards
from mwa_export.vectors.output import WORK, Output
from mwa_export.vectors.verify import verify

WIDTH_TOLERANCE = {"float32": 1e-6, "float16": 1e-3, "int8": 0.02}


@pytest.fixture(scope="module")
def bundle(files: Path) -> Path:
    return files / "bundle"


def test_every_row_is_a_vector_or_an_error(bundle: Path, embedded: Path) -> None:
    ids, vectors = vectors_of(embedded, "images")
    assert ids == [f"p{n}.png" for n in range(21) if n not in (3, 20)]
    source = pictures(21)
    opened = load(bundle, ONNX)
    contents: Any = [source.items[n].content for n in range(21) if n not in (3, 20)]
    np.testing.assert_allclose(vectors, opened.embed_images(contents), atol=1e-6)
    ids, vectors = vectors_of(embedded, "texts")
    rows = [row for n, row in enumerate(texts(30).items) if n != 7]
    assert ids == [row.id for row in rows]
    expected = opened.embed_texts([str(row.content) for row in rows])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert [(e["row"], e["id"], e["kind"], e["code"]) for e in errors(embedded)] == [
        (3, "p3.png", "image", "not-a-picture"),
        (20, "p20.png", "image", "not-a-picture"),
        (7, "t7", "text", "null"),
    ]
    assert errors(embedded)[2]["reason"] == "the text is null"
    assert verify(embedded).whole


def test_token_ids_of_an_index_have_the_vectors_of_their_texts(
    bundle: Path, tmp_path: Path
) -> None:
    tokenizer = Bundle.open(bundle).tokenizer()
    captions = ["abcd efgh", "ijkl", "abcd efgh", "mnop " * 90]
    lines = [
        {"image_path": "a.png", "image_id": n, "text_segment": tokenizer.encode(text)[1:-1]}
        for n, text in enumerate(captions)
    ]
    lines.append({**lines[0], "text_segment": [5, 10**6]})
    path = tmp_path / "index.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    embed(bundle, [open_source("text", str(path), SourceOptions())], tmp_path / "out")
    ids, vectors = vectors_of(tmp_path / "out", "texts")
    assert ids == ["0", "1", "2", "3"]
    expected = load(bundle, ONNX).embed_texts(captions)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    [error] = errors(tmp_path / "out")
    assert (error["id"], error["code"]) == ("4", "not-text")
    assert "found 1000000" in error["reason"]


def test_nothing_but_the_output_is_left(embedded: Path) -> None:
    names = set(files_below(embedded))
    assert not (embedded / WORK).exists()
    assert names == {
        ".lock",
        "errors.parquet",
        "images",
        *(f"images/part-{n:05d}.parquet" for n in range(3)),
        "job.json",
        "manifest.json",
        "texts",
        *(f"texts/part-{n:05d}.parquet" for n in range(4)),
    }


@pytest.mark.slow
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    outcome=st.lists(
        st.sampled_from(["good", "broken", "null", "duplicate"]), min_size=1, max_size=20
    ),
    shard_size=st.integers(1, 9),
    batch=st.integers(1, 5),
    limit=st.none() | st.integers(1, 25),
)
def test_the_account_is_exact_for_every_pattern_of_failures(
    bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
    outcome: list[str],
    shard_size: int,
    batch: int,
    limit: int | None,
) -> None:
    rows = []
    for number, what in enumerate(outcome):
        if what == "duplicate" and number > 0:
            rows.append(Row("first", pictures(1).items[0].content))
            continue
        id = "first" if number == 0 else f"r{number}"
        content = {"broken": b"GIF89a", "null": None}.get(what, pictures(1).items[0].content)
        rows.append(Row(id, content, problem=Problem("null", "null") if content is None else None))
    out = tmp_path_factory.mktemp("pattern") / "out"
    summary = embed(
        bundle,
        [ListSource("image", rows)],
        out,
        shard_size=shard_size,
        batch=batch,
        limit=limit,
    )
    taken = outcome[:limit]
    codes = {"broken": "truncated", "null": "null", "duplicate": "duplicate-id"}
    expected = [
        (n, codes[what])
        for n, what in enumerate(taken)
        if what in codes and (n or what != "duplicate")
    ]
    assert [(e["row"], e["code"]) for e in errors(out)] == expected
    total = summary.counts["image"]
    assert total.embedded == len(taken) - len(expected)
    assert total.skipped == len(outcome) - len(taken)
    assert total.exact
    assert verify(out).findings == ()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_every_dtype_and_format_holds_the_same_vectors(
    bundle: Path, embedded: Path, tmp_path: Path, dtype: str, format: str
) -> None:
    out = tmp_path / "out"
    embed(bundle, [pictures(21, bad=(3, 20)), texts(30)], out, dtype=dtype, format=format)
    for folder in ("images", "texts"):
        ids, expected = vectors_of(embedded, folder)
        found_ids, found = vectors_of(out, folder)
        assert found_ids == ids
        np.testing.assert_allclose(found, expected, atol=WIDTH_TOLERANCE[dtype])
    stored = np.load(out / "images" / "part-00000.npy") if format == "npy" else None
    if stored is not None:
        assert stored.dtype == dtype
    assert verify(out).whole


def test_shards_cut_the_rows_without_gap_or_overlap(embedded: Path) -> None:
    output = Output.load(embedded)
    assert output is not None
    job = output.job
    assert job is not None
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    cut = list(shards(job.input("text"), [0, 7, 8, 29]))
    assert [(s.start, s.stop) for s in cut] == [(0, 8), (8, 16), (16, 24), (24, 30)]
    assert [s.duplicates for s in cut] == [(0, 7), (8,), (), (29,)]


def test_a_rehearsal_says_what_is_left_and_writes_nothing(bundle: Path, tmp_path: Path) -> None:
    opened, options = Bundle.open(bundle), EmbedOptions(shard_size=8, batch=3)
    sources, out = [texts(30)], tmp_path / "out"
    rehearsal = rehearse(opened, sources, out, options=options, runtime=ONNX)
    assert (rehearsal.shards, rehearsal.todo, rehearsal.rows) == (4, 4, 30)
    assert not out.exists()
    embed(bundle, sources, out, Execution(part=Slice(2, 4)))
    before = files_below(out)
    rehearsal = rehearse(opened, sources, out, options=options, runtime=ONNX)
    assert (rehearsal.todo, rehearsal.rows) == (3, 22)
    assert files_below(out) == before


def test_a_source_that_changed_since_its_scan_is_noticed(bundle: Path, tmp_path: Path) -> None:
    class Shrunk(ListSource):
        def rows(self, start: int, stop: int) -> Any:
            return iter(self.items[start : min(stop, 10)])

    class Grown(ListSource):
        def rows(self, start: int, stop: int) -> Any:
            return iter(self.items)

    for cls, found in ((Shrunk, "read 2 rows"), (Grown, "read more rows")):
        with pytest.raises(DataError, match=found):
            embed(bundle, [cls("text", texts(20).items)], tmp_path / cls.__name__)


def test_a_bug_in_a_thread_ends_the_run_with_its_own_error(bundle: Path, tmp_path: Path) -> None:
    class Broken(ListSource):
        def rows(self, start: int, stop: int) -> Any:
            yield from self.items[start : stop - 1]
            raise ZeroDivisionError("a bug")

    for kind in (pictures(9), texts(9)):
        with pytest.raises(ZeroDivisionError, match="a bug"):
            embed(bundle, [Broken(kind.kind, kind.items)], tmp_path / kind.kind)
    with (
        mock.patch.object(Output, "save", side_effect=ZeroDivisionError("in write")),
        pytest.raises(ZeroDivisionError, match="in write"),
    ):
        embed(bundle, [texts(50)], tmp_path / "write")
    assert threading.active_count() == 1 or not [
        t for t in threading.enumerate() if t.name in ("read", "write") or "decode" in t.name
    ]


def test_a_vector_that_is_not_finite_is_an_error_of_its_row(bundle: Path, tmp_path: Path) -> None:
    run = OnnxBackend.embed_images

    def spoiled(self: OnnxBackend, pixels: NDArray[Any]) -> NDArray[Any]:
        found = run(self, pixels)
        found[0] = np.nan
        return found

    with (
        mock.patch.object(OnnxBackend, "embed_images", spoiled),
        mock.patch("mwa_export.runtimes.onnxrt.check_graphs"),
    ):
        embed(bundle, [pictures(5)], tmp_path / "out")
    assert [(e["row"], e["code"]) for e in errors(tmp_path / "out")] == [
        (0, "not-finite"),
        (3, "not-finite"),
    ]


def test_carried_columns_keep_their_types_and_a_misfit_is_an_error(
    bundle: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet

    values: list[tuple[Any, ...]]
    values = [(n, n / 2, f"s{n}", {"deep": n}, None) for n in range(1100)]
    values[1050] = ("no number", 1.0, "s", {}, None)
    values[1051] = (5.0, 7, "\udcff", {}, "late")
    rows = [Row(f"r{n}", "abc", columns) for n, columns in enumerate(values)]
    names = ("count", "share", "word", "deep", "empty")
    out = tmp_path / "out"
    embed(bundle, [ListSource("text", rows, names)], out, shard_size=600, batch=64)
    assert [(e["row"], e["code"]) for e in errors(out)] == [(1050, "column-type")]
    assert "'no number' is not int64" in errors(out)[0]["reason"]
    table = pyarrow.parquet.read_table(out / "texts")
    assert table.num_rows == 1099
    types = {name: str(table.schema.field(name).type) for name in names}
    assert types == {
        "count": "int64",
        "share": "double",
        "word": "string",
        "deep": "string",
        "empty": "string",
    }
    row = table.slice(1050, 1).to_pylist()[0]
    assert [row[n] for n in names] == [5, 7.0, "\\udcff", "{}", "late"]
    assert json.loads(table.slice(3, 1).to_pylist()[0]["deep"]) == {"deep": 3}
    with pytest.raises(UsageError, match="columns=scale"):
        embed(bundle, [ListSource("text", rows, ("scale",))], tmp_path / "reserved")


def test_nothing_to_embed_is_refused(bundle: Path, tmp_path: Path) -> None:
    for sources in ([], [texts(3), texts(3)]):
        with pytest.raises(MwaExportError, match="nothing to embed"):
            embed(bundle, sources, tmp_path / "out")
    with pytest.raises(DataError, match="found no rows"):
        embed(bundle, [ListSource("text", [])], tmp_path / "out2")


def test_an_index_has_the_vectors_in_order_and_can_be_added_later(
    bundle: Path, tmp_path: Path
) -> None:
    faiss = pytest.importorskip("faiss")
    out, sources = tmp_path / "out", [pictures(21, bad=(3, 20)), texts(30)]
    embed(bundle, sources, out, dtype="int8")
    embed(bundle, sources, out, Execution(faiss=True), dtype="int8")
    assert verify(out).findings == ()
    for folder in ("images", "texts"):
        _ids, vectors = vectors_of(out, folder)
        index = faiss.read_index(str(out / f"{folder}.faiss"))
        np.testing.assert_allclose(index.reconstruct_n(0, index.ntotal), vectors, atol=1e-6)
    before = files_below(out)
    embed(bundle, sources, out, Execution(faiss=True), dtype="int8")
    assert files_below(out) == before
    (out / "texts.faiss").write_bytes(b"short")
    assert any("texts.faiss: expected" in finding for finding in verify(out).findings)


def test_identical_texts_are_embedded_once_in_a_shard_and_batches_ascend_in_length(
    bundle: Path, tmp_path: Path
) -> None:
    seen: list[NDArray[Any]] = []
    run = OnnxBackend.embed_texts

    def watched(self: OnnxBackend, ids: NDArray[Any], mask: NDArray[Any]) -> NDArray[Any]:
        seen.append(1 - mask)
        return run(self, ids, mask)

    words = ["a b c d e f", "abc", "abc de fg", "abc"]
    rows = [Row(f"r{n}", words[n % 4]) for n in range(40)]
    with mock.patch.object(OnnxBackend, "embed_texts", watched):
        embed(bundle, [ListSource("text", rows)], tmp_path / "out", shard_size=20, batch=2)
    del seen[0]  # the conformance vectors
    assert [len(tokens) for tokens in seen] == [2, 1, 2, 1]  # three different texts a shard
    for first, second in (seen[:2], seen[2:]):
        lengths = [*first.sum(axis=1), *second.sum(axis=1)]
        assert lengths == sorted(lengths)
    ids, vectors = vectors_of(tmp_path / "out", "texts")
    assert ids == [f"r{n}" for n in range(40)]
    np.testing.assert_array_equal(vectors[1::4], np.repeat(vectors[1:2], 10, axis=0))
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
