"""Model options: given by the user or stored in the checkpoint, and the values that are supported.

Stored options are named as in the authors' argument parser and torchscale's `EncoderConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mwa_export.errors import CheckpointError, UsageError, check_option
from mwa_export.model.pickled import Placeholder
from mwa_export.spec import LAYERNORM_EPS, AdapterLayerNorm, FfnOption, Tower

# Options that no tensor reveals and for which the export supports one value. Any other stored
# value means a different model (names of torchscale's EncoderConfig and timm).
_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_fn": ("gelu",),
    "encoder_normalize_before": (True,),
    "normalize_output": (True,),
    "no_scale_embedding": (True,),
    "scale_embedding": (False,),
    "layernorm_embedding": (False,),
    "layernorm_eps": (LAYERNORM_EPS,),
    "subln": (True,),
    "deepnorm": (False,),
    "multiway": (True,),
    "moe_freq": (0,),
    "rel_pos_buckets": (0,),
    "xpos_rel_pos": (False,),
    "in_chans": (3,),
}


MAX_IMAGE_SIZE = 4096  # pixels; attention over more patches does not fit in memory
_LARGEST = {"image_size": MAX_IMAGE_SIZE, "max_length": 8192, "heads": 8192}


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Model options given by the user; None: as stored in the checkpoint."""

    adapter_scale: float | None = None  # ffn_adapter_scalar
    adapter_layernorm: AdapterLayerNorm | None = None  # ffn_adapter_layernorm_option
    ffn_option: FfnOption | None = None
    image_size: int | None = None  # pixels; positions are interpolated if it differs from theirs
    max_length: int | None = None  # longest text in tokens, BOS and EOS included
    heads: int | None = None  # attention heads
    towers: tuple[Tower, ...] | None = None  # to export; None: all in the checkpoint

    def __post_init__(self) -> None:
        scale = self.adapter_scale
        fits = scale is None or math.isfinite(scale)
        check_option("adapter_scale", scale, fits, "a finite number")
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            check_option(name, value, value is None or 1 <= value <= largest, f"1 to {largest}")

    def of_adapters(self) -> dict[str, Any]:
        """Return the adapter options that were given."""
        names = ("adapter_scale", "adapter_layernorm", "ffn_option")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def _equal(value: Any, supported: Any) -> bool:
    """Whether a stored value equals the supported one; strings such as "True" count, too."""
    if isinstance(value, str) and len(value) < 20:
        return value.lower() == str(supported).lower() or _number(value) == supported
    return isinstance(value, bool | int | float) and bool(value == supported)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def shown(value: Any) -> str:
    """Format a stored value of any type for a message."""
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 64):
        return str(value)
    return "a very large number" if isinstance(value, int) else f"a {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class StoredOptions:
    """The training options stored in a checkpoint."""

    values: Mapping[str, Any]
    path: Path  # for messages

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str, otherwise: Any = None) -> Any:
        """Return the stored value, or ``otherwise`` if there is none.

        Raises:
            CheckpointError: it is an object, and unpickling it could run code.
        """
        value = self.values.get(name)
        if isinstance(value, Placeholder):
            raise CheckpointError(
                f"{self.path}: its stored option {name} is an object of type {value.name}. "
                "Expected a plain number, string or boolean. Save the options as plain values."
            )
        return otherwise if value is None else value

    def natural(self, name: str) -> int | None:
        """Return a stored positive integer; None if there is none.

        Raises:
            CheckpointError: the value is not a positive integer.
        """
        value = self.get(name)
        if value is None or (type(value) is int and 0 < value < 1 << 31):
            return value
        raise CheckpointError(
            f"{self.path}: its stored option {name} is {shown(value)}. Expected a positive integer."
        )

    def image_size(self) -> int | None:
        """Side of the square training images in pixels, or None; timm stores (3, 224, 224)."""
        value = self.get("input_size")
        if isinstance(value, list | tuple) and 0 < len(value) <= 3:
            sides = {*value[-2:]} if all(type(side) is int for side in value) else set()
            if len(sides) == 1:
                return StoredOptions({"input_size": sides.pop()}, self.path).image_size()
        return self.natural("input_size")

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        """Return a stored string; None if there is none.

        Raises:
            UsageError: the value is not one of ``allowed``.
        """
        value = self.get(name)
        if value is None or (isinstance(value, str) and value in allowed):
            return value
        raise UsageError(
            f"{self.path}: its stored option {name} is {shown(value)}. Expected one of "
            f"{', '.join(allowed)}."
        )

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Raise UsageError if a stored size differs from that of the tensors."""
        for name, size in sizes.items():
            value = self.values.get(name)
            if type(value) is int and value > 0 and value != size:
                raise UsageError(
                    f"{self.path}: its args say {name}={shown(value)}, but its tensors have "
                    f"{size}. The file is inconsistent or incomplete: save tensors and args of "
                    "one training run."
                )

    def refuse_unsupported(self) -> None:
        """Raise UsageError if a stored option has a value that the export does not support."""
        for name, supported in _FIXED.items():
            value = self.get(name) if name in self else supported[0]
            if not any(_equal(value, one) for one in supported):
                raise UsageError(
                    f"{self.path}: was trained with {name}={shown(value)}. The export supports "
                    f"only {name}={shown(supported[0])}, so this model cannot be exported."
                )
