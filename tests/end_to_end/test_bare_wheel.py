"""With only the wheel's plain dependencies, each command runs or names the extra it needs.

Tested on Python 3.10 and on the newest Python found on this machine.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from commands import files_below
from embed_samples import png
from paths import ROOT

from mwa_export.cli.main import cli

pytestmark = pytest.mark.slow

Version = tuple[int, int]
OLDEST: Version = (3, 10)
_IN_WHEEL = ("pyproject.toml", "README.md", "LICENSE", "mwa_export", "cli", "calib")
_VERSION = (
    "import sys; v = sys.version_info; print(v[0], v[1]) if v.releaselevel == 'final' else exit(1)"
)


@cache
def pythons() -> dict[Version, str]:
    """Interpreters on PATH and of pyenv, by version."""
    minors = range(OLDEST[1], OLDEST[1] + 20)
    named = [found for minor in minors if (found := shutil.which(f"python3.{minor}"))]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    installed = sorted(map(str, pyenv.glob("versions/3.*/bin/python")))
    versions: dict[Version, str] = {}
    for path in [*named, *installed]:
        done = subprocess.run([path, "-c", _VERSION], capture_output=True, text=True, check=False)
        if done.returncode == 0:  # pyenv's shims fail for versions that are not selected
            major, minor = map(int, done.stdout.split())
            if (major, minor) >= OLDEST:
                versions.setdefault((major, minor), path)
    return versions or {sys.version_info[:2]: sys.executable}


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PIP_TARGET")}
    environment |= {"COLUMNS": "80", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=cwd,
    )


def pip(python: str | Path, *arguments: str | Path) -> None:
    """Run pip with its own configuration; skip where no package registry answers."""
    done = run(python, "-m", "pip", *arguments)
    if done.returncode == 0:
        return
    answers = run(python, "-m", "pip", "download", "-q", "--no-deps", "-d", os.devnull, "click")
    if "No matching distribution" in answers.stderr or "onnection" in answers.stderr:
        pytest.skip("no package registry answers")
    raise AssertionError(done.stderr)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources: a build leaves files beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in _IN_WHEEL:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name)
        else:
            shutil.copyfile(ROOT / name, source / name)
    pip(sys.executable, "wheel", "-q", "--no-deps", "-w", folder, source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module", params=["oldest", "newest"])
def bare(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of the commands in a fresh environment with the wheel and no extra."""
    found = pythons()
    version = min(found) if request.param == "oldest" else max(found)
    if request.param == "newest" and len(found) == 1:
        pytest.skip("there is only one Python here")
    folder = tmp_path_factory.mktemp(request.param)
    run(found[version], "-m", "venv", folder)
    pip(folder / "bin" / "python", "install", "-q", "--no-compile", wheel)
    return folder / "bin"


