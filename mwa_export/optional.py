"""Import a heavy optional package where it is used, or say which extra brings it."""

from __future__ import annotations

import importlib
from importlib import metadata
from types import ModuleType

from mwa_export.errors import MissingPackageError

_EXTRAS = {"onnx": "export", "safetensors": "export", "torch": "export", "torchscale": "export"}


def require(module: str, *, extra: str, why: str) -> ModuleType:
    """Import ``module`` or raise an error with the exact pip line.

    ``extra`` installs it; ``why`` ends the sentence "... is needed to ...".

    Raises:
        MissingPackageError: the package, or something it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"{module} is needed to {why}, and it cannot be imported ({error}). "
            f'Run: pip install "mwa-export[{extra}]"'
        ) from error


def versions_of(*distributions: str) -> dict[str, str]:
    """The version of each distribution that is installed."""
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
