"""Run commands inside the test process, and define what a clear refusal looks like."""

from __future__ import annotations

import contextlib
import io
import random
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import sentencepiece
import torch
from configs import MWA
from torch import Tensor

from mwa_export.cli.main import main
from mwa_export.model.synthetic import training_args
from mwa_export.spec import ModelConfig


class Outcome(NamedTuple):
    """What a run of the command left for its caller."""

    status: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Outcome:
    """`mwa-export ARGUMENTS...`"""
    stdout, stderr = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    argv = ["mwa-export", *map(str, arguments)]
    try:
        with (
            mock.patch.object(sys, "argv", argv),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            main()
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 99
        return Outcome(status, stdout.getvalue(), stderr.getvalue())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def refused(*arguments: object, status: int = 2) -> str:
    """The error message of a run that must fail with that status, in one line and nothing after."""
    outcome = run(*arguments)
    assert outcome.status == status, outcome
    assert outcome.stdout == ""
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, outcome.stderr
    assert outcome.stderr.endswith(errors[0] + "\n"), outcome.stderr
    return errors[0].removeprefix("error: ")


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file and folder below, hidden ones too; folders have no bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


@cache
def spm_model(pieces: int, seed: int = 0) -> bytes:
    """A SentencePiece model with that many pieces, trained on random words."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 5))) for _ in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(rng.choices(words, k=6)) for _ in range(300)]),
        model_writer=model,
        vocab_size=pieces,
        minloglevel=2,
    )
    return model.getvalue()


def save(path: Path, tensors: dict[str, Tensor], config: ModelConfig = MWA, **more: Any) -> Path:
    """A checkpoint file with these tensors, and the options of ``config``."""
    torch.save({"model": tensors, "args": training_args(config), **more}, path)
    return path
