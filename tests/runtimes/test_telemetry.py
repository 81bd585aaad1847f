"""Runtimes send no telemetry unless the user opts in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import files_below

pytestmark = pytest.mark.slow

SEARCH = "from mwa_export.cli.main import main; main()"


def search(home: Path, output: Path, *tracer: str, runtime: str) -> None:
    """Run a model in a process of its own, in which no environment variable decides anything."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "CI" and not name.startswith(("ORT_", "RAY_", "XDG_"))
    }
    subprocess.run(
        [*tracer, sys.executable, "-c", SEARCH, "search", output, "abc", "--runtime", runtime],
        env={**environment, "HOME": str(home)},
        stdout=subprocess.DEVNULL,
        check=True,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home folder."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


runtimes = pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])


@runtimes
def test_a_run_leaves_no_identifier_in_the_home_folder(
    runtime: str, home: Path, embedded: Path
) -> None:
    search(home, embedded, runtime=runtime)
    assert files_below(home) == {}


@runtimes
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_run_calls_nobody(runtime: str, home: Path, embedded: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    tracer = ("strace", "-f", "-e", "trace=connect,sendto", "-o", str(trace))
    if subprocess.run([*tracer, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not trace processes")
    search(home, embedded, *tracer, runtime=runtime)
    assert "exited with 0" in trace.read_text()
    assert "AF_INET" not in trace.read_text()


def test_the_choice_of_the_user_stays(home: Path) -> None:
    (home / "intel").mkdir()
    (home / "intel" / "openvino_telemetry").write_text("0")  # what opt_in_out writes
    code = (
        "import os, sys; from mwa_export.optional import require; "
        "require('openvino'); "
        "print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['RAY_USAGE_STATS_ENABLED'], "
        "'openvino_telemetry' in sys.modules)"
    )
    chosen = {"HOME": str(home), "ORT_DISABLE_TELEMETRY": "0", "RAY_USAGE_STATS_ENABLED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **chosen}, stdout=subprocess.PIPE
    )
    assert done.stdout.split() == [b"0", b"1", b"True"]
