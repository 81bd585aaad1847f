"""Every option of every command refuses invalid values before anything is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from commands import run
from trt_fake import FakeDriver, FakeTensorRT

from mwa_export.cli.main import cli

NUMBERS = ("nan", "inf", "-inf", "1e999", "-1", "-9223372036854775808", "0", "9223372036854775808")
TEXTS = ("", " ", "nan", "-1", "\0", "9" * 5000)
# What else a command needs to come as far as its options' values.
NEEDS = {"--reference": "absent", "--data": "absent", "--out": "new", "--texts": "absent.txt"}
# Values of a range or form that decides nothing more than where files are, and names.
NAMES = ("PATH", "TEXT", "NAME", "FOLDER", "SOURCE", "DATA", "KEY", "FILE", "PREFIX", "A,B")
PATTERNS = ("PATTERN", "STEP")


def options() -> Iterator[Any]:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            takes_value = isinstance(parameter, click.Option) and not parameter.is_flag
            if takes_value and parameter.default != "":  # of --model-prefix: all names
                flag = max(parameter.opts, key=len)
                yield pytest.param(name, parameter, id=f"{name} {flag}")


def hostile(option: click.Option) -> list[str]:
    """Values that the option cannot have."""
    kind = option.type
    if isinstance(kind, click.Choice):
        return ["", "nan"]
    if not isinstance(kind, click.types.FloatRange | click.IntRange):
        form = option.make_metavar(click.Context(click.Command("any")))
        free = form.startswith(NAMES + PATTERNS)
        return [""] if free else list(TEXTS)
    whole = isinstance(kind, click.IntRange)
    least, most = kind.min, kind.max
    return [
        text
        for text in NUMBERS
        if (number := float(text)) != number
        or abs(number) > (2**31 if whole else 1e300)
        or (least is not None and (number < least or (kind.min_open and number == least)))
        or (most is not None and number > most)
    ]


def arguments(name: str, option: click.Option, value: str) -> list[str]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    given = [p.name for p in command.params if isinstance(p, click.Argument)][:1]
    needed = {
        flag: stand_in
        for other in command.params
        for flag, stand_in in NEEDS.items()
        if other is not option and flag in other.opts
    }
    more = ["--fp16"] if name == "trt" else []
    pairs = [part for flag, stand_in in needed.items() for part in (flag, stand_in)]
    return [name, *("absent" for _ in given), *pairs, *more, f"{option.opts[-1]}={value}"]


@pytest.mark.parametrize(("name", "option"), list(options()))
def test_a_value_that_cannot_be_is_refused_before_anything_is_read(
    name: str, option: click.Option, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    FakeDriver().install(monkeypatch)  # else `trt` says that there is no GPU or no TensorRT
    FakeTensorRT(11).install(monkeypatch)
    values = hostile(option)
    assert values
    for value in values:
        status, stdout, stderr = run(*arguments(name, option, value))
        assert status == 2, (value, stderr)
        assert "Traceback" not in stderr
        assert stdout == ""
        assert any(flag in stderr for flag in option.opts), (value, stderr)
    assert not list(tmp_path.iterdir())
