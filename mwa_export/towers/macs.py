"""Count the multiply-accumulates of a tower: an interpreter of ``forward`` whose values are shapes.

The count therefore follows the merge steps exactly like the computation does. Only GEMMs are
counted (linears, attention products, the patch projection), not norms, activations or sums.
"""

from __future__ import annotations

from collections.abc import Sequence

from mwa_export.towers.forward import TowerPlan, run

Shape = tuple[int, ...]


def count_macs(plan: TowerPlan, batch: int, length: int | None = None) -> int:
    """Count the multiply-accumulates of all GEMMs in one forward pass.

    Args:
        plan: structure of the tower.
        batch: rows.
        length: tokens of every row, including padding; only for text.
    """
    ops = _CountOps(plan)
    size = plan.backbone.image_size
    if plan.tower == "vision":
        run(ops, plan, [(batch, 3, size, size)])
    else:
        assert length is not None
        run(ops, plan, [(batch, length), (batch, length)])
    return ops.macs


class _CountOps:
    def __init__(self, plan: TowerPlan) -> None:
        self.macs = 0
        self._backbone = plan.backbone
        width, hidden = plan.backbone.embed_dim, plan.backbone.ffn_dim
        narrow = plan.adapter.bottleneck if plan.adapter is not None else 0
        self._outputs = {"qkv": 3 * width, "fc1": hidden, "fc1_down": hidden + narrow}
        self._outputs |= {"down": narrow}  # all other linears have the width of the model

    def linear(self, x: Shape, tensor: str) -> Shape:
        batch, tokens, inputs = x
        outputs = self._outputs.get(tensor.rpartition(".")[2], self._backbone.embed_dim)
        self.macs += batch * tokens * inputs * outputs
        return batch, tokens, outputs

    def norm(self, x: Shape, tensor: str) -> Shape:
        return x

    def scale(self, x: Shape, tensor: str) -> Shape:
        return x

    def gelu(self, x: Shape, name: str) -> Shape:
        return x

    def relu(self, x: Shape, name: str) -> Shape:
        return x

    def add(self, x: Shape, y: Shape, name: str) -> Shape:
        assert x == y, (name, x, y)
        return x

    def concat(self, xs: Sequence[Shape], name: str) -> Shape:
        return (*xs[0][:-1], sum(x[-1] for x in xs))

    def split(self, x: Shape, sizes: Sequence[int], name: str) -> list[Shape]:
        assert sum(sizes) == x[-1], (name, sizes, x)
        return [(*x[:-1], size) for size in sizes]

    def first_token(self, x: Shape, name: str) -> Shape:
        return x[0], 1, x[2]

    def attention(
        self, q: Shape, k: Shape, v: Shape, mask: Shape | None, name: str, *, scaled: bool
    ) -> Shape:
        batch, asking, width = q
        self.macs += 2 * batch * asking * k[1] * width  # scores, and the weighted sum of values
        return q

    def attention_of_one(self, q: Shape, x: Shape, mask: Shape | None, block: str) -> Shape:
        batch, tokens, width = x
        heads = self._backbone.heads
        self.macs += 2 * batch * width * width  # key heads times query, value heads times result
        self.macs += 2 * batch * heads * tokens * width
        return q

    def patches(self, image: Shape, *, folded: bool) -> Shape:
        batch, patch = image[0], self._backbone.patch_size
        width, patches = self._backbone.embed_dim, self._backbone.patches
        self.macs += batch * patches * width * 3 * patch * patch
        return batch, patches, width

    def with_table(self, patches: Shape) -> Shape:
        return patches[0], patches[1] + 1, patches[2]

    def with_class_token(self, patches: Shape) -> Shape:
        return self.with_table(patches)

    def tokens(self, token_ids: Shape) -> Shape:
        return (*token_ids, self._backbone.embed_dim)

    def zero_padding(self, x: Shape, padding_mask: Shape) -> Shape:
        return x

    def attention_mask(self, padding_mask: Shape) -> Shape:
        return padding_mask[0], 1, 1, padding_mask[1]

    def unit(self, x: Shape) -> Shape:
        return x[0], x[2]
