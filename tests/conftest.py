"""Fixtures: every kind of model, and small checkpoints on disk."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from commands import files_below, refused, save
from configs import CONFIGS, MWA
from embed_samples import embed, pictures, texts
from parity_files import export, write_test_set, write_tokenizer
from web import Web, web_server

from mwa_export.data.remote import access as remote
from mwa_export.data.test_set import RetrievalData
from mwa_export.data.test_sets import read_data
from mwa_export.encoder.encoder import Encoder
from mwa_export.encoder.open import open_bundle, open_checkpoint
from mwa_export.model.adapters import split
from mwa_export.model.checkpoint import read_checkpoint
from mwa_export.model.load import ModelSource, load_model
from mwa_export.model.synthetic import random_tensors, training_args
from mwa_export.spec import ModelConfig


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """Every kind of model."""
    return CONFIGS[request.param]


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Save a random model as the authors' training script saves it."""
    count = itertools.count()

    def write(config: ModelConfig = MWA, *, seed: int = 0) -> Path:
        path = tmp_path / f"checkpoint-{next(count)}.pth"
        torch.save(
            {
                "model": random_tensors(config, seed),
                "optimizer": {"state": {}, "param_groups": []},
                "epoch": 1,
                "args": training_args(config),
            },
            path,
        )
        return path

    return write


@pytest.fixture
def checkpoint(write_checkpoint: Callable[..., Path]) -> Path:
    """A small checkpoint with adapters and enhancers, as the authors' README trains them."""
    return write_checkpoint()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where bundles go; empty, so that everything a run leaves is seen."""
    path = tmp_path / "out"
    path.mkdir()
    return path


@pytest.fixture
def export_refused(folder: Path) -> Callable[..., str]:
    """Run an export that must fail and leave nothing; returns its message."""

    def export(*arguments: object, status: int = 2) -> str:
        before = files_below(folder)
        message = refused("onnx", *arguments, "-o", folder / "bundle", status=status)
        assert files_below(folder) == before
        return message

    return export


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A base, and an adapter that was split from it."""
    config = CONFIGS["plain"]
    model = load_model(ModelSource(checkpoint))
    shared = {n: model.tensors.get(n, t) for n, t in random_tensors(config, 1).items()}
    base, out = save(tmp_path / "base.pth", shared, config), tmp_path / "adapter.safetensors"
    split(model.tensors, model.config, read_checkpoint(base), out)
    return base, out


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, its bundle, a tokenizer and a test set, shared and not to be changed."""
    root = tmp_path_factory.mktemp("parity")
    save(root / "checkpoint.pth", random_tensors(MWA))
    export(root / "checkpoint.pth", root / "bundle", write_tokenizer(root))
    write_test_set(root / "data")
    return root


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A web server on the loopback. Retries come at once."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(remote, "_PAUSE", 0.01)
    with web_server() as server:
        yield server


@pytest.fixture(scope="session")
def data(files: Path) -> RetrievalData:
    """The shared test set."""
    return read_data(files / "data")


@pytest.fixture(scope="session")
def sides(files: Path) -> tuple[Encoder, Encoder]:
    """The reference and the bundle, ready to embed."""
    candidate = open_bundle(files / "bundle")
    return open_checkpoint(files / "checkpoint.pth", candidate), candidate


@pytest.fixture(scope="session")
def embedded(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of `embed` that was never interrupted; not to be changed."""
    out = tmp_path_factory.mktemp("embedded") / "out"
    embed(files / "bundle", [pictures(21, bad=(3, 20)), texts(30)], out)
    return out


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the large cases of the shared folder out of `make quick`."""
    for item in items:
        if re.search(r"[\[-]shared-", item.nodeid):
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count aloud which of the authors' cases were tested, and which are not in this checkout."""
    found: Counter[tuple[str, str]] = Counter()
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.getreports(outcome):
            if match := re.search(r"[\[-](golden|shared)-", getattr(report, "nodeid", "")):
                found[match[1], outcome] += 1
    for kind, folder in (("golden", "tests/golden"), ("shared", "shared/golden")):
        ran = found[kind, "passed"] + found[kind, "failed"]
        if ran or found[kind, "skipped"]:
            terminalreporter.write_line(
                f"{folder}: {ran} tests of the authors' cases ran, "
                f"{found[kind, 'skipped']} were skipped because their cases are not there"
            )
