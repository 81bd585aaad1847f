"""A tower as a plain torch module: the torch interpreter of ``forward``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mwa_export.spec import LAYERNORM_EPS
from mwa_export.towers.forward import TowerPlan, run


class TorchTower(nn.Module):
    """The vision or text tower with merged (or unmerged) weights, for inference.

    ``state_dict()`` has the names of ``forward``; ``.to(dtype)`` and ``torch.compile`` work.
    """

    def __init__(self, plan: TowerPlan, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.plan = plan
        for name, tensor in tensors.items():
            _register(self, name, nn.Parameter(tensor, requires_grad=False))
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs as in ``plan.spec``. Returns (B, D), unit L2 norm, in the weights' dtype."""
        return run(_TorchOps(self.get_parameter, self.plan.backbone.head_dim), self.plan, inputs)


class _TorchOps:
    def __init__(self, tensor: Callable[[str], Tensor], head_dim: int) -> None:
        self._tensor = tensor
        self._head_dim = head_dim

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, heads, D / heads)."""
        return x.view(*x.shape[:-1], -1, self._head_dim)

    def _optional(self, name: str) -> Tensor | None:
        try:
            return self._tensor(name)
        except AttributeError:
            return None

    def linear(self, x: Tensor, tensor: str) -> Tensor:
        return functional.linear(
            x, self._tensor(f"{tensor}.weight"), self._optional(f"{tensor}.bias")
        )

    def norm(self, x: Tensor, tensor: str) -> Tensor:
        weight, bias = self._optional(f"{tensor}.weight"), self._optional(f"{tensor}.bias")
        return functional.layer_norm(x, x.shape[-1:], weight, bias, LAYERNORM_EPS)

    def scale(self, x: Tensor, tensor: str) -> Tensor:
        return x * self._tensor(tensor)

    def gelu(self, x: Tensor, name: str) -> Tensor:
        return functional.gelu(x)

    def relu(self, x: Tensor, name: str) -> Tensor:
        return functional.relu(x)

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        return x + y

    def concat(self, xs: Sequence[Tensor], name: str) -> Tensor:
        return torch.cat(list(xs), dim=-1)

    def split(self, x: Tensor, sizes: Sequence[int], name: str) -> list[Tensor]:
        return list(torch.split(x, list(sizes), dim=-1))

    def first_token(self, x: Tensor, name: str) -> Tensor:
        return x[:, :1]

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, name: str, *, scaled: bool
    ) -> Tensor:
        batch, asking, width = q.shape
        q, k, v = (self._by_head(x).transpose(1, 2) for x in (q, k, v))
        if not scaled:
            q = q * self._head_dim**-0.5
        scores = q @ k.transpose(-1, -2)  # (B, heads, asking, T)
        if mask is not None:
            scores = scores.masked_fill(mask, float("-inf"))
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, asking, width)

    def attention_of_one(self, q: Tensor, x: Tensor, mask: Tensor | None, block: str) -> Tensor:
        key, value = self._tensor(f"{block}.key_heads"), self._tensor(f"{block}.value_heads")
        asking = torch.einsum("bhc,hcd->bhd", self._by_head(q).squeeze(1), key)
        scores = asking @ x.transpose(1, 2)  # (B, heads, T)
        if mask is not None:
            scores = scores.masked_fill(mask.squeeze(1), float("-inf"))
        seen = torch.einsum("bhd,hcd->bhc", scores.softmax(-1) @ x, value)  # (B, heads, 64)
        return seen.flatten(1).unsqueeze(1) + self._tensor(f"{block}.value_bias")

    def patches(self, image: Tensor, *, folded: bool) -> Tensor:
        weight, bias = self._tensor("patch.weight"), self._optional("patch.bias")
        if image.dtype == torch.uint8:  # NHWC
            image = image.permute(0, 3, 1, 2).to(weight.dtype)
            if not folded:
                image = (image / 255 - 0.5) / 0.5
        x = functional.conv2d(image, weight, bias, stride=weight.shape[-1])
        return x.flatten(2).transpose(1, 2)

    def with_table(self, patches: Tensor) -> Tensor:
        return functional.pad(patches, (0, 0, 1, 0)) + self._tensor("table")

    def with_class_token(self, patches: Tensor) -> Tensor:
        cls = self._tensor("cls_token").expand(patches.shape[0], 1, -1)
        return torch.cat((cls, patches), dim=1) + self._tensor("positions")

    def tokens(self, token_ids: Tensor) -> Tensor:
        positions = self._tensor("positions")[: token_ids.shape[1]]
        return functional.embedding(token_ids, self._tensor("token_embedding")) + positions

    def zero_padding(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        return x * (1 - padding_mask.to(x.dtype)).unsqueeze(-1)

    def attention_mask(self, padding_mask: Tensor) -> Tensor:
        return padding_mask.bool()[:, None, None, :]

    def unit(self, x: Tensor) -> Tensor:
        return functional.normalize(x.squeeze(1), dim=-1)


def _register(module: nn.Module, name: str, value: nn.Parameter) -> None:
    """Register under a dotted name, with empty modules in between."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        child = module._modules[part]
        assert child is not None
        module = child
    module.register_parameter(leaf, value)
