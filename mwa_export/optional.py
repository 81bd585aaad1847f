"""Optional packages: what each is for, and how to install it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

from mwa_export.errors import MissingPackageError

TORCHSCALE = "--no-deps torchscale==0.3.0"
"""Arguments of `pip install`. The dependencies of torchscale are not needed here."""


@dataclass(frozen=True, slots=True)
class Package:
    """An optional package."""

    module: str
    distribution: str  # name on a package index
    needed: str  # completes "MODULE is needed ..."
    arguments: str  # for pip install

    @property
    def command(self) -> str:
        """The command that installs it."""
        return f"pip install {self.arguments}"


def _of_extra(extra: str, *packages: tuple[str, str, str]) -> list[Package]:
    return [Package(*package, f'"mwa-export[{extra}]"') for package in packages]


PACKAGES = {
    package.module: package
    for package in (
        *_of_extra(
            "export",
            ("torch", "torch", "to read checkpoints"),
            ("onnx", "onnx", "to read and write graphs"),
            ("safetensors", "safetensors", "to read and write .safetensors files"),
        ),
        Package("onnxruntime", "onnxruntime", "to run graphs", "onnxruntime"),
        Package("torchscale", "torchscale", "for the PyTorch reference", TORCHSCALE),
        *_of_extra(
            "reference",
            ("fairscale", "fairscale", "for training options of torchscale"),
            ("timm", "timm", "for training options of torchscale"),
            ("torchvision", "torchvision", "for timm"),
        ),
        *_of_extra(
            "embed",
            ("pyarrow", "pyarrow", "to read and write Parquet"),
            ("fsspec", "fsspec", "to read remote files"),
        ),
        *_of_extra(
            "remote",
            ("urllib3", "urllib3", "to read over http"),
            ("aiohttp", "aiohttp", "to list folders over http"),
            ("s3fs", "s3fs", "to read from S3"),
        ),
        *_of_extra("faiss", ("faiss", "faiss-cpu", "to write an index")),
        *_of_extra("ray", ("ray", "ray", "to embed on a cluster")),
        *_of_extra("openvino", ("openvino", "openvino", "to run graphs on OpenVINO")),
        *_of_extra("tensorrt", ("tensorrt", "tensorrt", "to build and run engines")),
        *_of_extra(
            "tensorrt-rtx",
            (
                "tensorrt_rtx_bindings",
                "tensorrt-rtx-cu12-bindings",
                "to build and run engines for RTX cards",
            ),
            ("tensorrt_rtx_libs", "tensorrt-rtx-cu12-libs", "for TensorRT-RTX"),
        ),
        *_of_extra(
            "polygraphy",
            ("polygraphy", "polygraphy", "to bisect an engine"),
            ("onnx_graphsurgeon", "onnx-graphsurgeon", "to reduce a graph"),
        ),
        *_of_extra(
            "server",
            ("fastapi", "fastapi", "for examples/server"),
            ("uvicorn", "uvicorn", "for examples/server"),
        ),
        *_of_extra("bench", ("onnxscript", "onnxscript", "to measure the plain export")),
        Package(
            "tensorrt_lean", "tensorrt-lean", "for version-compatible engines", "tensorrt-lean"
        ),
        Package("gcsfs", "gcsfs", "to read gs:// addresses", "gcsfs"),
        Package("adlfs", "adlfs", "to read abfs:// addresses", "adlfs"),
    )
}
"""Module -> optional package: the only place that maps packages to extras."""

_REPORTER = "openvino_telemetry"
# Opt out of these packages' telemetry, unless the user has set the variable.
for _name, _declined in (("ORT_DISABLE_TELEMETRY", "1"), ("RAY_USAGE_STATS_ENABLED", "0")):
    os.environ.setdefault(_name, _declined)


def require(module: str, why: str | None = None) -> ModuleType:
    """Import a module of an optional package, or raise an error with the exact pip command.

    ``why`` completes "... is needed to ..."; None: the purpose in `PACKAGES`.

    Raises:
        MissingPackageError: the package is not installed or cannot be imported.
    """
    try:
        with _openvino_unreported():
            return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        cause = f" It is installed, but cannot be imported ({error})." if installed(package) else ""
        raise _missing(package, why, cause) from error


def check_installed(*modules: str, why: str | None = None) -> None:
    """Raise MissingPackageError for the first package that is not installed. Imports nothing.

    Use it before work begins: importing a package may take seconds.
    """
    for module in modules:
        if not installed(module):
            raise _missing(module, why)


def installed(module: str) -> bool:
    """Check whether a package is installed, without importing it."""
    try:
        return find_spec(module) is not None
    except ValueError:  # imported, but without a spec
        return True


def _missing(module: str, why: str | None = None, cause: str = "") -> MissingPackageError:
    package = PACKAGES[module]
    needed = package.needed if why is None else f"to {why}"
    return MissingPackageError(f"{module} is needed {needed}.{cause} Run: {package.command}")


@contextmanager
def _openvino_unreported() -> Iterator[None]:
    """Disable OpenVINO's telemetry, which starts on import, unless the user has made a choice.

    No environment variable turns it off. Its command `opt_in_out` stores the choice in a file.
    """
    chosen = os.path.exists(os.path.expanduser("~/intel/openvino_telemetry"))
    if chosen or _REPORTER in sys.modules:
        yield
        return
    sys.modules[_REPORTER] = None  # type: ignore[assignment]  # makes its import fail
    try:
        yield
    finally:
        sys.modules.pop(_REPORTER, None)


def versions_of(*distributions: str) -> dict[str, str]:
    """Return the version of each distribution that is installed."""
    from importlib import metadata  # takes as long to import as all that `--help` needs

    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def missing_package(error: ModuleNotFoundError) -> MissingPackageError | None:
    """Return the error to show for a failed import; None if no optional package is missing."""
    module = (error.name or "").partition(".")[0]
    return _missing(module) if module in PACKAGES and not installed(module) else None
