"""Every option in a library message is a flag of the command that shows it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from commands import refused
from paths import ROOT

from mwa_export.calib.calibrate import CalibrationOptions
from mwa_export.cli.flags import ENGINES, FLAGS, flags_of, with_flags
from mwa_export.cli.main import _COMMANDS
from mwa_export.errors import OptionsError

_FLAG = re.compile(r"(?:mwa-export (\w+) )?(--[a-z][a-z0-9-]*)")
_NAMED = re.compile(r"`([a-z_][a-z0-9_]*)(=[^`]*)?`")
_OTHER_PROGRAMS = {
    "mwa_export/optional.py",  # pip
    "mwa_export/engines/replay_script.py",
    "mwa_export/runtimes/doctor.py",
    "mwa_export/trt/device.py",
}  # polygraphy, pip, nvidia-smi, docker


def library() -> list[Path]:
    return sorted([*(ROOT / "mwa_export").rglob("*.py"), *(ROOT / "calib").rglob("*.py")])


def strings_of(path: Path) -> list[str]:
    """Every string of a module but its docstrings; the values of f-strings are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]


def test_the_library_names_no_flag() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {text}"
        for path in library()
        if path.relative_to(ROOT).as_posix() not in _OTHER_PROGRAMS
        for text in strings_of(path)
        if re.search(r"(?<![\w-])--[a-z]{2}", text)
    }
    assert not found


def test_every_option_that_a_message_names_has_a_flag() -> None:
    """A value follows the name where an f-string ends: `max_excluded={count}`."""
    known = {*FLAGS, "engine_precision"}
    for path in library():
        for text in strings_of(path):
            for name in re.findall(r"`([a-z_][a-z0-9_]*)=", text):
                assert name in known, f"{path.relative_to(ROOT)}: {text}"


@pytest.mark.parametrize("field", FLAGS)
def test_the_table_names_flags_that_exist(field: str) -> None:
    owner, flag = FLAGS[field]
    assert flag in flags_of(owner)
    assert set(ENGINES.values()) <= flags_of("trt")


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_flag_in_a_message_exists_in_the_command_that_shows_it(command: str) -> None:
    options = [f"`{field}=5`" for field in FLAGS] + [f"`engine_precision={p}`" for p in ENGINES]
    for option in options:
        shown = with_flags(f"Change it: {option}", command)
        found = _FLAG.search(shown)
        assert found, shown
        assert found[2] in flags_of(found[1] or command), shown


def test_words_in_backticks_that_are_no_options_stay() -> None:
    text = "its args hold `model_ema`; see `Encoder` and `a b=c`"
    assert with_flags(text, "parity") == text


@pytest.mark.parametrize("command", [None, "quantize", "embed"])
def test_a_name_alone_is_a_flag_of_another_command_only_where_that_is_named(
    command: str | None,
) -> None:
    field = "a graph has the input `image`"
    assert with_flags(field, command) == field
    advice = "find it: `mwa-export search` with `image`"
    assert with_flags(advice, command).endswith("with --image")


def test_a_python_caller_reads_the_option_and_a_terminal_the_flag(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="`percentile=30`: expected above 50") as caught:
        CalibrationOptions(percentile=30)
    assert (caught.value.field, caught.value.value) == ("percentile", 30)
    assert with_flags(str(caught.value), "quantize").startswith("--percentile 30: expected above")
    (tmp_path / "bundle").mkdir()
    message = refused("onnx", tmp_path / "a.pth", "-o", tmp_path / "bundle", status=2)
    assert "--force" in message or "a.pth" in message
