"""Export trained BEiT-3 and MultiWay-Adapter retrieval models for production.

The names in ``__all__`` are the public API; docs/api.md has an example of each. Everything else may
change between minor versions.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from mwa_export.version import __version__

if TYPE_CHECKING:
    from mwa_export.bundle.bundle import Bundle
    from mwa_export.calib.quantize import QuantizeOptions, quantize
    from mwa_export.embed.run import embed
    from mwa_export.embed.update import Update
    from mwa_export.encoder.encoder import Encoder
    from mwa_export.encoder.open import load
    from mwa_export.engines.build import build_engines
    from mwa_export.engines.options import EngineOptions
    from mwa_export.engines.replay import write_engine_graphs
    from mwa_export.errors import *  # noqa: F403  # every exception is public
    from mwa_export.export.export import ExportOptions, export
    from mwa_export.export.float16 import add_float16
    from mwa_export.model.checkpoint import ReadOptions
    from mwa_export.model.load import ModelSource
    from mwa_export.model.options import ModelOptions
    from mwa_export.parity.gates import Gates
    from mwa_export.parity.measure import CompareOptions, compare
    from mwa_export.parity.run import compare_models
    from mwa_export.runtimes.options import RuntimeOptions
    from mwa_export.search.run import Query, search
    from mwa_export.vectors.job import EmbedOptions

_WHERE = {
    "QuantizeOptions": "calib.quantize",
    "Gates": "parity.gates",
    "ExportOptions": "export.export",
    "EngineOptions": "engines.options",
    "EmbedOptions": "vectors.job",
    "CompareOptions": "parity.measure",
    "ModelOptions": "model.options",
    "ModelSource": "model.load",
    "ReadOptions": "model.checkpoint",
    "Bundle": "bundle.bundle",
    "Encoder": "encoder.encoder",
    "Query": "search.run",
    "RuntimeOptions": "runtimes.options",
    "Update": "embed.update",
    "add_float16": "export.float16",
    "build_engines": "engines.build",
    "compare": "parity.measure",
    "compare_models": "parity.run",
    "embed": "embed.run",
    "export": "export.export",
    "load": "encoder.open",
    "quantize": "calib.quantize",
    "search": "search.run",
    "write_engine_graphs": "engines.replay",
}
__all__ = [
    "Bundle",
    "CompareOptions",
    "EmbedOptions",
    "Encoder",
    "EngineOptions",
    "ExportOptions",
    "Gates",
    "ModelOptions",
    "ModelSource",
    "QuantizeOptions",
    "Query",
    "ReadOptions",
    "RuntimeOptions",
    "Update",
    "__version__",
    "add_float16",
    "build_engines",
    "compare",
    "compare_models",
    "embed",
    "export",
    "load",
    "quantize",
    "search",
    "write_engine_graphs",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that `mwa-export --help` starts fast."""
    if name in _WHERE:
        try:
            return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
        except ModuleNotFoundError as error:
            missing = import_module(f"{__name__}.optional").missing_package(error)
            raise error if missing is None else missing from error
    errors = import_module(f"{__name__}.errors")
    if name.endswith("Error") and hasattr(errors, name):
        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _function(name: str) -> property:
    """Make a property that returns an API function and ignores assignment of its module."""
    return property(lambda _package: __getattr__(name), lambda _package, _module: None)


class _Package(ModuleType):
    """Module class of the package, for three functions that share a name with a sub-package.

    Importing a sub-package sets it as an attribute of its parent, so `mwa_export.embed` would be
    the function or the module, depending on import order. Here it is always the function; import
    the modules by their full names.
    """

    embed, export, search = map(_function, ("embed", "export", "search"))


sys.modules[__name__].__class__ = _Package
