"""File names are UTF-8 in any locale, and the terminal gets its own encoding."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="elsewhere names are Unicode"),
]

MWA_EXPORT = str(Path(sys.executable).with_name("mwa-export"))
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("locale", [ASCII, {**ASCII, "PYTHONIOENCODING": "latin-1"}])
def test_names_work_in_a_locale_that_lacks_their_characters(
    locale: dict[str, str], files: Path, tmp_path: Path
) -> None:
    photos, out = tmp_path / "f\xeate \u5b57", tmp_path / "\xe9t\xe9"
    photos.mkdir()
    picture = next((files / "data").glob("*.png"))
    shutil.copy(picture, photos / "\xfc.png")
    command: list[str | Path] = [
        MWA_EXPORT,
        "embed",
        files / "bundle",
        "--images",
        photos,
        "-o",
        out,
    ]
    environment = {**os.environ, **locale}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    encoding = locale.get("PYTHONIOENCODING", "ascii")
    shown = str(out).encode(encoding, "backslashreplace")
    assert done.stdout.splitlines()[-1] in (shown, os.fsencode(out))
    found = subprocess.run(
        [MWA_EXPORT, "search", out, "--image", photos / "\xfc.png", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    assert b'"id": "\\u00fc.png"' in found.stdout
