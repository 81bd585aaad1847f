"""Infer a model's configuration from its state dict, and check that it is complete."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from mwa_export.errors import CheckpointError, OptionsError, UsageError
from mwa_export.model.adapter_config import adapter_config
from mwa_export.model.names import UNUSED
from mwa_export.model.options import ModelOptions, StoredOptions
from mwa_export.spec import (
    ADAPTER_OF_TOWER,
    BRANCH_OF_TOWER,
    HEAD_OF_TOWER,
    MAX_TOKENS,
    POSITION_OFFSET,
    TOWERS,
    AdapterConfig,
    BackboneConfig,
    ModelConfig,
    Tower,
    default_heads,
    tower_of,
)

Shape = tuple[int, ...]

MIN_TOKENS = 3  # BOS, one token, EOS
POSITIONS = {
    "vision": "beit3.encoder.embed_positions.A.weight",
    "text": "beit3.encoder.embed_positions.B.weight",
}
EXTRA_VISION_ROWS = 3  # two unused rows (fairseq) and the class token, before the patches

_OTHER_HEADS = (  # prefix of a tensor's name, and the task that it belongs to
    ("mlm_head.", "captioning or pretraining (mlm_head)"),
    ("pooler.", "visual question answering (pooler)"),
    ("head.dense1.", "visual reasoning, NLVR2 (head.dense1)"),
    ("fc_norm.", "image classification (fc_norm)"),
    ("head.", "classification (head)"),
)


def towers_in(shapes: Mapping[str, Shape]) -> tuple[Tower, ...]:
    """Return the towers that have tensors, ignoring adapters and training-only tensors."""
    found = {tower_of(name) for name in shapes if name not in UNUSED and ".adaptmlp_" not in name}
    return tuple(tower for tower in TOWERS if tower in found)


def config_from_shapes(
    shapes: Mapping[str, Shape],
    stored: StoredOptions,
    options: ModelOptions,
    path: Path | None = None,
) -> ModelConfig:
    """Infer a model's configuration from tensor shapes, and from options where shapes do not tell.

    Args:
        shapes: tensor name -> shape, under the model's own names.
        stored: the training options in the file, possibly empty.
        options: the user's options, which take precedence over ``stored``. The image size is
            inferred from the positions; `load_model` changes it.
        path: file of the backbone, for messages; None: that of ``stored``.

    Raises:
        CheckpointError: not a BEiT-3 retrieval checkpoint, or the shapes are inconsistent.
        UsageError: an option is neither stored nor given, or two sources disagree.
    """
    path = path or stored.path
    _check_task(shapes, path, stored)
    stored.refuse_unsupported()
    towers = _towers(shapes, options, path)
    backbone = _backbone(shapes, towers, stored, options, path)
    adapter = adapter_config(shapes, towers, stored, options)
    enhancer = any(".enhancemlp." in name for name in shapes)
    if bool(stored.get("ffn_enhance", enhancer)) != enhancer:
        raise UsageError(
            f"{stored.path}: its args say ffn_enhance={stored.get('ffn_enhance')}, but its tensors "
            f"{'include' if enhancer else 'lack'} enhancemlp. The file is inconsistent: save "
            "tensors and args of one training run."
        )
    return ModelConfig(backbone, adapter, enhancer, towers)


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Return the shape of every tensor that inference needs, by its name in the checkpoint."""
    b = config.backbone
    d, f = b.embed_dim, b.ffn_dim
    shapes: dict[str, Shape] = {}
    if "text" in config.towers:
        shapes["beit3.text_embed.weight"] = (b.vocab_size, d)
        shapes[POSITIONS["text"]] = (b.text_positions + POSITION_OFFSET, d)
    if "vision" in config.towers:
        shapes["beit3.vision_embed.cls_token"] = (1, 1, d)
        shapes.update(_linear("beit3.vision_embed.proj", d, 3, b.patch_size, b.patch_size))
        shapes[POSITIONS["vision"]] = (b.patches + EXTRA_VISION_ROWS, d)
    branches = [BRANCH_OF_TOWER[tower] for tower in config.towers]
    for tower in config.towers:
        shapes[f"{HEAD_OF_TOWER[tower]}.weight"] = (d, d)
        shapes.update(_norm(f"beit3.encoder.layer_norm.{BRANCH_OF_TOWER[tower]}", d))
    for index in range(b.layers):
        layer = f"beit3.encoder.layers.{index}"
        for branch in branches:
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes.update(_linear(f"{layer}.self_attn.{name}.{branch}", d, d))
            shapes.update(_norm(f"{layer}.self_attn.inner_attn_ln.{branch}", d))
            shapes.update(_norm(f"{layer}.self_attn_layer_norm.{branch}", d))
            shapes.update(_norm(f"{layer}.final_layer_norm.{branch}", d))
            shapes.update(_ffn(f"{layer}.ffn.{branch}", d, f))
        for tower in config.towers:
            if config.adapter is not None and config.adapter.has_adapter(tower):
                name = f"{layer}.{ADAPTER_OF_TOWER[tower]}"
                shapes.update(_adapter_shapes(name, d, config.adapter))
        if config.enhancer:
            shapes.update(_ffn(f"{layer}.enhancemlp", d, f))
    return shapes


