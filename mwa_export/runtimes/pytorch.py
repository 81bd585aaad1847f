"""The unmerged PyTorch reference, behind the Backend interface."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from mwa_export.inputs.preprocess import normalize
from mwa_export.model.load import Model
from mwa_export.model.reference import reference_from_tensors
from mwa_export.runtimes.backend import OneAtATime, Probe, embed
from mwa_export.spec import Embeddings, Tower


class TorchBackend:
    """Backend of the unmerged PyTorch reference, with which other backends are compared."""

    name = "PyTorch reference float32"

    def __init__(self, model: Model) -> None:
        self.image_size = model.config.backbone.image_size
        self._one = OneAtATime()  # the reference's hooks keep state during a call
        self.reference = reference_from_tensors(model.config, model.tensors)

    @torch.inference_mode()
    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        image = torch.from_numpy(normalize(pixels))
        with self._one:
            return cast(Embeddings, self.reference.encode_image(image).numpy())

    @torch.inference_mode()
    def embed_texts(
        self, token_ids: NDArray[np.int64], padding_mask: NDArray[np.int64]
    ) -> Embeddings:
        ids, mask = torch.from_numpy(token_ids), torch.from_numpy(padding_mask)
        with self._one:
            return cast(Embeddings, self.reference.encode_text(ids, mask).numpy())

    def probe(self, tower: Tower) -> Probe:
        """Make a function that returns the residual stream after every block; see `Probe`."""

        @torch.inference_mode()
        def run(inputs: tuple[NDArray[Any], ...]) -> list[NDArray[np.float32]]:
            found: list[NDArray[np.float32]] = []

            def keep(_layer: Any, _inputs: Any, output: tuple[Any, Any]) -> None:
                found.append(output[0].numpy().copy())

            # Registered after the enhancer's hook, so it sees the input of the next block.
            layers = self.reference.beit3.encoder.layers
            hooks = [layer.register_forward_hook(keep) for layer in layers]
            try:
                result = embed(self, tower, inputs)
            finally:
                for hook in hooks:
                    hook.remove()
            return [*found, result]

        return run
