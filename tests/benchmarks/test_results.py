"""Benchmark results do not contain folder names of the machine."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from paths import ROOT

FOLDER = ROOT / "benchmarks"
ABSOLUTE = re.compile(r"(?<![\w.~/])/(?:home|root|tmp|usr|var|work|opt|mnt|Users)/")


@pytest.mark.parametrize("path", sorted((FOLDER / "results").iterdir()), ids=lambda p: p.name)
def test_results_name_no_folder_of_a_machine(path: Path) -> None:
    assert ABSOLUTE.findall(path.read_text(encoding="utf-8")) == []


def test_command_is_kept_without_folders_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from machine import command_line

    words = ["--base-bundle", "/data/base", "--out=/data/x.json", "--rounds", "5", "a/b", "of it"]
    monkeypatch.setattr(sys, "argv", ["/data/clone/benchmarks/embed.py", *words])
    expected = "--base-bundle base --out=x.json --rounds 5 a/b 'of it'"
    assert command_line() == f"python benchmarks/embed.py {expected}"
