"""Run the real `polygraphy` command with TensorRT-RTX, on machines without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

_TOOL = """\
#!{python}
import sys
arguments = sys.argv[1:]
if {without_gpu}:
    arguments = [name for name in arguments if name != "--trt"]
    if arguments[0] == "run" and "--onnxrt" not in arguments:
        arguments.append("--onnxrt")
sys.argv = ["polygraphy", *arguments]
from polygraphy.tools import main
sys.exit(main())
"""
_RTX = """\
from tensorrt_rtx_bindings import *
from tensorrt_rtx_bindings import __version__
"""


def require(*modules: str) -> None:
    """Skip the test, and say why, where one of the modules is not installed."""
    for module in modules:
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install 'mwa-export[dev]'")


class Tool:
    """A `polygraphy` on a path of its own; without a GPU `--trt` becomes `--onnxrt`."""

    def __init__(self, folder: Path, *, without_gpu: bool = False, rtx: bool = True) -> None:
        self.path = folder / "polygraphy"
        self.path.write_text(_TOOL.format(python=sys.executable, without_gpu=without_gpu))
        self.path.chmod(0o755)
        self.rtx = rtx
        (folder / "tensorrt_rtx.py").write_text(_RTX)  # what the wheels' metapackage brings

    def run(self, *command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run any command that finds this `polygraphy`; its output holds both streams."""
        environment = {
            **os.environ,
            "PATH": f"{self.path.parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{self.path.parent}:{os.environ.get('PYTHONPATH', '')}",
            "POLYGRAPHY_USE_TENSORRT_RTX": str(int(self.rtx)),
        }
        return subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
