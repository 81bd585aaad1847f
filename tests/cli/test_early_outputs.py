"""An unusable output path is reported before the input is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import refused


@pytest.mark.parametrize(
    "arguments",
    [
        "split absent.pth --base absent.pth -o {}/a.safetensors",
        "search absent abc --html {}/found.html",
        "parity absent --reference absent --data absent -o {}/parity",
        "bench absent -o {}/bench",
        "onnx absent.pth -o {}/bundle",
        "quantize absent --data absent -o {}/bundle",
        "trt absent --fp16 --graphs-only {}/graphs",
        "demo -o {}/demo",
    ],
    ids=lambda arguments: arguments.split()[0],
)
def test_an_output_below_a_file_is_refused_first(arguments: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    message = refused(*arguments.format(file).split())
    assert message.startswith(str(file))
    assert "a part of this path is a file" in message
