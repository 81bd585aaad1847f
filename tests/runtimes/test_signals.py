"""A signal after a runtime was closed does not crash the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CODE = """
import gc, os, signal, sys
import mwa_export

for runtime in (sys.argv[2],) * 2:
    options = mwa_export.RuntimeOptions(runtime=runtime, precision="float32")
    mwa_export.load(sys.argv[1], options).embed_texts(["a"])
    gc.collect()
    signal.signal(signal.SIGINT, lambda *_: print("heard", flush=True))
    os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_signal_after_a_model_was_freed_is_heard(runtime: str, files: Path) -> None:
    command = [sys.executable, "-c", CODE, str(files / "bundle"), runtime]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\nheard\n"), done.stderr
