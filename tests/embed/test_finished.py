"""Running the command on a finished output reports it, even if moved or with failed rows."""

from __future__ import annotations

import errno
import os
import pathlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from commands import files_below
from embed_samples import embed, pictures, texts

from mwa_export.embed.progress import MaxErrors, judge
from mwa_export.embed.run import Execution
from mwa_export.errors import DataError, TooManyErrorsError
from mwa_export.vectors.manifest import Counts


@pytest.fixture(scope="module")
def bundle(files: Path) -> Path:
    return files / "bundle"


class ReadOnly:
    """Calls of `os` as they are below a folder on a disk that is mounted read only."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._access, self._real = str(folder), os.access, {}
        for name in ("mkdir", "unlink", "rmdir", "replace", "rename", "open"):
            self._real[name] = getattr(os, name)

    def access(self, path: Any, mode: int) -> bool:
        return not self._inside(path) and self._access(path, mode)

    def refusing(self, name: str) -> Any:
        def call(path: Any, *arguments: Any, **more: Any) -> Any:
            writes = name != "open" or arguments[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and self._inside(path):
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return self._real[name](path, *arguments, **more)

        return call

    def _inside(self, path: Any) -> bool:
        return str(path).startswith(self._folder)

    def __enter__(self) -> None:
        names = {name: self.refusing(name) for name in self._real} | {"access": self.access}
        self._patches = ExitStack()
        self._patches.enter_context(mock.patch.multiple(os, **names))
        accessor = getattr(pathlib, "_NormalAccessor", None)
        if accessor is not None:  # Python 3.10: pathlib keeps the calls that it found in `os`
            kept: dict[str, Any] = {
                n: staticmethod(c) for n, c in names.items() if n not in ("open", "access")
            }
            self._patches.enter_context(mock.patch.multiple(accessor, **kept))

    def __exit__(self, *_: object) -> None:
        self._patches.close()


def test_a_read_only_disk_is_only_read(bundle: Path, tmp_path: Path) -> None:
    out, sources = tmp_path / "out", [texts(20)]
    made = embed(bundle, sources, out)
    (out / ".lock-1-of-2").touch()
    before = files_below(out)
    with ReadOnly(out):
        again = embed(bundle, sources, out)
        assert (again.complete, again.counts, again.embedded_now) == (True, made.counts, 0)
        with pytest.raises(DataError, match="rows: was 20, is 21"):
            embed(bundle, [texts(21)], out)
    assert files_below(out) == before


def test_a_limit_of_errors_holds_for_a_finished_output_too(bundle: Path, tmp_path: Path) -> None:
    out, sources = tmp_path / "out", [pictures(12, bad=(1, 2)), texts(8)]
    embed(bundle, sources, out)
    for text in ("2", "14%"):
        with pytest.raises(TooManyErrorsError, match="3 of 20 rows failed"):
            embed(bundle, sources, out, Execution(max_errors=MaxErrors.parse(text)))
    assert embed(bundle, sources, out, Execution(max_errors=MaxErrors(3))).complete


@pytest.mark.parametrize(
    ("failed", "limit", "passes"),
    [
        (10, None, True),
        (11, None, False),
        (11, MaxErrors(11), True),
        (99, MaxErrors(100, percent=True), True),
        (100, MaxErrors(100, percent=True), False),
        (100, None, False),
    ],
)
def test_a_tenth_may_fail_or_what_is_allowed_but_never_all(
    failed: int, limit: MaxErrors | None, passes: bool
) -> None:
    found: Any = {"text": Counts(1000, 1000, 0, 0), "image": Counts(150, 100 - failed, failed, 50)}
    if passes:
        judge(found, limit, errors="errors.parquet")
    else:
        with pytest.raises(TooManyErrorsError, match=f"{failed} of 100 images failed"):
            judge(found, limit, errors="errors.parquet")
