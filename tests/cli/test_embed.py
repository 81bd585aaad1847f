"""The real command in a separate process: killed, terminated, on a full disk, without torch."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import files_below, refused, run
from paths import HELPERS

from mwa_export.vectors.verify import verify

pytestmark = pytest.mark.slow

DRIVER = HELPERS / "embed_driver.py"
KILLS = 20


def arguments(bundle: Path, out: Path, *more: object, rows: int = 400) -> list[str]:
    """The command line of a run in many small shards."""
    return [
        *(sys.executable, str(DRIVER), "embed", str(bundle)),
        *("--images", f"list:{rows // 5}", "--texts", f"list:{rows}", "-o", str(out)),
        *("--runtime", "onnxruntime", "--shard-size", "16", "--batch", "4"),
        *map(str, more),
    ]


def embed(
    bundle: Path, out: Path, *more: object, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments(bundle, out, *more, **options), capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def bundle(files: Path) -> Path:
    return files / "bundle"


@pytest.fixture(scope="module")
def whole(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All files of a run that was not interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = embed(bundle, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "images: 78 embedded + 2 failed + 0 skipped = 80 rows",
        "texts: 399 embedded + 1 failed + 0 skipped = 400 rows",
        str(out),
    ]
    assert verify(out).whole
    return files_below(out)


@contextmanager
def watched(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A running command whose JSON lines are read from its stdout."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_killed_twenty_times_the_output_is_that_of_an_uninterrupted_run(
    bundle: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    rng, out, kills, finished = random.Random(0), tmp_path / "out", 0, 0
    command = arguments(bundle, out, "--log-json", "-")
    while kills < KILLS:
        events = rng.choice((0, 1, 1, 2, 2, 3))  # shards until the kill; 0: while it starts
        with watched(command) as process:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)["event"]
                finished += event == "shard"
                events -= event == "shard"
                if events <= 0:
                    break
            # From nothing to a few files later: in the middle of whatever it does then.
            if rng.random() < 0.7:
                _spin(rng.random() * 0.004)
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        for name, data in files_below(out).items():
            if "/part-" in name and not Path(name).name.startswith("."):
                assert whole[name] == data, name  # never a part that is not finished
        if (out / "manifest.json").exists():
            break
    assert kills >= 15
    done = embed(bundle, out)
    assert done.returncode == 0, done.stderr
    assert files_below(out) == whole


def _spin(seconds: float) -> None:
    import time

    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_run_that_is_asked_to_stop_says_how_to_go_on(
    bundle: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    number: int,
    status: int,
    request: pytest.FixtureRequest,
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    # A shell starts background jobs with SIGINT ignored, which a child would inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    command = arguments(bundle, out, "--log-json", "-")
    # Its lines do not fit into the pipe, so it cannot be finished before the signal comes.
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "pipesize": 4096, "text": True}
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stderr=stderr, **piped) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "shard":
                process.send_signal(number)
                break
        rest = process.stdout.read()
        assert process.wait() == status
    assert f"finished stays in {out}. Run the same command again to continue." in log.read_text()
    assert "Traceback" not in log.read_text()
    assert json.loads(rest.splitlines()[-1])["event"] == "stop"
    assert list((out / ".work").glob("*.json"))
    assert not list(out.rglob(".part*"))
    assert embed(bundle, out).returncode == 0
    assert files_below(out) == whole


def test_a_run_whose_terminal_is_closed_can_be_gone_on_with(
    bundle: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, (terminal, inside) = tmp_path / "out", os.openpty()
    command = arguments(bundle, out, "--log-json", "-")
    with subprocess.Popen(command, stdout=inside, stderr=inside, start_new_session=True) as process:
        os.close(inside)
        while b'"shard"' not in os.read(terminal, 4096):
            pass
        os.close(terminal)
        assert process.wait() == 141
    assert not (out / "manifest.json").exists()
    assert embed(bundle, out).returncode == 0
    assert files_below(out) == whole


def test_json_lines_that_nobody_reads_end_the_run(
    bundle: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    command = arguments(bundle, out, "--log-json", "-")
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, pipesize=4096)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait() == 141
    assert "Traceback" not in log.read_text()
    assert embed(bundle, out).returncode == 0
    assert files_below(out) == whole


def test_json_lines_tell_the_run(bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert embed(bundle, tmp_path / "out", "--log-json", log).returncode == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["event"] for e in events[:2]] == ["start", "first-rows"]
    assert events[0]["rows_to_do"] == 480
    assert sum(e["event"] == "shard" for e in events) == 5 + 25
    assert sum(e["embedded"] + e["failed"] for e in events if e["event"] == "shard") == 480
    assert events[-1]["event"] == "finish"
    assert events[-1]["counts"]["images"] == {"rows": 80, "embedded": 78, "failed": 2, "skipped": 0}


@pytest.mark.slow
def test_too_many_errors_exit_with_status_1(bundle: Path, tmp_path: Path) -> None:
    done = embed(bundle, tmp_path / "out", "--max-errors", "1")
    assert done.returncode == 1
    assert "2 of" in done.stderr
    assert "Traceback" not in done.stderr
    assert embed(bundle, tmp_path / "out", "--max-errors", "3").returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs mount points")
def test_a_full_disk_ends_cleanly_and_the_run_goes_on(
    bundle: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        done = embed(bundle, disk / "out")
        assert done.returncode == 2
        assert "no space left on the device" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(disk.rglob(".part*"))
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        assert embed(bundle, disk / "out").returncode == 0
        assert files_below(disk / "out") == whole
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = embed(bundle, disk / "new")
        assert done.returncode == 2
        assert "Read-only file system" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_embedding_needs_neither_torch_nor_onnx(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys, runpy\n"
        "sys.modules['torch'] = sys.modules['onnx'] = None\n"
        f"sys.path.insert(0, {str(DRIVER.parent)!r})\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = arguments(bundle, tmp_path / "out", rows=20)
    done = subprocess.run(
        [command[0], "-c", code, *command[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_use_that_cannot_be_right_is_refused(bundle: Path, tmp_path: Path) -> None:
    assert "nothing to embed" in refused("embed", bundle, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").glob("*.json"))


def test_files_become_vectors_after_a_rehearsal(
    bundle: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, out = tmp_path / "texts.txt", tmp_path / "out"
    lines.write_text("abc de\n\nfg\n")
    arguments = [bundle, "--images", files / "data", "--texts", lines, "-o", out]
    rehearsed = run("embed", *arguments, "--runtime", "onnxruntime", "--dry-run")
    assert rehearsed.status == 0, rehearsed
    assert "23 rows in 2 shards" in rehearsed.stdout
    assert not out.exists()
    done = run("embed", *arguments, "--runtime", "onnxruntime", "--max-errors", "1")
    assert done.status == 0, done
    assert done.stdout.splitlines() == [
        "images: 20 embedded + 0 failed + 0 skipped = 20 rows",
        "texts: 2 embedded + 1 failed + 0 skipped = 3 rows",
        str(out),
    ]
    assert verify(out).whole
    lines.write_text("abc de\n\nother\n")
    assert "texts.fingerprint: was" in refused(
        "embed", *arguments, "-q", "--runtime", "onnxruntime"
    )
    monkeypatch.setattr(sys, "argv", ["mwa-embed", "--verify", str(out)])
    from mwa_export.cli.embed_cmd import main

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
