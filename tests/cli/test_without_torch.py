"""Commands on bundles run where only a plain install is: no torch, no onnx."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CODE = """
import sys

class Bare:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchscale", "onnx", "safetensors"):
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = map(Bare, sys.meta_path)
from mwa_export.cli.main import main

sys.argv[0] = "mwa-export"
main()
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("inspect BUNDLE", 0),
        ("inspect BUNDLE --json", 0),
        ("doctor --json", 0),
        ("embed BUNDLE --texts TEXTS -o OUT --runtime onnxruntime", 0),
        ("inspect CHECKPOINT", 2),
        ("onnx CHECKPOINT -o OUT", 2),
    ],
)
def test_command_runs_or_names_the_extra(
    arguments: str, status: int, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("a red bus\n")
    paths = {
        "BUNDLE": files / "bundle",
        "CHECKPOINT": files / "checkpoint.pth",
        "TEXTS": tmp_path / "texts.txt",
        "OUT": tmp_path / "out",
    }
    command = [str(paths.get(part, part)) for part in arguments.split()]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert ('pip install "mwa-export[export]"' in done.stderr) == (status == 2)
