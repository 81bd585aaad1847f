"""A disk that fills up during the scan gives one error, loses nothing, and can be resumed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import files_below
from embed_samples import embed

from mwa_export.data.sources import SourceOptions, open_source

SCAN = """
import resource, sys
from pathlib import Path
from mwa_export.data.sources import SourceOptions, open_source
from mwa_export.errors import MwaExportError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    open_source("text", sys.argv[1], SourceOptions()).scan(Path(sys.argv[2]))
except MwaExportError as error:
    print(error)
"""


@pytest.mark.parametrize("allowed", [10, 5000, 25_000])
def test_the_scan_stops_with_one_error_and_leaves_no_draft(tmp_path: Path, allowed: int) -> None:
    lines, work = tmp_path / "lines.txt", tmp_path / "work"
    lines.write_text("".join(f"{n}\n" for n in range(3000)))  # 22 kB of index, 28 kB of rows
    command = [sys.executable, "-c", SCAN, str(lines), str(work), str(allowed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert str(work) in done.stdout
    assert "the file is too large for" in done.stdout
    assert list(work.iterdir()) == []


def test_a_finished_output_and_its_update_survive_it(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from mwa_export.embed.run import Execution
    from mwa_export.embed.update import Update
    from mwa_export.errors import BundleError

    lines, out = tmp_path / "lines.txt", tmp_path / "out"
    lines.write_text("abc\n")
    embed(files / "bundle", [open_source("text", str(lines), SourceOptions())], out)
    before = files_below(out)
    lines.write_text("abc\nabc def\n")
    real = Path.open

    def full(path: Path, mode: str = "r", *arguments: object, **more: object) -> object:
        if "-rows." in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, *arguments, **more)  # type: ignore[call-overload]

    update = Execution(update=Update())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(BundleError, match="no space left"):
            embed(files / "bundle", [open_source("text", str(lines), SourceOptions())], out, update)
    assert files_below(out) == before
    source = open_source("text", str(lines), SourceOptions())
    assert embed(files / "bundle", [source], out, update).counts["text"].embedded == 2