def check_shapes(
    shapes: Mapping[str, Shape],
    config: ModelConfig,
    path: Path,
    origin: Mapping[str, Path] | None = None,
    adapter: Path | None = None,
) -> None:
    """Raise CheckpointError listing the first missing, unexpected and mis-shaped tensors.

    Args:
        shapes: tensor name -> shape.
        config: as inferred from ``shapes``.
        path: the checkpoint, or the base; for messages.
        origin: file of each tensor, for a base with an adapter.
        adapter: the adapter file, if there is one.
    """
    expected = expected_shapes(config)
    missing = [name for name in expected if name not in shapes]
    others = [tower for tower in TOWERS if tower not in config.towers]
    unexpected = [
        name
        for name in shapes
        if name not in expected and name not in UNUSED and tower_of(name) not in others
    ]
    misshaped = [name for name, shape in expected.items() if shapes.get(name, shape) != shape]
    found = {
        "missing": missing,
        "unexpected": unexpected,
        "with a wrong shape": [
            f"{name} is {_by(shapes[name])}, expected {_by(expected[name])}" for name in misshaped
        ],
    }
    problems = [
        f"{len(names)} {kind}: {'; '.join(_short(name) for name in names[:4])}"
        f"{'; ...' if len(names) > 4 else ''}"
        for kind, names in found.items()
        if names
    ]
    if not problems:
        return
    if origin and (at_fault := {origin[name] for name in (*unexpected, *misshaped)}):
        path = min(at_fault)
    elif adapter and all("mlp" in name for name in missing):  # adaptmlp_*, enhancemlp
        path = adapter
    advice = ""
    if unexpected and not missing and not misshaped:
        advice = f" If only training needs them, pass `ignore={_short(unexpected[0])}`."
    elif missing and len(config.towers) > 1:
        whole = [t for t in TOWERS if not any(tower_of(name) in (t, None) for name in missing)]
        if whole:
            advice = f" To export only the {whole[0]} tower, pass `towers={whole[0]}`."
    raise CheckpointError(
        f"{path}: its tensors are not those of a BEiT-3 retrieval model with "
        f"{config.backbone.layers} layers of width {config.backbone.embed_dim}: "
        f"{'. '.join(problems)}.{advice}"
    )


def _towers(shapes: Mapping[str, Shape], options: ModelOptions, path: Path) -> tuple[Tower, ...]:
    """Return the towers to read: all in the checkpoint, without an unrequested incomplete one."""
    found = towers_in(shapes)
    for tower in options.towers or ():
        if tower not in found:
            raise CheckpointError(
                f"{path}: has no {tower} tower for `towers={tower}`. It has: "
                f"{', '.join(found) or 'none'}."
            )
    if options.towers is None or len(options.towers) == len(found):
        return found
    (other,) = (tower for tower in found if tower not in options.towers)
    (kept,) = options.towers
    one, two = f".{BRANCH_OF_TOWER[kept]}.", f".{BRANCH_OF_TOWER[other]}."
    pairs = [name.replace(one, two) for name in shapes if one in name]
    embed = {"text": "beit3.text_embed.weight", "vision": "beit3.vision_embed.proj.weight"}
    needed = (*pairs, f"{HEAD_OF_TOWER[other]}.weight", embed[other])
    return found if all(name in shapes for name in needed) else options.towers


def _check_task(shapes: Mapping[str, Shape], path: Path, stored: StoredOptions) -> None:
    if any(f"{head}.weight" in shapes for head in HEAD_OF_TOWER.values()):
        return
    if not any(name.startswith("beit3.") for name in shapes):
        some = "; ".join(map(_short, list(shapes)[:1]))
        raise CheckpointError(
            f"{path}: its tensors ({some}; ...) are not those of a BEiT-3 model. Expected names "
            "such as beit3.text_embed.weight. If they have a prefix, pass `model_prefix`."
        )
    found = next(
        (task for start, task in _OTHER_HEADS if any(name.startswith(start) for name in shapes)),
        "no particular task (a pretrained backbone without heads)",
    )
    advice = "To combine it with an adapter file, use `base` and `adapter`."
    if path != stored.path:
        advice = f"{stored.path} does not have them, either."
    raise CheckpointError(
        f"{path}: is a BEiT-3 model for {found}. Expected one for image-text retrieval, with "
        f"vision_head.weight and language_head.weight. {advice}"
    )


