"""Parity runs on real files: embeddings, drift by stage, layers, and refusals."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import save
from configs import MWA
from parity_files import export, quantized, states, write_test_set, write_tokenizer

from mwa_export.bundle.bundle import Bundle
from mwa_export.data.test_set import RetrievalData
from mwa_export.encoder.encoder import Encoder
from mwa_export.encoder.open import CheckpointOptions
from mwa_export.errors import (
    BundleError,
    DataError,
    MwaExportError,
    TokenizerError,
    UsageError,
)
from mwa_export.model.checkpoint import ReadOptions
from mwa_export.model.options import ModelOptions
from mwa_export.model.synthetic import random_tensors
from mwa_export.parity.reports.write import write_reports
from mwa_export.parity.result import Parity
from mwa_export.parity.run import RunOptions, compare_models, compare_sides
from mwa_export.runtimes.pytorch import TorchBackend
from mwa_export.spec import Embeddings

pytestmark = pytest.mark.slow


def no_flips(result: Parity) -> bool:
    """Nothing was won or lost."""
    return all(c.won == c.lost == 0 for d in result.directions for c in d.recalls)


def test_bundle_has_parity_with_its_checkpoint(files: Path, data: RetrievalData) -> None:
    result = compare_models(files / "checkpoint.pth", files / "bundle", data).result
    assert result.verdict == "undecided"  # 20 pictures
    assert min(c.minimum for c in result.cosines) > 1 - 1e-9
    assert states(result) == {
        "tokenizer": "same",
        "preprocessing": "same",
        "graph": "changed",
        "precision": "same",
    }
    assert result.reference.space_id == result.candidate.space_id
    assert (result.data.images, result.data.captions) == (20, 40)
    assert result.reference.precision == result.candidate.precision == "float32"


def test_bundle_against_itself_differs_by_exactly_nothing(files: Path) -> None:
    result = compare_models(files / "bundle", files / "bundle", files / "data").result
    assert set(states(result).values()) == {"same"}
    assert all(c.identical == c.rows and c.minimum == 1 for c in result.cosines)
    changes = [change for direction in result.directions for change in direction.recalls]
    assert all(c.difference == c.smoothed.value == 0.0 for c in changes)
    assert not result.examples


def test_graph_of_another_tool_is_measured(
    files: Path, data: RetrievalData, tmp_path: Path
) -> None:
    graph = quantized(files / "bundle", "text", tmp_path / "text.int8.onnx")
    run = RunOptions(graphs=(str(graph),))
    result = compare_models(files / "bundle", files / "bundle", data, run=run).result
    vision, text = result.cosines
    assert vision.identical == vision.rows
    assert 0.9 < text.mean < 0.99999
    assert result.candidate.precision == "vision float32, text.int8.onnx"
    assert states(result)["precision"] == "changed"
    assert states(result)["graph"] == "same"


def test_reference_comes_from_the_cache_the_second_time(
    files: Path, data: RetrievalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunOptions(cache=tmp_path / "cache")
    first = compare_models(files / "checkpoint.pth", files / "bundle", data, run=run).result

    def never(*_args: Any) -> Embeddings:
        raise AssertionError("the reference was computed again")

    monkeypatch.setattr(TorchBackend, "embed_images", never)
    monkeypatch.setattr(TorchBackend, "embed_texts", never)
    second = compare_models(files / "checkpoint.pth", files / "bundle", data, run=run).result
    assert replace(second, created="", costs=()) == replace(first, created="", costs=())
    assert first.costs[0].image_ms is not None
    assert second.costs[0].image_ms is None, "it was not timed"


def test_other_checkpoint_never_hits_the_cache(
    files: Path, data: RetrievalData, tmp_path: Path
) -> None:
    run = RunOptions(cache=tmp_path / "cache", any_space=True)
    compare_models(files / "checkpoint.pth", files / "bundle", data, run=run)
    other = save(tmp_path / "checkpoint.pth", random_tensors(MWA, seed=1))
    result = compare_models(other, files / "bundle", data, run=run).result
    assert result.cosines[0].mean < 0.9


def test_unreadable_pictures_are_left_out_only_if_allowed(files: Path, tmp_path: Path) -> None:
    write_test_set(tmp_path / "data")
    (tmp_path / "data" / "003.png").write_bytes(b"no picture")
    (tmp_path / "data" / "007.png").unlink()
    arguments = files / "checkpoint.pth", files / "bundle"
    with pytest.raises(DataError, match=r"1 of 20 .* missing.*max_excluded=1"):
        compare_models(*arguments, tmp_path / "data")
    with pytest.raises(DataError, match=r"1 of 19 images cannot be read.*003\.png.*excluded=2"):
        compare_models(*arguments, tmp_path / "data", run=RunOptions(max_excluded=1))
    done = compare_models(*arguments, tmp_path / "data", run=RunOptions(max_excluded=2))
    excluded = {Path(e.picture).name: (e.reason, e.captions) for e in done.result.data.excluded}
    assert excluded["007.png"] == ("no such file", 2)
    assert "cannot be decoded" in excluded["003.png"][0]
    assert (done.result.data.images, done.result.data.captions) == (18, 36)
    assert len(done.data.pictures) == 18
    assert no_flips(done.result)


def test_options_that_no_file_holds_are_taken_from_the_bundle_and_said(
    files: Path, data: RetrievalData, tmp_path: Path
) -> None:
    raw = tmp_path / "raw.pth"
    torch.save(random_tensors(MWA), raw)
    options = ModelOptions(adapter_scale=0.6, ffn_option="parallel")
    export(raw, tmp_path / "bundle", files / "tokenizer-0.spm", options=options)
    result = compare_models(raw, tmp_path / "bundle", data).result
    assert no_flips(result)
    assert [w for w in result.warnings if "`adapter_scale`, `ffn_option`" in w], result.warnings
    given = CheckpointOptions(options=ModelOptions(0.1, ffn_option="parallel"))
    with pytest.raises(UsageError, match="differ in model configuration"):
        compare_models(raw, tmp_path / "bundle", data, run=RunOptions(checkpoint=given))


def test_token_ids_need_no_tokenizer(files: Path, tmp_path: Path, data: RetrievalData) -> None:
    export(files / "checkpoint.pth", tmp_path / "bundle", None)
    ids = replace(data, captions=tuple((5, 6, 7 + n) for n in range(len(data.captions))))
    assert no_flips(compare_models(files / "checkpoint.pth", tmp_path / "bundle", ids).result)
    with pytest.raises(TokenizerError, match=r"has no tokenizer.*tokenizer=FILE"):
        compare_models(files / "checkpoint.pth", tmp_path / "bundle", data)
    lent = RunOptions(tokenizer=files / "tokenizer-0.spm")
    result = compare_models(files / "checkpoint.pth", tmp_path / "bundle", data, run=lent).result
    assert no_flips(result)
    wrong = replace(ids, captions=((5, 90), *ids.captions[1:]))
    with pytest.raises(DataError, match=r"token id 90\. Expected 0 to 89"):
        compare_models(files / "checkpoint.pth", tmp_path / "bundle", wrong)


def test_stored_ids_are_framed_and_cut_as_the_reference_does(
    sides: tuple[Encoder, Encoder],
) -> None:
    long = tuple(range(4, 4 + 80))
    short, cut = sides[1].encode([(7, 8), long])
    assert short == [0, 7, 8, 2]
    assert len(cut) == sides[1].max_length
    assert (cut[0], cut[-1], cut[1:3]) == (0, 2, [4, 5])


def refused_runs(files: Path, tmp_path: Path) -> dict[str, tuple[Any, ...]]:
    other = save(tmp_path / "other.pth", random_tensors(MWA, seed=1))
    (tmp_path / "folder").mkdir()
    bundle, checkpoint = files / "bundle", files / "checkpoint.pth"
    text = str(bundle / "text.onnx")
    return {
        "other weights": (other, bundle, RunOptions(), UsageError, "differ in weights.*any_space"),
        "no bundle": (
            checkpoint,
            tmp_path / "folder",
            RunOptions(),
            BundleError,
            "is not a bundle",
        ),
        "folder": (
            tmp_path / "folder",
            bundle,
            RunOptions(),
            MwaExportError,
            "folder without a checkpoint",
        ),
        "absent": (tmp_path / "x.pth", bundle, RunOptions(), MwaExportError, "x.pth"),
        "reading a bundle": (
            bundle,
            bundle,
            RunOptions(checkpoint=CheckpointOptions(read=ReadOptions(ema=True))),
            BundleError,
            "is a bundle, but options for reading a checkpoint were given",
        ),
        "no such graph": (
            checkpoint,
            bundle,
            RunOptions(graphs=("text.int8.onnx",)),
            BundleError,
            r"neither a graph of .* nor a file. The bundle has: vision.onnx, text.onnx",
        ),
        "one tower twice": (
            checkpoint,
            bundle,
            RunOptions(graphs=("text.onnx", text)),
            BundleError,
            "second graph for the text tower",
        ),
        "no graph": (
            checkpoint,
            bundle,
            RunOptions(graphs=(str(checkpoint),)),
            BundleError,
            "cannot load this graph",
        ),
    }


REFUSED = (
    "other weights",
    "no bundle",
    "folder",
    "absent",
    "reading a bundle",
    "no such graph",
    "one tower twice",
    "no graph",
)


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_run_is_refused(
    files: Path, data: RetrievalData, tmp_path: Path, case: str
) -> None:
    reference, candidate, run, error, message = refused_runs(files, tmp_path)[case]
    with pytest.raises(error, match=message):
        compare_models(reference, candidate, data, run=run)


def test_other_tokenizer_is_another_space(files: Path, data: RetrievalData) -> None:
    run = RunOptions(tokenizer=write_tokenizer(files, seed=1))
    for reference in ("checkpoint.pth", "bundle"):
        with pytest.raises(UsageError, match="differ in tokenizer"):
            compare_models(files / reference, files / "bundle", data, run=run)


def test_checkpoint_of_another_image_size_is_resized_as_the_bundle_was(
    files: Path, data: RetrievalData, tmp_path: Path
) -> None:
    export(
        files / "checkpoint.pth",
        tmp_path / "64",
        files / "tokenizer-0.spm",
        options=ModelOptions(image_size=64),
    )
    result = compare_models(files / "checkpoint.pth", tmp_path / "64", data).result
    assert no_flips(result)
    assert states(result)["preprocessing"] == "same"


def test_webdataset_is_compared_like_any_other(files: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "test.tar", "w") as tar:
        for picture in sorted((files / "data").glob("*.png"))[:4]:
            tar.add(picture, picture.name)
            text = f"caption of {picture.stem}".encode()
            info = tarfile.TarInfo(f"{picture.stem}.txt")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    done = compare_models(files / "checkpoint.pth", files / "bundle", tmp_path / "test.tar")
    assert no_flips(done.result)
    assert done.result.data.images == 4
    page = write_reports(done.result, tmp_path / "report", pictures=done.data.pictures)
    assert page.is_file()


@pytest.mark.parametrize("case", ["space", "tokenizer", "layers"])
def test_what_can_be_refused_is_refused_before_anything_is_embedded(
    files: Path,
    data: RetrievalData,
    sides: tuple[Encoder, Encoder],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    def never(*_args: Any, **_more: Any) -> Any:
        raise AssertionError("embedded something")

    monkeypatch.setattr(Encoder, "embed_pictures", never)
    reference, candidate = sides
    if case == "space":
        reference = replace(reference, info=replace(reference.info, space_id="other"))
    elif case == "tokenizer":
        reference = replace(reference, tokenizer=None, tokenizer_sha256=None)
    else:
        backbone = replace(reference.config.backbone, layers=1)
        reference = replace(reference, config=replace(reference.config, backbone=backbone))
    run = RunOptions(any_space=case != "space", layers=True)
    with pytest.raises((UsageError, TokenizerError)):
        compare_sides(reference, candidate, data, run=run)


def test_bundle_is_not_changed_by_a_run(files: Path, data: RetrievalData) -> None:
    compare_models(files / "checkpoint.pth", files / "bundle", data, run=RunOptions(layers=True))
    Bundle.open(files / "bundle")
