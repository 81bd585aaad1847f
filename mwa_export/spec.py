"""Sizes and options of a model as plain data, independent of file formats and frameworks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import OptionsError, UsageError

ImageInput = Literal["float32", "uint8"]

Dim = int | str  # a size, or the name of a dynamic axis

Embeddings = NDArray[np.float32]  # (B, D), unit L2 norm

TOWERS: tuple[Tower, ...] = ("vision", "text")

AdapterMode = Literal["text", "vision", "both"]
AdapterLayerNorm = Literal["none", "in", "out"]
FfnOption = Literal["parallel", "sequential"]
Tower = Literal["vision", "text"]

HEAD_DIM = 64  # width of a head in BEiT-3 base and large: heads = embed_dim / 64
_HEADS = {1408: 16}  # width -> number of heads if they are not 64 wide: BEiT-3 giant
LAYERNORM_EPS = 1e-5  # torchscale EncoderConfig.layernorm_eps, and torch's default in the adapter
POSITION_OFFSET = 2  # both position tables start at row 2 (torchscale inherits this from fairseq)
MAX_TOKENS = 64  # num_max_bpe_tokens of the reference: captions are cut to this many ids

# The reference runs `adaptmlp_text` on images and `adaptmlp_vision` on texts. Trained weights
# depend on this swap, which is defined only here.
ADAPTER_OF_TOWER: dict[Tower, str] = {"vision": "adaptmlp_text", "text": "adaptmlp_vision"}
BRANCH_OF_TOWER: dict[Tower, str] = {"vision": "A", "text": "B"}
HEAD_OF_TOWER: dict[Tower, str] = {"vision": "vision_head", "text": "language_head"}


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """Sizes of a BEiT-3. All but ``heads`` and ``max_tokens`` follow from tensor shapes.

    The sizes of a missing tower are 0.
    """

    embed_dim: int
    ffn_dim: int
    layers: int
    vocab_size: int
    image_size: int  # pixels, square
    patch_size: int  # pixels, square
    text_positions: int  # usable rows of the text position table
    heads: int = 0  # attention heads; 0: the usual number for this width
    max_tokens: int = MAX_TOKENS  # longest caption in training (num_max_bpe_tokens)

    def __post_init__(self) -> None:
        if min(self.embed_dim, self.ffn_dim, self.layers) < 1 or min(asdict(self).values()) < 0:
            raise UsageError(f"the model has a size that is not positive: {asdict(self)}.")
        if not self.heads:
            object.__setattr__(self, "heads", default_heads(self.embed_dim))
        if self.embed_dim % self.heads:
            raise OptionsError(
                "heads",
                self.heads,
                f"a divisor of the model's width, {self.embed_dim}",
            )
        if self.patch_size and self.image_size % self.patch_size:
            below = self.image_size // self.patch_size * self.patch_size
            nearest = [str(size) for size in (below, below + self.patch_size) if size]
            raise UsageError(
                f"image size {self.image_size} is not a multiple of the patch size "
                f"{self.patch_size}. Use {' or '.join(nearest)}."
            )

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.embed_dim // self.heads

    @property
    def patches(self) -> int:
        """Patches of an image; 0 without a vision tower."""
        return (self.image_size // self.patch_size) ** 2 if self.patch_size else 0

    @property
    def max_text_length(self) -> int:
        """Longest caption in tokens, BOS and EOS included."""
        return min(self.max_tokens, self.text_positions)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data. Default values are left out, as in bundles of earlier versions."""
        data = asdict(self)
        if self.embed_dim % HEAD_DIM == 0 and self.heads == default_heads(self.embed_dim):
            del data["heads"]
        if self.max_tokens == MAX_TOKENS:
            del data["max_tokens"]
        return data


