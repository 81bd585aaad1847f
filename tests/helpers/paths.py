"""Paths of the checkout's folders, for tests at any depth."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
HELPERS = TESTS / "helpers"
ROOT = TESTS.parent
SHARED = ROOT.parent / "shared"  # cases beside the checkout; tests pass without them
GOLDEN = TESTS / "golden"  # small cases of the authors' code, committed
SHARED_GOLDEN = SHARED / "golden"  # large ones
REAL_SPM = SHARED / "spm" / "beit3.spm"  # the authors' tokenizer model, never committed
