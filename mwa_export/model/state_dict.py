"""Infer a model's configuration from its state dict, and check that it is complete."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

from mwa_export.errors import CheckpointError, MissingOptionError, UsageError
from mwa_export.spec import (
    AdapterConfig,
    AdapterLayerNorm,
    AdapterMode,
    BackboneConfig,
    FfnOption,
    ModelConfig,
    one_of,
)

Shape = tuple[int, ...]

POSITIONS = {
    "vision": "beit3.encoder.embed_positions.A.weight",
    "text": "beit3.encoder.embed_positions.B.weight",
}
EXTRA_VISION_ROWS = 3  # two unused rows (fairseq) and the class token, before the patches
UNUSED = ("logit_scale", "beit3.vision_embed.mask_token")  # training only; files may lack them

_OTHER_HEADS = (  # a tensor whose name starts so, and the task it belongs to
    ("mlm_head.", "captioning or pretraining (mlm_head)"),
    ("pooler.", "visual question answering (pooler)"),
    ("head.dense1.", "visual reasoning, NLVR2 (head.dense1)"),
    ("fc_norm.", "image classification (fc_norm)"),
    ("head.", "classification (head)"),
)


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """Options given by the user, for what the file does not say; None: take it from the file."""

    adapter_scale: float | None = None  # ffn_adapter_scalar
    adapter_layernorm: AdapterLayerNorm | None = None  # ffn_adapter_layernorm_option
    ffn_option: FfnOption | None = None


def config_from_shapes(
    shapes: Mapping[str, Shape],
    args: Mapping[str, Any],
    options: AdapterOptions,
    path: Path,
) -> ModelConfig:
    """Infer the model from tensor shapes, and its options from ``args`` or ``options``.

    Args:
        shapes: tensor name -> shape, names without `module.` prefixes.
        args: the training options stored in the file, possibly none.
        options: what the user gave; wins over ``args``.
        path: for messages.

    Raises:
        CheckpointError: not a BEiT-3 retrieval checkpoint, or shapes that contradict each other.
        UsageError: an option is stored nowhere and was not given, or two sources disagree.
    """
    _check_task(shapes, path)
    backbone = _backbone(shapes, path)
    adapter = _adapter(shapes, args, options, path)
    enhancer = _any(shapes, ".enhancemlp.")
    if "ffn_enhance" in args and bool(args["ffn_enhance"]) != enhancer:
        raise UsageError(
            f"{path}: its args say ffn_enhance={args['ffn_enhance']}, and its tensors "
            f"{'include' if enhancer else 'lack'} enhancemlp. The file was put together wrongly."
        )
    return ModelConfig(backbone, adapter, enhancer)


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor the model needs for inference, by its name in the checkpoint."""
    b = config.backbone
    d, f = b.embed_dim, b.ffn_dim
    shapes: dict[str, Shape] = {
        "beit3.text_embed.weight": (b.vocab_size, d),
        "beit3.vision_embed.cls_token": (1, 1, d),
        "beit3.vision_embed.proj.weight": (d, 3, b.patch_size, b.patch_size),
        "beit3.vision_embed.proj.bias": (d,),
        POSITIONS["vision"]: (b.patches + EXTRA_VISION_ROWS, d),
        POSITIONS["text"]: (b.text_positions + 2, d),
        "vision_head.weight": (d, d),
        "language_head.weight": (d, d),
    }
    for branch in "AB":
        shapes.update(_norm(f"beit3.encoder.layer_norm.{branch}", d))
    for index in range(b.layers):
        layer = f"beit3.encoder.layers.{index}"
        for branch in "AB":
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes.update(_linear(f"{layer}.self_attn.{name}.{branch}", d, d))
            shapes.update(_norm(f"{layer}.self_attn.inner_attn_ln.{branch}", d))
            shapes.update(_norm(f"{layer}.self_attn_layer_norm.{branch}", d))
            shapes.update(_norm(f"{layer}.final_layer_norm.{branch}", d))
            shapes.update(_ffn(f"{layer}.ffn.{branch}", d, f))
        if config.adapter is not None:
            for name in ("text", "vision"):
                if config.adapter.mode in (name, "both"):
                    shapes.update(_adapter_shapes(f"{layer}.adaptmlp_{name}", d, config.adapter))
        if config.enhancer:
            shapes.update(_ffn(f"{layer}.enhancemlp", d, f))
    return shapes


