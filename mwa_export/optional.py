"""Import a heavy optional package where it is used, or say which extra brings it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from mwa_export.errors import MissingPackageError

_EXTRAS = {"onnx": "export", "safetensors": "export", "torch": "export", "torchscale": "export"}

_REPORTER = "openvino_telemetry"
# What these packages would tell their makers is declined, unless the user has set the variable.
for _name, _declined in (("ORT_DISABLE_TELEMETRY", "1"), ("RAY_USAGE_STATS_ENABLED", "0")):
    os.environ.setdefault(_name, _declined)


def require(module: str, *, extra: str, why: str) -> ModuleType:
    """Import ``module`` or raise an error with the exact pip line.

    ``extra`` installs it; ``why`` ends the sentence "... is needed to ...".

    Raises:
        MissingPackageError: the package, or something it imports, is not installed.
    """
    try:
        with _openvino_unreported():
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"{module} is needed to {why}, and it cannot be imported ({error}). "
            f'Run: pip install "mwa-export[{extra}]"'
        ) from error


@contextmanager
def _openvino_unreported() -> Iterator[None]:
    """Hide the reporter of OpenVINO, which starts on import, unless the user has chosen about it.

    No variable turns it off. Its command `opt_in_out` keeps the choice in a file.
    """
    chosen = os.path.exists(os.path.expanduser("~/intel/openvino_telemetry"))
    if chosen or _REPORTER in sys.modules:
        yield
        return
    sys.modules[_REPORTER] = None  # type: ignore[assignment]  # the import fails
    try:
        yield
    finally:
        sys.modules.pop(_REPORTER, None)


def versions_of(*distributions: str) -> dict[str, str]:
    """The version of each distribution that is installed."""
    from importlib import metadata  # takes as long as all that `--help` needs

    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def missing_package(error: ModuleNotFoundError) -> MissingPackageError | None:
    """The error to show for an import that failed; None if no extra brings the module."""
    module = (error.name or "").partition(".")[0]
    if module not in _EXTRAS:
        return None
    return MissingPackageError(
        f'{module} is needed and not installed. Run: pip install "mwa-export[{_EXTRAS[module]}]"'
    )
