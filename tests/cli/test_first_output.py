"""Output starts before heavy packages load, but not where it would be in the way."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mwa_export.cli.main import _colour
from mwa_export.cli.waiting import begin, waiting

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a terminal")
MWA_EXPORT = str(Path(sys.executable).with_name("mwa-export"))
SLOW = """
import sys, time
sys.path.insert(0, {folder!r})
from mwa_export.cli import main as module
from mwa_export.cli import doctor_cmd

def examine(*_):
    import torch
    raise SystemExit(0)

from mwa_export.runtimes import doctor
doctor.examine = examine
module.main()
"""


@pytest.fixture
def slow(tmp_path: Path) -> list[str]:
    """A command that imports a `torch` which takes a second, and writes nothing."""
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(1)\n")
    return [sys.executable, "-c", SLOW.format(folder=str(tmp_path)), "doctor"]


def on_terminal(command: list[str], **environment: str) -> tuple[bytes, float, float]:
    """What a command writes to a terminal; seconds until the first byte, and to the end."""
    leader, follower = pty.openpty()
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    started = time.monotonic()
    child = subprocess.Popen(
        command, stdout=follower, stderr=follower, env=variables | {"TERM": "xterm"} | environment
    )
    os.close(follower)
    written, first = b"", 0.0
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # the terminal is closed
            break
        if not part:
            break
        first = first or time.monotonic() - started
        written += part
    child.wait()
    os.close(leader)
    return written, first, time.monotonic() - started


def test_a_terminal_shows_a_spinner_that_turns_and_goes_away(slow: list[str]) -> None:
    written, first, end = on_terminal(slow)
    assert written.count(b"loading PyTorch") > 3
    assert end - first > 0.8, "it came before the import, not after"
    assert b"starting" in written
    assert written.endswith(b"\r\x1b[2K")


def test_without_a_terminal_one_plain_line_is_written(slow: list[str]) -> None:
    done = subprocess.run(slow, capture_output=True)
    assert (done.stdout, done.stderr) == (b"", b"loading PyTorch ...\n")


def test_a_dumb_terminal_gets_the_plain_line(slow: list[str]) -> None:
    assert on_terminal(slow, TERM="dumb")[0] == b"loading PyTorch ...\r\n"


@pytest.mark.parametrize("quiet", ["-q", "--quiet", "-vq"])
def test_quiet_shows_nothing(slow: list[str], quiet: str) -> None:
    done = subprocess.run([*slow, quiet], capture_output=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_ascii_terminals_get_an_ascii_spinner(slow: list[str]) -> None:
    written, _, _ = on_terminal(slow, PYTHONIOENCODING="ascii")
    assert written.isascii()
    assert re.search(rb"[-|/\\] loading PyTorch", written)


def test_output_ends_the_spinner_first() -> None:
    code = "import sys; sys.stdout.write('result'); sys.stdout.flush()"
    start = "from mwa_export.cli.ending import run_as_process; from mwa_export.cli import waiting; "
    run = f"run_as_process(lambda: waiting.waiting.show('loading X') or exec({code!r}) or 0)"
    written, _, _ = on_terminal([sys.executable, "-c", start + run])
    assert written.endswith(b"loading X\r\x1b[2Kresult"), written


def test_force_color_makes_no_terminal_of_a_file(files: Path) -> None:
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"}
    command = [MWA_EXPORT, "inspect", str(files / "bundle")]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert b"\x1b[" in done.stderr, "colours were asked for"
    assert b"\r" not in done.stderr
    assert b"\x1b[2K" not in done.stderr


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_color_has_no_colour_in_steps_and_tables(files: Path, variables: dict[str, str]) -> None:
    written, _, _ = on_terminal([MWA_EXPORT, "inspect", str(files / "bundle")], **variables)
    assert b"check the bundle's files" in written
    assert b"\x1b[3" not in written
    assert b"\x1b[9" not in written


def test_looking_for_a_package_is_not_loading_it(slow: list[str]) -> None:
    code = slow[2].replace(
        "import torch", "import importlib.util; importlib.util.find_spec('torch')"
    )
    done = subprocess.run([*slow[:2], code, *slow[3:]], capture_output=True)
    assert b"PyTorch" not in done.stderr


def test_imports_of_a_library_caller_are_not_watched() -> None:
    assert waiting not in sys.meta_path
    begin(["doctor", "-q"])
    assert waiting not in sys.meta_path


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "--version", "parity --help", "embed --help"])
def test_help_loads_neither_rich_nor_anything_heavy(command: str) -> None:
    code = (
        "import sys; from mwa_export.cli.main import main\n"
        f"sys.argv[1:] = {command.split()!r}\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'rich', 'torch', 'onnx', 'onnxruntime', 'openvino', 'pyarrow'}\n"
        "raise SystemExit(len(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("variables", "colours"),
    [
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({}, None),
    ],
)
def test_click_follows_the_variables_that_rich_follows(
    variables: dict[str, str], colours: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _colour() is colours
