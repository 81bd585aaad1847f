"""Exit statuses for bugs, signals and closed pipes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import run

from mwa_export.runtimes import doctor
from mwa_export.vectors.output import Output

MWA_EXPORT = str(Path(sys.executable).with_name("mwa-export"))
DOCTOR = "import sys; from mwa_export.cli.main import main; sys.argv[1:] = ['doctor']; "


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [KeyError("vision"), EOFError("Ran out of input"), OSError("no number"), RecursionError()],
    ids=lambda error: type(error).__name__,
)
def test_a_bug_has_a_status_of_its_own_and_keeps_its_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine", failing(error))
    status, _, stderr = run("doctor")
    assert status == 70
    assert "Traceback" in stderr
    assert type(error).__name__ in stderr
    assert stderr.splitlines()[-1].startswith("bug: ")


def test_a_bug_in_a_worker_thread_is_one_too(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Output, "save", failing(ZeroDivisionError()))
    (tmp_path / "texts.txt").write_text("abc\n")
    arguments = (files / "bundle", "--texts", tmp_path / "texts.txt", "-o", tmp_path / "out")
    assert run("embed", *arguments, "--runtime", "onnxruntime").status == 70


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error", "a/b")])
def test_a_machine_that_gives_out_is_no_bug(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine", failing(error))
    status, _, stderr = run("doctor")
    assert status == 2
    assert "Traceback" not in stderr


posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX pipes and signals")


@posix
@pytest.mark.parametrize("gone", ["stdout", "stderr"])
@pytest.mark.parametrize("arguments", [["--help"], ["onnx", "--help"], ["onix"], ["doctor", "-q"]])
def test_a_closed_pipe_ends_the_run_as_sigpipe_would(arguments: list[str], gone: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, gone: writing}
    done = subprocess.run([MWA_EXPORT, *arguments], **streams, text=True, check=False)
    os.close(writing)
    fails = arguments == ["onix"]
    said = fails if gone == "stderr" else not fails  # something that nobody could read
    assert done.returncode == (141 if said else 2 if fails else 0)
    other = done.stdout if gone == "stderr" else done.stderr
    assert "Traceback" not in other
    assert "Exception ignored" not in other


@posix
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", ["--version", "doctor --json -q"])
def test_a_closed_output_acts_like_dev_null(arguments: str, closed: str) -> None:
    command = f"{MWA_EXPORT} {arguments} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@posix
def test_files_do_not_get_the_numbers_of_closed_streams() -> None:
    code = (
        "import os; from mwa_export.cli.ending import open_closed_streams; open_closed_streams(); "
        "raise SystemExit(os.open(os.devnull, os.O_RDONLY))"
    )
    command = f"{sys.executable} -c '{code}' <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command]).returncode > 2


@posix
def test_a_closed_standard_input_is_not_read_as_no_rows(files: Path, tmp_path: Path) -> None:
    command = f"{MWA_EXPORT} embed {files / 'bundle'} --texts - -o {tmp_path / 'out'} -q <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard input is closed")


@posix
def test_output_that_a_disk_has_no_room_for_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([MWA_EXPORT, "--help"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: standard output: No space left on device")


@posix
def test_a_log_that_a_disk_has_no_room_for_is_named(files: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("abc\n")
    arguments = (files / "bundle", "--texts", tmp_path / "texts.txt", "-o", tmp_path / "out")
    _, _, stderr = run("embed", *arguments, "--log-json", "/dev/full", "--runtime", "onnxruntime")
    assert stderr.splitlines()[-1].startswith("error: /dev/full: No space left on device")


@posix
@pytest.mark.parametrize(
    ("ignored", "number", "status"),
    [(False, signal.SIGHUP, 129), (False, signal.SIGTERM, 143), (True, signal.SIGHUP, 0)],
)
def test_signals_end_a_run_unless_they_were_ignored(
    ignored: bool, number: signal.Signals, status: int
) -> None:
    code = (
        f"{DOCTOR}import os, signal; from mwa_export.runtimes import doctor; was = doctor.examine; "
        f"doctor.examine = lambda: (os.kill(os.getpid(), {number:d}), was())[1]; "
    )
    before = f"import signal; signal.signal({number:d}, signal.SIG_IGN); " if ignored else ""
    done = subprocess.run([sys.executable, "-c", f"{before}{code}main()"], capture_output=True)
    assert done.returncode == status
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", "-1.4 - \\xe9 \\u5b57 \\udce9"),
        ("latin-1", "-1.4 - \xe9 \\u5b57 \\udce9"),
        ("cp1252", "-1.4 \N{EN DASH} \xe9 \\u5b57 \\udce9"),
        ("utf-8", "\N{MINUS SIGN}1.4 \N{EN DASH} \xe9 \u5b57 \\udce9"),
    ],
)
def test_every_encoding_takes_every_text(encoding: str, expected: str) -> None:
    code = (
        "from mwa_export.cli.ending import prepare_streams; prepare_streams(); "
        'print("\\N{MINUS SIGN}1.4 \\N{EN DASH} \\xe9 \\u5b57 \\udce9", end="")'
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    assert done.stdout.decode(encoding) == expected