def default_heads(width: int) -> int:
    """Return the number of attention heads of a BEiT-3 of this width.

    Raises:
        UsageError: no known BEiT-3 has this width.
    """
    if width not in _HEADS and width % HEAD_DIM:
        raise UsageError(
            f"the model's width {width} is not a multiple of {HEAD_DIM}, so its number of "
            "attention heads is unknown. Pass `heads=NUMBER`."
        )
    return _HEADS.get(width, width // HEAD_DIM)


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Options of the MultiWay-Adapters (arXiv 2309.01516), in the reference's own terms."""

    mode: AdapterMode  # ffn_mode: which adapters exist; ADAPTER_OF_TOWER says where they run
    bottleneck: int  # ffn_num: width of the hidden layer
    layernorm: AdapterLayerNorm  # ffn_adapter_layernorm_option
    scale: float | None  # ffn_adapter_scalar; None: learned, one tensor value per adapter
    option: FfnOption  # ffn_option; `sequential` never applies the adapters in the reference

    def __post_init__(self) -> None:
        for name, kind in (("mode", AdapterMode), ("layernorm", AdapterLayerNorm)):
            one_of(name, getattr(self, name), get_args(kind))
        one_of("option", self.option, get_args(FfnOption))

    def has_adapter(self, tower: Tower) -> bool:
        """Whether the checkpoint contains the adapter of this tower."""
        stored = {"text": ("adaptmlp_text",), "vision": ("adaptmlp_vision",)}.get(
            self.mode, ("adaptmlp_text", "adaptmlp_vision")
        )
        return ADAPTER_OF_TOWER[tower] in stored

    def applies_to(self, tower: Tower) -> bool:
        """Whether the reference's forward pass uses an adapter in this tower."""
        return self.option == "parallel" and self.has_adapter(tower)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything about a model except its weights."""

    backbone: BackboneConfig
    adapter: AdapterConfig | None = None
    enhancer: bool = False  # ffn_enhance: one more FFN after each block, shared by both towers
    towers: tuple[Tower, ...] = TOWERS  # towers that have weights

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; ``towers`` is left out if the model has both."""
        data = {**asdict(self), "backbone": self.backbone.to_json(), "towers": list(self.towers)}
        if self.towers == TOWERS:
            del data["towers"]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelConfig:
        """Convert data from `to_json` back.

        Raises:
            LookupError, TypeError, UsageError: the data is malformed.
        """
        adapter = data.get("adapter")
        return cls(
            BackboneConfig(**data["backbone"]),
            None if adapter is None else AdapterConfig(**adapter),
            data["enhancer"],
            tuple(cast("Tower", one_of("towers", t, TOWERS)) for t in data.get("towers", TOWERS)),
        )


def tower_of(name: str) -> Tower | None:
    """Return the tower that a tensor belongs to; None: to both or neither."""
    for tower in TOWERS:
        if ADAPTER_OF_TOWER[tower] in name or (
            f".{BRANCH_OF_TOWER[tower]}." in name
            or name.startswith((f"beit3.{tower}_embed.", f"{HEAD_OF_TOWER[tower]}."))
        ):
            return tower
    return None


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return ``value`` if it is in ``allowed``; otherwise raise an OptionsError that lists them."""
    if value not in allowed:
        raise OptionsError(name, value, f"one of {', '.join(allowed)}")
    return value


@dataclass(frozen=True, slots=True)
class Port:
    """Name, shape and dtype of an input or output, in every graph, profile and feed."""

    name: str
    shape: tuple[Dim, ...]
    dtype: Literal["float32", "int64", "uint8"]


@dataclass(frozen=True, slots=True)
class TowerSpec:
    """Inputs and output of a tower."""

    tower: Tower
    inputs: tuple[Port, ...]
    output: Port


def vision_spec(backbone: BackboneConfig, *, image_input: ImageInput = "float32") -> TowerSpec:
    """Spec of the vision tower.

    image: (batch, 3, H, W) float32 in [-1, 1], or (batch, H, W, 3) uint8 in [0, 255].
    """
    size = backbone.image_size
    if image_input == "uint8":
        image = Port("image", ("batch", size, size, 3), "uint8")
    else:
        image = Port("image", ("batch", 3, size, size), "float32")
    return TowerSpec("vision", (image,), _embedding(backbone))


def text_spec(backbone: BackboneConfig) -> TowerSpec:
    """Spec of the text tower: token_ids, padding_mask (batch, length) int64, mask 1 = padding."""
    axes: tuple[Dim, ...] = ("batch", "length")
    ports = (Port("token_ids", axes, "int64"), Port("padding_mask", axes, "int64"))
    return TowerSpec("text", ports, _embedding(backbone))


def _embedding(backbone: BackboneConfig) -> Port:
    return Port("embedding", ("batch", backbone.embed_dim), "float32")