@pytest.fixture(scope="module")
def vectors(bare: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `embed` writes there of images and texts."""
    root = tmp_path_factory.mktemp("vectors")
    (root / "images").mkdir()
    for number in range(3):
        (root / "images" / f"{number}.png").write_bytes(png(number))
    (root / "t.csv").write_text("text,n\na red bus,1\nabc,2\nabc,3\n")
    done = run(
        *(bare / "mwa-export", "embed", files / "bundle", "-o", root / "out", "--format", "npy"),
        *("--images", root / "images", "--texts", root / "t.csv"),
    )
    assert done.returncode == 0, done.stderr
    return root / "out"


EXPORT, EMBED = r'"mwa-export\[export\]"', r'"mwa-export\[embed\]"'
# Without a GPU `trt` and `refit` may say that first.
ENGINES = r'"mwa-export\[tensorrt\]"|GPU'
RUNS = (
    "mwa-export doctor",
    "mwa-export inspect BUNDLE",
    "mwa-export embed BUNDLE --texts TEXTS -o OUT --format npy --runtime onnxruntime",
    "mwa-embed BUNDLE --texts LINES -o OUT --format npy --dtype int8",
    "mwa-export embed --verify VECTORS",
    "mwa-export search VECTORS 'a red bus'",
    "mwa-export search VECTORS --image IMAGE --in texts --json",
    "mwa-export parity BUNDLE --reference BUNDLE --data DATA -o OUT --undecided pass",
    "mwa-export bench BUNDLE -o OUT --rounds 3 --tower text --batch 1",
)
NEEDS = (  # and what the error says
    ("mwa-export demo -o OUT", EXPORT),
    ("mwa-export inspect CHECKPOINT", EXPORT),
    ("mwa-export onnx CHECKPOINT -o OUT", EXPORT),
    ("mwa-export split CHECKPOINT --base CHECKPOINT -o OUT.safetensors", EXPORT),
    ("mwa-export parity BUNDLE --reference CHECKPOINT --data DATA -o OUT", EXPORT),
    ("mwa-export parity BUNDLE --reference BUNDLE --data DATA -o OUT --layers", EXPORT),
    ("mwa-export bench BUNDLE --reference CHECKPOINT -o OUT", EXPORT),
    ("mwa-export quantize BUNDLE --data DATA -o OUT", EXPORT),
    ("mwa-export trt BUNDLE --fp16 -o OUT", ENGINES),
    ("mwa-export trt BUNDLE --fp16 --rtx -o OUT", r'"mwa-export\[tensorrt-rtx\]"'),
    ("mwa-export trt BUNDLE --fp16 --graphs-only OUT", EXPORT),
    ("mwa-export refit BUNDLE CHECKPOINT -o OUT", ENGINES),
    ("mwa-export embed BUNDLE --texts TEXTS -o OUT", EMBED + ".*--format npy"),
    ("mwa-export embed BUNDLE --texts a.parquet -o OUT --format npy", EMBED),
    ("mwa-embed BUNDLE --texts s3://a/a.csv -o OUT --format npy", r'"mwa-export\[remote\]"'),
    ("mwa-export embed BUNDLE --texts TEXTS -o OUT --format npy --faiss", r"export\[faiss\]"),
    ("mwa-export embed BUNDLE --texts TEXTS -o OUT --format npy --engine ray", r"export\[ray\]"),
    ("mwa-export search VECTORS abc --runtime openvino", r"export\[openvino\]"),
)


@pytest.fixture
def places(files: Path, vectors: Path, tmp_path: Path) -> dict[str, str]:
    """What the words in capitals stand for."""
    lines = tmp_path / "lines.txt"
    lines.write_text("a red bus\nabc\n")
    return {
        "BUNDLE": str(files / "bundle"),
        "CHECKPOINT": str(files / "checkpoint.pth"),
        "DATA": str(files / "data"),
        "TEXTS": str(vectors.parent / "t.csv"),
        "IMAGE": str(vectors.parent / "images" / "1.png"),
        "LINES": str(lines),
        "VECTORS": str(vectors),
    }


def walk(bare: Path, command: str, places: dict[str, str], folder: Path) -> tuple[int, str]:
    name, *arguments = shlex.split(command)
    done = run(bare / name, *(places.get(part, part) for part in arguments), cwd=folder)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", RUNS)
def test_command_runs(bare: Path, command: str, places: dict[str, str], tmp_path: Path) -> None:
    status, stderr = walk(bare, command, places, tmp_path)
    assert status == 0, stderr


@pytest.mark.parametrize(("command", "said"), NEEDS)
def test_command_names_the_extra_before_it_begins(
    bare: Path, command: str, said: str, places: dict[str, str], tmp_path: Path
) -> None:
    before = files_below(tmp_path)
    status, stderr = walk(bare, command, places, tmp_path)
    assert status == 2
    line = stderr.splitlines()[-1]  # below what says that something is loading
    assert line.startswith("error: ")
    assert re.search(said, line), line
    assert files_below(tmp_path) == before


def test_every_command_is_tried() -> None:
    tried = [*RUNS, *(command for command, _said in NEEDS)]
    named = {words[1] for command in tried if (words := command.split())[0] == "mwa-export"}
    assert named == set(cli.commands) | set(cli.list_commands(None))  # type: ignore[arg-type]