def _backbone(
    shapes: Mapping[str, Shape],
    towers: tuple[Tower, ...],
    stored: StoredOptions,
    options: ModelOptions,
    path: Path,
) -> BackboneConfig:
    def shape(name: str, rank: int) -> Shape:
        if name not in shapes or len(shapes[name]) != rank:
            found = _by(shapes[name]) if name in shapes else "missing"
            raise CheckpointError(f"{path}: {name} is {found}. Expected a rank {rank} tensor.")
        return shapes[name]

    width = patch = side = text_rows = vocabulary = 0
    if "vision" in towers:
        width, channels, patch, _ = shape("beit3.vision_embed.proj.weight", 4)
        if channels != 3:
            raise CheckpointError(
                f"{path}: the model reads images of {channels} channels. Expected 3 (RGB)."
            )
        rows = shape(POSITIONS["vision"], 2)[0]
        side = math.isqrt(max(rows - EXTRA_VISION_ROWS, 0))
        if side == 0 or side * side != rows - EXTRA_VISION_ROWS:
            raise CheckpointError(
                f"{path}: {POSITIONS['vision']} has {rows} rows. Expected a square number of "
                f"patches plus {EXTRA_VISION_ROWS}."
            )
    if "text" in towers:
        vocabulary, text_width = shape("beit3.text_embed.weight", 2)
        width = width or text_width
        text_rows = shape(POSITIONS["text"], 2)[0]
        if text_rows < 5:
            raise CheckpointError(
                f"{path}: {POSITIONS['text']} has {text_rows} rows. Expected at least 5."
            )
    layers = _layers(shapes, path)
    positions = max(text_rows - POSITION_OFFSET, 0)
    ffn = shape(f"beit3.encoder.layers.0.ffn.{BRANCH_OF_TOWER[towers[0]]}.fc1.weight", 2)[0]
    sizes = {"encoder_layers": layers, "encoder_embed_dim": width, "encoder_ffn_embed_dim": ffn}
    if "text" in towers:
        sizes["vocab_size"] = vocabulary
    if "vision" in towers:
        sizes["patch_size"] = patch
    stored.check_sizes(sizes)
    return BackboneConfig(
        embed_dim=width,
        ffn_dim=ffn,
        layers=layers,
        vocab_size=vocabulary,
        image_size=side * patch,
        patch_size=patch,
        text_positions=positions,
        heads=_heads(width, stored, options),
        max_tokens=_max_tokens(positions, stored, options) if "text" in towers else MAX_TOKENS,
    )


def _layers(shapes: Mapping[str, Shape], path: Path) -> int:
    """Count the encoder layers. Their names must number them from 0 without a gap."""
    numbers = {m[1] for m in (re.match(r"beit3\.encoder\.layers\.(\d+)\.", n) for n in shapes) if m}
    if not numbers:
        raise CheckpointError(f"{path}: has no encoder layers (beit3.encoder.layers.0.*).")
    for index in range(len(numbers)):
        if str(index) not in numbers:
            raise CheckpointError(
                f"{path}: has {len(numbers)} encoder layers, but none with the number {index}. "
                "Expected layers numbered from 0 without a gap."
            )
    return len(numbers)


def _heads(width: int, stored: StoredOptions, options: ModelOptions) -> int:
    heads = options.heads or stored.natural("encoder_attention_heads") or default_heads(width)
    if width % heads:
        raise OptionsError("heads", heads, f"a number that divides the model's width, {width}")
    return heads


def _max_tokens(positions: int, stored: StoredOptions, options: ModelOptions) -> int:
    """Return the longest text in tokens: as given, as stored, or the reference's default."""
    length = options.max_length or stored.natural("num_max_bpe_tokens")
    if length is None or (length == MAX_TOKENS and options.max_length is None):
        return MAX_TOKENS  # the default of training; BackboneConfig limits it to the positions
    if not MIN_TOKENS <= length <= positions:
        name = "`max_length`" if options.max_length else "num_max_bpe_tokens"
        raise UsageError(
            f"{stored.path}: texts of {length} tokens ({name}) do not fit. Expected {MIN_TOKENS} "
            f"to {positions} tokens, the positions that the model has."
        )
    # With the default length, the embedding-space id stays that of earlier versions.
    return MAX_TOKENS if length == min(MAX_TOKENS, positions) else length


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


def _linear(prefix: str, rows: int, *columns: int) -> dict[str, Shape]:
    return {f"{prefix}.weight": (rows, *columns), f"{prefix}.bias": (rows,)}


def _norm(prefix: str, width: int) -> dict[str, Shape]:
    return {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}


def _short(text: str) -> str:
    """Shorten a name for a message: names in a file may have any length."""
    return text if len(text) <= 200 else f"{text[:200]}..."


def _by(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a scalar"
