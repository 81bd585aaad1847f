"""Every command advised in help, examples and messages exists, parses, and leads on."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from commands import Outcome, run
from paths import ROOT

from mwa_export.cli import console
from mwa_export.cli.flags import with_flags
from mwa_export.cli.main import _COMMANDS, cli

FOLDERS = ("mwa_export", "calib", "cli")


def parsed(command: str) -> click.Context:
    """What click makes of a command line."""
    program, name, *words = shlex.split(command)
    assert program in ("mwa-export", "mwa-embed"), command
    if program == "mwa-embed":
        name, words = "embed", [name, *words]
    with click.Context(cli, info_name="mwa-export") as parent:
        found = cli.get_command(parent, name)
        assert found is not None, command
        return found.make_context(name, words, parent=parent)


def texts_of(path: Path) -> Iterator[str]:
    """Every string of a module, with X for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "X" for p in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def modules() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_example_of_the_help_parses(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    examples = re.findall(r"^ +(mwa-(?:export|embed) .*)$", command.epilog or "", re.M)
    assert examples
    for example in examples:
        parsed(example)


def test_commands_that_messages_advise_exist_with_the_options_they_name() -> None:
    found = 0
    for path in modules():
        for text in texts_of(path):
            for quoted in re.findall(r"`mwa-export ([a-z][^`]*)`", text):
                found += 1
                words = shlex.split(quoted)
                assert words[0] in _COMMANDS, f"{path.name}: {text}"
                flags = [word for word in words if word.startswith("--")]
                command = cli.get_command(click.Context(cli), words[0])
                assert command is not None
                assert set(flags) <= {o for p in command.params for o in p.opts}, text
    assert found > 20


def test_options_that_follow_an_advised_command_belong_to_it() -> None:
    """`mwa-export trt X` with `refit`: the words after "with" become flags of trt."""
    found = 0
    for path in modules():
        for text in texts_of(path):
            shown = with_flags(text, None)
            for name, more in re.findall(
                r"`mwa-export ([a-z]+)(?: [^`]*)?` with ((?:--[a-z0-9-]+ ?(?:and )?)+)", shown
            ):
                found += 1
                for flag in re.findall(r"--[a-z0-9-]+", more):
                    command = cli.get_command(click.Context(cli), name)
                    assert command is not None
                    assert flag in {o for p in command.params for o in p.opts}, shown
    assert found > 5


def advice(outcome: Outcome, **filled: object) -> str:
    """The command that a run advises last, with its placeholders filled in."""
    assert outcome.status == 0, outcome
    last = outcome.stderr.splitlines()[-1]
    assert last.startswith("Next: mwa-export "), outcome.stderr
    words = [str(filled.get(word, word)) for word in shlex.split(last.removeprefix("Next: "))]
    capitals = [word for word in words if word.isupper()]
    assert not capitals, last
    command = shlex.join(words)
    parsed(command)
    return command


def follow(command: str, *more: object) -> Outcome:
    return run(*shlex.split(command)[1:], *more)


@pytest.mark.slow
def test_following_the_advice_leads_from_a_checkpoint_to_a_page(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (spm,) = files.glob("*.spm")
    inspected = run("inspect", files / "checkpoint.pth")
    export = advice(inspected, SPM=spm)
    check = advice(follow(export), DATA=files / "data")
    images = next(path.parent for path in sorted((files / "data").rglob("*.png")))
    checked = follow(check, "--undecided", "pass")
    embed = advice(checked, FOLDER=images)
    search = advice(follow(embed), TEXT="it's a red bus")
    page = advice(follow(search))
    done = follow(page)
    assert done.status == 0, done
    assert Path("found.html").is_file()
    assert "no browser could be opened" in done.stderr


def test_names_in_advice_are_quoted_for_a_shell(files: Path, tmp_path: Path) -> None:
    strange = tmp_path / "my bundle; rm -rf $HOME"
    strange.symlink_to(files / "bundle")
    command = advice(run("inspect", strange), FOLDER="photos")
    assert shlex.split(command)[2] == str(strange)


@pytest.mark.parametrize("flags", [("-q",), ("--json",)])
def test_nothing_is_advised_where_nobody_reads_it(flags: tuple[str, ...], files: Path) -> None:
    assert "Next:" not in run("inspect", files / "bundle", *flags).stderr


def test_options_that_decide_how_a_checkpoint_is_read_are_repeated(
    files: Path,
) -> None:
    how = ("--model-key", "model", "--heads", 2)
    command = advice(run("inspect", files / "checkpoint.pth", *how), SPM="a.spm")
    assert "--model-key model --heads 2" in command


def test_a_dry_run_advises_the_run_itself(files: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("abc\n")
    arguments = ["embed", files / "bundle", "--texts", tmp_path / "texts.txt"]
    arguments += ["-o", tmp_path / "out", "--runtime", "onnxruntime"]
    command = advice(run(*arguments, "--dry-run"))
    assert command == shlex.join(["mwa-export", *map(str, arguments)])


def test_paths_that_look_like_options_are_advised_so_that_they_can_be_copied(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_quiet", False)
    console.next_step("search", Path("-my vectors"), "--in", "images")
    assert capsys.readouterr().err == "Next: mwa-export search './-my vectors' --in images\n"


@pytest.mark.parametrize("arrow", [True, False])
def test_embedding_is_advised_in_a_format_that_can_be_written(
    arrow: bool,
    files: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "_quiet", False)
    monkeypatch.setattr(console, "installed", lambda _module: arrow)
    console.next_embed(files / "bundle")
    assert ("--format npy" in capsys.readouterr().err) is not arrow
