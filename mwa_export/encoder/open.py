"""The two sides of a comparison: a checkpoint on PyTorch, or a bundle on a runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from mwa_export.bundle.bundle import Bundle
from mwa_export.encoder.encoder import Side, SideInfo
from mwa_export.errors import MissingOptionError, OptionsError
from mwa_export.files import sha256_of
from mwa_export.inputs.preprocess import IMAGE_SPEC, pixels_from_image
from mwa_export.inputs.tokenizer import TEXT_SPEC, Tokenizer
from mwa_export.optional import require
from mwa_export.runtimes.backend import GraphBackend
from mwa_export.runtimes.choose import LABELS, RuntimeOptions
from mwa_export.runtimes.onnxrt import choose_graphs
from mwa_export.runtimes.open import open_backend
from mwa_export.spec import ModelConfig
from mwa_export.version import __version__


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """How to read a checkpoint that serves as the reference; named as those of `onnx`."""

    adapter: Path | None = None  # the reference is a base, and this its adapter file
    ema: bool = False
    trust_pickle: bool = False
    adapter_scale: float | None = None
    adapter_layernorm: Any = None
    ffn_option: Any = None


ON_ONNX_RUNTIME = RuntimeOptions(runtime="onnxruntime", precision="float32")


def side_from_bundle(
    path: Path,
    *,
    graphs: Sequence[str] = (),
    runtime: RuntimeOptions = ON_ONNX_RUNTIME,
    tokenizer: Path | None = None,
    lent_tokenizer: Path | None = None,
) -> Side:
    """A bundle on a runtime.

    Args:
        path: the bundle.
        graphs: names of its graphs, or paths of others, in place of those the precision names.
        runtime: what to run it on; "torch" runs checkpoints, not bundles.
        tokenizer: in place of the bundle's own.
        lent_tokenizer: for a bundle that was exported without one.

    Raises:
        OptionsError: options that do not go together.
        RuntimeUnavailableError: this machine cannot run that, or would run it slower than float32.
    """
    _check_runtime(path, runtime, graphs)
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    opened = open_backend(bundle, runtime, graphs=choose_graphs(bundle, graphs))
    backend, choice = cast(GraphBackend, opened.backend), opened.choice
    reduced = backend.precision != "float32"
    # TensorRT has no float32 engines: the same graphs on ONNX Runtime stand for them.
    float32_on = "onnxruntime" if choice.runtime == "tensorrt" else choice.runtime
    exact = replace(runtime, runtime=float32_on, precision="float32")
    label = LABELS[choice.runtime]
    module = choice.runtime if choice.runtime in ("openvino", "tensorrt") else "onnxruntime"
    versioned = f"{label} {import_module(module).__version__.split('-')[0]}"
    own = lent_tokenizer if manifest.tokenizer is None else path / manifest.tokenizer
    tokenizer = tokenizer or own
    size = manifest.model.backbone.image_size
    return Side(
        info=SideInfo(
            name=f"{path.resolve().name} on {label}, {backend.precision}",
            source=str(path),
            runtime=versioned,
            precision=backend.precision,
            space_id=manifest.space_id,
        ),
        config=manifest.model,
        backend=backend,
        float32=open_backend(bundle, exact).backend if reduced else None,
        image=manifest.preprocessing["image"],
        prepare=lambda image: pixels_from_image(image, size),
        tokenizer=None if tokenizer is None else _tokenizer(tokenizer, manifest.model),
        tokenizer_sha256=None if tokenizer is None else sha256_of(tokenizer),
        carries_tokenizer=manifest.tokenizer is not None,
        identity={
            "bundle": manifest.space_id,
            "graphs": {tower: sha256_of(file) for tower, (file, _) in backend.graphs.items()},
            "precision": backend.precision,
            "image": manifest.preprocessing["image"],
            "runtime": versioned,
        },
    )


def _check_runtime(path: Path, runtime: RuntimeOptions, graphs: Sequence[str]) -> None:
    if runtime.runtime == "torch":
        raise OptionsError(
            f"{path}: is a bundle, and PyTorch runs checkpoints. Name the checkpoint as the "
            "reference: --reference CHECKPOINT"
        )
    if graphs and runtime.precision not in ("float32", "bfloat16"):
        raise OptionsError(
            f"graphs were named, and --precision {runtime.precision} names others. Leave one out."
        )


def side_from_checkpoint(
    path: Path,
    like: Side,
    options: CheckpointOptions | None = None,
    *,
    tokenizer: Path | None = None,
) -> Side:
    """A checkpoint on PyTorch, unmerged: torchscale's own encoder.

    Args:
        path: the checkpoint, or a base if the options name an adapter.
        like: the other side: its image size is taken, its tokenizer where none is given, and its
            adapter options where neither the file nor ``options`` have them.
        options: see CheckpointOptions.
        tokenizer: the reference's own.
    """
    require("torch", extra="export", why="run the PyTorch reference")
    import torch

    from mwa_export.model.load import ModelSource, load_model
    from mwa_export.model.space import space_id
    from mwa_export.model.state_dict import AdapterOptions
    from mwa_export.runtimes.pytorch import TorchBackend

    given = options or CheckpointOptions()
    pair = {"base": path, "adapter": given.adapter} if given.adapter else {"checkpoint": path}
    source = ModelSource(**pair, ema=given.ema, trust_pickle=given.trust_pickle)
    size = like.config.backbone.image_size
    wanted = AdapterOptions(given.adapter_scale, given.adapter_layernorm, given.ffn_option)
    warnings: tuple[str, ...] = ()
    try:
        model = load_model(source, options=wanted, image_size=size)
    except MissingOptionError as error:
        adapter = like.config.adapter
        if adapter is None:
            raise
        # What the file does not say was said when the bundle was made from it.
        wanted = AdapterOptions(
            adapter.scale if _names(error, "--adapter-scale") else wanted.scale,
            adapter.layernorm if _names(error, "--adapter-layernorm") else wanted.layernorm,
            adapter.option if _names(error, "--ffn-option") else wanted.ffn_option,
        )
        warnings = (
            f"{path}: does not say all adapter options; taken from {like.info.source}: "
            + ", ".join(flag.split()[0] for flag in error.flags),
        )
        model = load_model(source, options=wanted, image_size=size)
    own, sha = like.tokenizer, like.tokenizer_sha256
    if tokenizer is not None:
        own, sha = _tokenizer(tokenizer, model.config), sha256_of(tokenizer)
    image = {**IMAGE_SPEC, "size": size}
    text = {**TEXT_SPEC, "max_length": model.config.backbone.max_text_length}
    counted = sha if like.carries_tokenizer else None
    space = space_id(model.config, model.tensors, {"image": image, "text": text}, counted)
    runtime = f"PyTorch {torch.__version__.split('+')[0]}"
    return Side(
        info=SideInfo(
            name=f"{path.name} on PyTorch, float32",
            source=str(path),
            runtime=runtime,
            precision="float32",
            space_id=space,
        ),
        config=model.config,
        backend=TorchBackend(model),
        float32=None,
        image=image,
        prepare=lambda image: pixels_from_image(image, size),
        tokenizer=own,
        tokenizer_sha256=sha,
        carries_tokenizer=like.carries_tokenizer,
        identity={"checkpoint": space, "runtime": runtime, "mwa_export": __version__},
        warnings=(*warnings, *model.warnings),
    )


def check_same_space(reference: Side, candidate: Side) -> None:
    """Raise OptionsError, naming what differs, unless both sides embed into the same space."""
    same_tokenizer = reference.tokenizer_sha256 == candidate.tokenizer_sha256
    if reference.info.space_id == candidate.info.space_id and same_tokenizer:
        return
    differing = [
        name
        for name, one, other in (
            ("model configuration", reference.config.to_json(), candidate.config.to_json()),
            ("tokenizer", reference.tokenizer_sha256, candidate.tokenizer_sha256),
            ("picture preprocessing", dict(reference.image), dict(candidate.image)),
        )
        if one != other
    ] or ["weights"]
    raise OptionsError(
        f"{reference.info.source} and {candidate.info.source} have different embedding spaces: "
        f"another {', '.join(differing)}. Expected the checkpoint (with its options) that the "
        "bundle was exported from. To compare them nevertheless: --any-space"
    )


def _names(error: MissingOptionError, flag: str) -> bool:
    return any(given.startswith(flag) for given in error.flags)


def _tokenizer(path: Path, config: ModelConfig) -> Tokenizer:
    tokenizer = Tokenizer.from_file(path, max_length=config.backbone.max_text_length)
    tokenizer.check_vocabulary(config.backbone.vocab_size)
    return tokenizer
