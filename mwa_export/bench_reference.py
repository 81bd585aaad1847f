"""The checkpoint that a bundle was made from, for its peers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mwa_export.bundle.bundle import Bundle
from mwa_export.encoder.open import CheckpointOptions
from mwa_export.errors import MissingOptionError, OptionsError
from mwa_export.optional import require

if TYPE_CHECKING:
    from mwa_export.model.load import Model


def reference_model(bundle: Bundle, path: Path, options: CheckpointOptions) -> Model:
    """Load the checkpoint of a bundle; options that it does not say are taken from the bundle.

    Args:
        bundle: an opened bundle.
        path: the checkpoint, or a base if the options name an adapter.
        options: how to read it.

    Raises:
        OptionsError: the bundle was made from another checkpoint.
        CheckpointError, AdapterError: see their messages.
        MissingPackageError: torch is not installed.
    """
    require("torch", extra="export", why="run the peers of a benchmark")
    from mwa_export.model.load import ModelSource, load_model
    from mwa_export.model.space import space_id
    from mwa_export.model.state_dict import AdapterOptions

    pair = {"base": path, "adapter": options.adapter} if options.adapter else {"checkpoint": path}
    source = ModelSource(**pair, ema=options.ema, trust_pickle=options.trust_pickle)
    manifest = bundle.manifest
    size = manifest.model.backbone.image_size
    given = AdapterOptions(options.adapter_scale, options.adapter_layernorm, options.ffn_option)
    try:
        model = load_model(source, options=given, image_size=size)
    except MissingOptionError as error:
        known = manifest.model.adapter
        if known is None:
            raise
        asked = " ".join(error.flags)
        wanted = AdapterOptions(
            known.scale if "--adapter-scale" in asked else given.scale,
            known.layernorm if "--adapter-layernorm" in asked else given.layernorm,
            known.option if "--ffn-option" in asked else given.ffn_option,
        )
        model = load_model(source, options=wanted, image_size=size)
    tokenizer = manifest.tokenizer and manifest.files[manifest.tokenizer]["sha256"]
    found = space_id(model.config, model.tensors, manifest.preprocessing, tokenizer)
    if found != manifest.space_id:
        raise OptionsError(
            f"{path}: is not what {bundle.path} was made from (embedding space {found[:16]}, the "
            f"bundle's is {manifest.space_id[:16]}). Expected the same checkpoint with the same "
            "options, so that all contenders compute the same."
        )
    return model