def check_shapes(
    shapes: Mapping[str, Shape], config: ModelConfig, path: Path, *, allow: Iterable[str] = ()
) -> None:
    """Raise CheckpointError listing the first missing, unexpected and mis-shaped tensors.

    ``allow`` holds name prefixes that may be present without being used.
    """
    expected = expected_shapes(config)
    missing = [name for name in expected if name not in shapes]
    ignored = (*UNUSED, *allow)
    unexpected = [n for n in shapes if n not in expected and not n.startswith(tuple(ignored))]
    misshaped = [
        f"{name} is {_by(shapes[name])}, expected {_by(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    problems = [
        f"{len(found)} {kind}: {'; '.join(found[:4])}{'; ...' if len(found) > 4 else ''}"
        for kind, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshaped),
        )
        if found
    ]
    if problems:
        raise CheckpointError(
            f"{path}: the tensors do not make up a BEiT-3 retrieval model with "
            f"{config.backbone.layers} layers of width {config.backbone.embed_dim}. "
            + ". ".join(problems)
            + "."
        )


def _check_task(shapes: Mapping[str, Shape], path: Path) -> None:
    if "vision_head.weight" in shapes and "language_head.weight" in shapes:
        return
    if not any(name.startswith("beit3.") for name in shapes):
        raise CheckpointError(
            f"{path}: its tensors ({'; '.join(list(shapes)[:3])}; ...) are not those of a BEiT-3. "
            "Expected names like beit3.encoder.layers.0.self_attn.q_proj.A.weight."
        )
    found = next(
        (task for start, task in _OTHER_HEADS if any(name.startswith(start) for name in shapes)),
        "no task (a pretrained backbone without heads)",
    )
    raise CheckpointError(
        f"{path}: is a BEiT-3 for {found}. Supported: image-text retrieval, with "
        "vision_head.weight and language_head.weight. To add a trained adapter file to this one, "
        "use `base` and `adapter`."
    )


def _backbone(shapes: Mapping[str, Shape], path: Path) -> BackboneConfig:
    def shape(name: str, rank: int) -> Shape:
        if name not in shapes or len(shapes[name]) != rank:
            found = _by(shapes[name]) if name in shapes else "missing"
            raise CheckpointError(f"{path}: {name} is {found}. Expected a rank {rank} tensor.")
        return shapes[name]

    width, channels, patch, _ = shape("beit3.vision_embed.proj.weight", 4)
    if channels != 3:
        raise CheckpointError(f"{path}: the model reads {channels} channels. Expected 3 (RGB).")
    rows = shape(POSITIONS["vision"], 2)[0]
    side = math.isqrt(max(rows - EXTRA_VISION_ROWS, 0))
    if side == 0 or side * side != rows - EXTRA_VISION_ROWS:
        raise CheckpointError(
            f"{path}: {POSITIONS['vision']} has {rows} rows. Expected a square number of patches "
            f"plus {EXTRA_VISION_ROWS}."
        )
    text_rows = shape(POSITIONS["text"], 2)[0]
    if text_rows < 5:
        raise CheckpointError(
            f"{path}: {POSITIONS['text']} has {text_rows} rows. Expected 5 or more."
        )
    layers = {
        int(m[1]) for m in (re.match(r"beit3\.encoder\.layers\.(\d+)\.", n) for n in shapes) if m
    }
    if not layers:
        raise CheckpointError(f"{path}: has no encoder layers (beit3.encoder.layers.0 ...).")
    return BackboneConfig(
        embed_dim=width,
        ffn_dim=shape("beit3.encoder.layers.0.ffn.A.fc1.weight", 2)[0],
        layers=max(layers) + 1,
        vocab_size=shape("beit3.text_embed.weight", 2)[0],
        image_size=side * patch,
        patch_size=patch,
        text_positions=text_rows - 2,
    )


