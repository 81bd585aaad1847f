"""TowerSpec: the inputs and the output of both towers, the one place that names them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mwa_export.config import BackboneConfig, Tower

ImageInput = Literal["float32", "uint8"]
Dim = int | str  # a number, or the name of a dynamic axis


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output: its name, shape and dtype in every graph, profile and feed."""

    name: str
    shape: tuple[Dim, ...]
    dtype: Literal["float32", "int64", "uint8"]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Port:
        return cls(data["name"], tuple(data["shape"]), data["dtype"])


@dataclass(frozen=True, slots=True)
class TowerSpec:
    """What goes into a tower and what comes out."""

    tower: Tower
    inputs: tuple[Port, ...]
    output: Port


def vision_spec(backbone: BackboneConfig, *, image_input: ImageInput = "float32") -> TowerSpec:
    """image: (batch, 3, H, W) float32 in [-1, 1], or (batch, H, W, 3) uint8 in [0, 255]."""
    size = backbone.image_size
    if image_input == "uint8":
        image = Port("image", ("batch", size, size, 3), "uint8")
    else:
        image = Port("image", ("batch", 3, size, size), "float32")
    return TowerSpec("vision", (image,), _embedding(backbone))


def text_spec(backbone: BackboneConfig) -> TowerSpec:
    """token_ids and padding_mask: (batch, length) int64, mask 1 = padding."""
    axes: tuple[Dim, ...] = ("batch", "length")
    ports = (Port("token_ids", axes, "int64"), Port("padding_mask", axes, "int64"))
    return TowerSpec("text", ports, _embedding(backbone))


def _embedding(backbone: BackboneConfig) -> Port:
    return Port("embedding", ("batch", backbone.embed_dim), "float32")
