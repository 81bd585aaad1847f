"""Help, errors, suggestions and versions of commands."""

from __future__ import annotations

import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest
from commands import refused, run

from mwa_export.cli import console
from mwa_export.cli.main import _COMMANDS


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_shows_no_range_that_has_no_bounds(command: str) -> None:
    assert "None" not in run(command, "--help").stdout


def test_inspect_takes_a_bundle_too() -> None:
    assert "[CHECKPOINT|BUNDLE]" in run("inspect", "--help").stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "missing"), [(["bundle"], "missing -o OUT"), (["-o", "out"], "missing BUNDLE")]
)
def test_embed_names_the_one_that_is_missing(arguments: list[str], missing: str) -> None:
    assert refused("embed", *arguments).startswith(f"{missing}.")


def test_a_part_of_no_machines_is_refused_without_an_impossible_range() -> None:
    message = refused("embed", "bundle", "--texts", "a.txt", "-o", "out", "--shard", "1/0")
    assert "N at least 1" in message


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ("quantise bundle", "Did you mean 'quantize'?"),
        ("Parity bundle", "Did you mean 'parity'?"),
        ("parity bundle --max-recal-drop 1", "Did you mean '--max-recall-drop'"),
        ("trt bundle --fp61", "'--fp16'"),
    ],
)
def test_a_slip_of_the_pen_is_answered_with_what_was_meant(arguments: str, meant: str) -> None:
    assert meant in refused(*arguments.split())


@pytest.mark.parametrize(
    ("arguments", "help_page"),
    [
        ("nonsense", "mwa-export --help"),
        ("--nonsense", "mwa-export --help"),
        ("parity", "mwa-export parity --help"),
        ("parity bundle --seed x", "mwa-export parity --help"),
        ("search a b c d", "mwa-export search --help"),
        ("bench bundle --tower", "mwa-export bench --help"),
        ("bench bundle --tower both --tower x", "mwa-export bench --help"),
    ],
)
def test_every_wrong_use_is_one_line_that_names_the_help(arguments: str, help_page: str) -> None:
    message = refused(*arguments.split())
    assert message.endswith(f"See: {help_page}")
    assert message[0].islower() or message.startswith("-")


def test_a_file_name_in_an_error_keeps_its_letters(tmp_path: Path) -> None:
    out = tmp_path / "Missing.bin"
    assert str(out) in refused("split", "c.pth", "--base", "b.pth", "-o", out)


@pytest.mark.parametrize("module", [["-m", "mwa_export"]])
def test_the_module_is_the_same_command(module: list[str], tmp_path: Path) -> None:
    def output(*arguments: str) -> tuple[int, bytes, bytes]:
        command = [sys.executable, *module, *arguments]
        done = subprocess.run(command, capture_output=True, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    status, stdout, _ = output("parity", "--help")
    assert (status, stdout.split()[:3]) == (0, [b"Usage:", b"mwa-export", b"parity"])
    assert output("--version")[1].startswith(b"mwa-export, version ")
    assert output("nonsense")[0] == 2


def test_both_entry_points_tell_the_version() -> None:
    for name in ("mwa-export", "mwa-embed"):
        program = str(Path(sys.executable).with_name(name))
        done = subprocess.run([program, "--version"], capture_output=True, text=True)
        assert done.stdout.startswith("mwa-export, version "), done


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_help_says_how_completion_is_turned_on_and_that_works(shell: str) -> None:
    text = run("--help").stdout
    (line,) = [line for line in text.splitlines() if line.startswith(f"  {shell} ")]
    assert f"_MWA_EXPORT_COMPLETE={shell}_source mwa-export" in line
    program = str(Path(sys.executable).with_name("mwa-export"))
    environment = {
        "PATH": "/usr/bin:/bin",
        "_MWA_EXPORT_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "mwa-export qu",
        "COMP_CWORD": "qu" if shell == "fish" else "1",
    }
    done = subprocess.run([program], capture_output=True, text=True, env=environment)
    assert "quantize" in done.stdout


def test_the_help_names_every_exit_status() -> None:
    statuses = run("--help").stdout.partition("Exit status:")[2]
    for status in ("0", "1", "2", "3", "70", "128+N", "141"):
        assert f"\n  {status} " in statuses


@pytest.mark.parametrize("works", [True, False])
def test_open_shows_the_page_or_says_where_it_is(
    works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setenv("BROWSER", "a-browser")

    def browse(url: str) -> bool:
        opened.append(url)
        return works

    monkeypatch.setattr(webbrowser, "open", browse)
    page = tmp_path / "a report.html"
    console.show_page(page, open_it=True)
    written = capsys.readouterr()
    assert opened == [page.as_uri()]
    assert written.out == f"{page}\n"
    assert (str(page) in written.err) != works


def test_without_a_display_no_browser_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(webbrowser, "open", lambda url: pytest.fail("a browser was started"))
    console.show_page(tmp_path / "report.html", open_it=True)
    assert "no browser could be opened" in capsys.readouterr().err
