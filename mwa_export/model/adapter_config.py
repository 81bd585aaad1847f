"""Infer the adapter configuration from a checkpoint's tensors and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

import numpy as np

from mwa_export.errors import CheckpointError, MissingOptionError, UsageError
from mwa_export.model.options import ModelOptions, StoredOptions, shown
from mwa_export.model.pickled import Placeholder
from mwa_export.spec import (
    ADAPTER_OF_TOWER,
    AdapterConfig,
    AdapterLayerNorm,
    AdapterMode,
    FfnOption,
    Tower,
)

Shape = tuple[int, ...]


def adapter_config(
    shapes: Mapping[str, Shape],
    towers: tuple[Tower, ...],
    stored: StoredOptions,
    options: ModelOptions,
) -> AdapterConfig | None:
    """Infer the adapter configuration of the given towers; None if they have no adapters.

    Raises:
        CheckpointError, UsageError: see `config_from_shapes`.
        MissingOptionError: an option is neither stored in the checkpoint nor given.
    """
    path, wanted = stored.path, [ADAPTER_OF_TOWER[tower] for tower in towers]
    present = [name for name in wanted if any(f".{name}." in key for key in shapes)]
    _check_stored_mode(wanted, present, stored)
    if not present:
        if given := [f"`{name}`" for name in options.of_adapters()]:
            raise UsageError(
                f"{path}: has no adapters, so {', '.join(given)} cannot apply. Leave them out."
            )
        return None
    mode = "both" if len(present) == 2 else present[0].removeprefix("adaptmlp_")
    down = next((n for n in shapes if ".adaptmlp_" in n and n.endswith("down_proj.weight")), None)
    if down is None or len(shapes[down]) != 2:
        found = "missing" if down is None else " x ".join(map(str, shapes[down])) or "a scalar"
        raise CheckpointError(
            f"{path}: {down or 'adaptmlp_*.down_proj.weight'} is {found}. Expected a rank 2 tensor."
        )
    stored.check_sizes({"ffn_num": shapes[down][0]})
    absent: dict[str, str] = {}  # option -> its possible values
    layernorm = _layernorm(shapes, stored, options, absent)
    scale = _scale(shapes, stored, options, absent)
    ffn_option = options.ffn_option or stored.choice("ffn_option", get_args(FfnOption))
    if ffn_option is None:
        absent["ffn_option"] = "|".join(get_args(FfnOption))
    if absent:
        raise MissingOptionError(
            f"{path}: contains adapters, but not all options that they were trained with. Pass: "
            + ", ".join(f"`{name}={value}`" for name, value in absent.items()),
            tuple(absent),
        )
    return AdapterConfig(
        cast("AdapterMode", mode), shapes[down][0], layernorm, scale, cast("FfnOption", ffn_option)
    )


def _check_stored_mode(wanted: list[str], present: list[str], stored: StoredOptions) -> None:
    """Raise UsageError if the stored options contradict the adapter tensors."""
    adapts, mode = stored.values.get("ffn_adapt"), stored.get("ffn_mode")
    adapts = None if adapts is None or isinstance(adapts, Placeholder) else bool(adapts)
    if adapts is not None and not adapts and present:
        raise UsageError(
            f"{stored.path}: its args say ffn_adapt={adapts}, but it contains adapters. The file "
            "is inconsistent: save tensors and args of one training run."
        )
    if mode is not None and (present or adapts):
        mode = stored.choice("ffn_mode", get_args(AdapterMode))
        told = [name for name in wanted if mode in ("both", name.removeprefix("adaptmlp_"))]
        if told != present:
            raise UsageError(
                f"{stored.path}: its args say ffn_adapt={adapts} and ffn_mode={mode!r}, but it "
                f"contains {' and '.join(present) or 'no adapters'}. The file is inconsistent: "
                "save tensors and args of one training run."
            )
    elif adapts and not present:
        raise UsageError(
            f"{stored.path}: its args say ffn_adapt={adapts}, but it contains no adapters. The "
            "file is inconsistent: save tensors and args of one training run."
        )


def _layernorm(
    shapes: Mapping[str, Shape],
    stored: StoredOptions,
    options: ModelOptions,
    absent: dict[str, str],
) -> AdapterLayerNorm:
    has_tensors = any(".adapter_layer_norm_before." in name for name in shapes)
    name = "ffn_adapter_layernorm_option"
    value = options.adapter_layernorm or stored.choice(name, get_args(AdapterLayerNorm))
    if value is None and not has_tensors:
        return "none"
    if value is None:  # `in` and `out` have the same tensors
        absent["adapter_layernorm"] = "in|out"
        return "none"
    if (value != "none") != has_tensors:
        raise UsageError(
            f"{stored.path}: the option {name} is {value!r}, but the tensors "
            f"{'include' if has_tensors else 'lack'} adapter_layer_norm_before. Pass the value "
            "that training used: `adapter_layernorm`"
        )
    return cast("AdapterLayerNorm", value)


def _scale(
    shapes: Mapping[str, Shape],
    stored: StoredOptions,
    options: ModelOptions,
    absent: dict[str, str],
) -> float | None:
    if any(".adaptmlp_" in name and name.endswith(".scale") for name in shapes):
        if options.adapter_scale is not None:
            raise UsageError(
                f"{stored.path}: its adapters have a learned scale. Leave `adapter_scale` out."
            )
        return None
    value: Any = options.adapter_scale
    if value is None:
        value = stored.get("ffn_adapter_scalar")
    if value is None:
        absent["adapter_scale"] = "NUMBER"
        return 0.0
    try:
        scale = float(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(
            f"{stored.path}: its args say ffn_adapter_scalar={shown(value)}, but its adapters "
            "have no learned scale. Pass the scale: `adapter_scale=NUMBER`"
        ) from None
    # The graph computes in float32, which overflows earlier than a Python float.
    if not abs(scale) <= float(np.finfo(np.float32).max):
        raise UsageError(
            f"{stored.path}: the adapter scale (ffn_adapter_scalar) is {scale}. Expected a number "
            "that is finite in float32."
        )
    return scale