def _adapter(
    shapes: Mapping[str, Shape], args: Mapping[str, Any], options: AdapterOptions, path: Path
) -> AdapterConfig | None:
    present = [name for name in ("text", "vision") if _any(shapes, f".adaptmlp_{name}.")]
    if bool(args.get("ffn_adapt", bool(present))) != bool(present):
        raise UsageError(
            f"{path}: its args say ffn_adapt={args['ffn_adapt']}, and it holds "
            f"{'adapters' if present else 'no adapters'}. The file was put together wrongly."
        )
    if not present:
        _refuse_useless(options, path)
        return None
    mode = cast(AdapterMode, "both" if len(present) == 2 else present[0])
    if args.get("ffn_mode", mode) != mode:
        raise UsageError(
            f"{path}: its args say ffn_mode={args['ffn_mode']!r}, and it holds the adapters of "
            f"{mode!r}. The file was put together wrongly."
        )
    down = next((n for n in shapes if ".adaptmlp_" in n and n.endswith("down_proj.weight")), None)
    if down is None or len(shapes[down]) != 2:
        raise CheckpointError(
            f"{path}: {down or 'adaptmlp_*.down_proj.weight'} is "
            f"{_by(shapes[down]) if down else 'missing'}. Expected a rank 2 tensor."
        )
    absent: dict[str, str] = {}  # option -> what it can be
    layernorm = _layernorm(shapes, args, options, path, absent)
    scale = _scale(shapes, args, options, path, absent)
    ffn_option = options.ffn_option or args.get("ffn_option")
    if ffn_option is None:
        absent["ffn_option"] = "|".join(get_args(FfnOption))
    if absent:
        raise MissingOptionError(
            f"{path}: holds adapters, but neither its tensors nor its args say how they were "
            "trained. Give: " + ", ".join(f"`{name}={value}`" for name, value in absent.items()),
            tuple(absent),
        )
    one_of("ffn_option", str(ffn_option), get_args(FfnOption))
    return AdapterConfig(mode, shapes[down][0], layernorm, scale, cast(FfnOption, ffn_option))


def _layernorm(
    shapes: Mapping[str, Shape],
    args: Mapping[str, Any],
    options: AdapterOptions,
    path: Path,
    absent: dict[str, str],
) -> AdapterLayerNorm:
    stored = _any(shapes, ".adapter_layer_norm_before.")
    value = options.adapter_layernorm or args.get("ffn_adapter_layernorm_option")
    if value is None and not stored:
        return "none"
    if value is None:  # `in` and `out` have the same tensors
        absent["adapter_layernorm"] = "in|out"
        return "none"
    one_of("ffn_adapter_layernorm_option", value, get_args(AdapterLayerNorm))
    if (value != "none") != stored:
        raise UsageError(
            f"{path}: the adapter LayerNorm is {value!r} by its options, and its tensors "
            f"{'include' if stored else 'lack'} adapter_layer_norm_before."
        )
    return cast(AdapterLayerNorm, value)


def _scale(
    shapes: Mapping[str, Shape],
    args: Mapping[str, Any],
    options: AdapterOptions,
    path: Path,
    absent: dict[str, str],
) -> float | None:
    learnable = any(".adaptmlp_" in name and name.endswith(".scale") for name in shapes)
    if learnable:
        if options.adapter_scale is not None:
            raise UsageError(
                f"{path}: its adapters carry a trained scale. Leave `adapter_scale` out."
            )
        return None
    value = options.adapter_scale
    if value is None:
        value = args.get("ffn_adapter_scalar")
    if value is None:
        absent["adapter_scale"] = "NUMBER"
        return 0.0
    try:
        scale = float(value)
    except (TypeError, ValueError):
        raise UsageError(
            f"{path}: its args say ffn_adapter_scalar={value!r}, and its adapters carry no trained "
            "scale. Give one: `adapter_scale=NUMBER`"
        ) from None
    if not math.isfinite(scale):
        raise UsageError(f"{path}: the adapter scale is {scale}. Expected a finite number.")
    return scale


def _refuse_useless(options: AdapterOptions, path: Path) -> None:
    given = [f"`{name}`" for name, value in asdict(options).items() if value is not None]
    if given:
        raise UsageError(f"{path}: has no adapters, so {', '.join(given)} cannot apply.")


def _adapter_shapes(prefix: str, width: int, adapter: AdapterConfig) -> dict[str, Shape]:
    shapes = _linear(f"{prefix}.down_proj", adapter.bottleneck, width)
    shapes.update(_linear(f"{prefix}.up_proj", width, adapter.bottleneck))
    if adapter.scale is None:
        shapes[f"{prefix}.scale"] = (1,)
    if adapter.layernorm != "none":
        shapes.update(_norm(f"{prefix}.adapter_layer_norm_before", width))
    return shapes


def _ffn(prefix: str, width: int, hidden: int) -> dict[str, Shape]:
    return {
        **_linear(f"{prefix}.fc1", hidden, width),
        **_linear(f"{prefix}.fc2", width, hidden),
        **_norm(f"{prefix}.ffn_layernorm", hidden),
    }


def _linear(prefix: str, rows: int, columns: int) -> dict[str, Shape]:
    return {f"{prefix}.weight": (rows, columns), f"{prefix}.bias": (rows,)}


def _norm(prefix: str, width: int) -> dict[str, Shape]:
    return {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}


def _any(shapes: Mapping[str, Shape], part: str) -> bool:
    return any(part in name for name in shapes)


def _by(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a scalar"
