"""Record the names in the real Python bindings of TensorRT, without a GPU and without TensorRT.

The bindings are small wheels on the package index. They can be imported once a few symbols of the
libraries exist, so a stub with these is compiled; nothing in it is ever called. Each version is
inspected in a separate process. Run: python tests/helpers/make_trt_offers.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trt_bindings import VERSIONS, Bindings

from mwa_export.files import locked

TIMEOUT = 120  # seconds, of a download
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
    # Of 8.6 only: parsers that later versions do not have.
    "_ZN11nvuffparser15createUffParserEv",
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
    "_ZN14nvcaffeparser117createCaffeParserEv",
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
)

INSPECT = r"""
import json, re, sys
import tensorrt_bindings as trt

def parts(text):
    # Parameters of a signature: cut at commas that no bracket encloses.
    found, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            found.append(text[start:index])
            start = index + 1
    return [part.strip() for part in [*found, text[start:]] if part.strip()]

def kind(text):
    return re.split(r"[.:\s]", text.strip())[-1]

def signatures(name, doc):
    found = []
    for line in (doc or "").splitlines():
        match = re.match(rf"(?:\d+\. )?{re.escape(name)}\((.*)\) -> (.*)$", line.strip())
        if match and "*args" not in match[1]:
            names = [re.split(r"[:=]", part)[0].strip() for part in parts(match[1])]
            needed = [p for p in parts(match[1]) if "=" not in re.sub(r"<[^>]*>", "", p)]
            skip = 1 if names[:1] == ["self"] else 0
            found.append({
                "parameters": names[skip:],
                "needed": len(needed) - skip,
                "returns": kind(match[2]),
            })
    return found

def member(owner, name):
    value = getattr(owner, name, None)
    if isinstance(value, property):
        match = re.search(r"-> (.*)", value.fget.__doc__ or "") if value.fget else None
        return {"property": kind(match[1]) if match else None}
    return {"signatures": signatures(name, getattr(value, "__doc__", None))}

offer = {"version": trt.__version__, "functions": [], "classes": {}}
for name in dir(trt):
    value = getattr(trt, name)
    if not isinstance(value, type):
        offer["functions"].append(name)
        continue
    values = list(getattr(value, "__members__", {}))
    members = {n: member(value, n) for n in dir(value) if not n.startswith("_")}
    init = signatures("__init__", getattr(value.__init__, "__doc__", None))
    offer["classes"][name] = {"values": values, "members": members, "init": init}
json.dump(offer, sys.stdout)
"""


class UnavailableError(Exception):
    """The bindings cannot be had on this machine."""


def genuine_offer(bindings: Bindings, cache: Path) -> dict[str, Any]:
    """Everything that a version offers, as INSPECT finds it; `cache` as for `importable`."""
    command = [sys.executable, "-c", INSPECT]
    environment = importable(bindings, cache)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def importable(bindings: Bindings, cache: Path) -> dict[str, str]:
    """The environment of a process that can `import tensorrt_bindings`.

    Args:
        bindings: which version.
        cache: a folder that stays from run to run; filled where it is empty.

    Raises:
        UnavailableError: another system, no compiler or no answer from the package index.
    """
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    folder = cache / f"{bindings.package}-{bindings.version}-{python}"
    if not sys.platform.startswith("linux"):
        raise UnavailableError("the bindings are inspected on Linux only")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise UnavailableError("no C compiler (gcc) for the stub that the bindings are loaded with")
    packages, libraries = folder / "packages", folder / "libraries"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", wait=True):  # another process may be filling it
        if not (packages / "tensorrt_bindings").is_dir():
            with zipfile.ZipFile(_download(bindings, folder)) as wheel:
                wheel.extractall(folder / "unpacked")
            (folder / "unpacked").replace(packages)
        if not libraries.is_dir():
            _compile_stubs(bindings, folder / "stubs", compiler)
            (folder / "stubs").replace(libraries)
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**keep, "PYTHONPATH": str(packages), "LD_LIBRARY_PATH": str(libraries)}


def _compile_stubs(bindings: Bindings, folder: Path, compiler: str) -> None:
    """Write libraries that have every symbol, which nothing calls."""
    folder.mkdir(exist_ok=True)
    source = folder / "stub.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for name in bindings.libraries:
        path = folder / f"lib{name}.so.{bindings.major}"
        command = [compiler, "-shared", "-fPIC", "-o", str(path), str(source)]
        subprocess.run(command, check=True, capture_output=True)


def _download(bindings: Bindings, folder: Path) -> Path:
    wanted = f"{bindings.package}=={bindings.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "-d", str(folder), wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{wanted}: the package index does not answer") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise UnavailableError(f"{wanted} cannot be downloaded for this Python: {reason}")
    return wheels[0]


def text_of(offer: Mapping[str, Any]) -> str:
    """JSON with a line for each class, so that a difference between versions can be read."""
    head = {name: value for name, value in offer.items() if name != "classes"}
    lines = [
        f"{json.dumps(name)}: {json.dumps(entry, sort_keys=True)}"
        for name, entry in sorted(offer["classes"].items())
    ]
    return json.dumps(head)[:-1] + ', "classes": {\n' + ",\n".join(lines) + "\n}}\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        for bindings in VERSIONS:
            text = text_of(genuine_offer(bindings, Path(cache)))
            bindings.file.parent.mkdir(exist_ok=True)
            bindings.file.write_text(text, encoding="utf-8")
            print(bindings.file, len(text))


if __name__ == "__main__":
    main()
