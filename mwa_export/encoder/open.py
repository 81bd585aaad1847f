"""Open an encoder: a bundle on a runtime, or a checkpoint on PyTorch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mwa_export.bundle.bundle import Bundle
from mwa_export.encoder.encoder import Encoder, EncoderInfo
from mwa_export.errors import MissingOptionError, UsageError
from mwa_export.files import sha256_of
from mwa_export.inputs.preprocess import IMAGE_SPEC, pixels_from_image
from mwa_export.inputs.tokenizer import TEXT_SPEC, Tokenizer
from mwa_export.model.checkpoint import ReadOptions
from mwa_export.model.options import ModelOptions
from mwa_export.optional import check_installed
from mwa_export.runtimes.backend import Backend, GraphBackend, graph_bytes
from mwa_export.runtimes.onnxrt import choose_graphs
from mwa_export.runtimes.open import open_backend
from mwa_export.runtimes.options import LABELS, RuntimeOptions
from mwa_export.spec import ModelConfig, default_heads
from mwa_export.version import __version__

if TYPE_CHECKING:
    from mwa_export.model.load import Model

ON_ONNX_RUNTIME = RuntimeOptions(runtime="onnxruntime", precision="float32")


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """How to read a checkpoint that serves as the reference; named like the options of `export`."""

    adapter: Path | None = None  # adapter file; the reference is then its base checkpoint
    read: ReadOptions = field(default_factory=ReadOptions)
    options: ModelOptions = field(default_factory=ModelOptions)


def load(bundle: str | os.PathLike[str] | Bundle, options: RuntimeOptions | None = None) -> Encoder:
    """Open a bundle, by default on the best runtime and precision for this machine.

    Args:
        bundle: the folder that `export` wrote (all its files are checked), or an opened bundle.
        options: runtime, precision and threads; see `RuntimeOptions`.

    Raises:
        BundleError: the folder is not a bundle, or a file is missing or changed.
        RuntimeUnavailableError: the runtime is not installed, this machine cannot run it, or the
            precision would be slower than float32.
        VerificationError: this machine does not reproduce the bundle's conformance vectors.
    """
    return open_bundle(bundle, runtime=options or RuntimeOptions())


def open_bundle(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    graphs: Sequence[str] = (),
    runtime: RuntimeOptions = ON_ONNX_RUNTIME,
    tokenizer: Path | None = None,
    lent_tokenizer: Path | None = None,
) -> Encoder:
    """Open a bundle on a runtime.

    Args:
        bundle: its folder, or an opened bundle.
        graphs: graphs to use instead of those of the precision: names in the bundle, or paths.
        runtime: runtime, precision and threads; "torch" is for checkpoints, not for bundles.
        tokenizer: used instead of the bundle's own.
        lent_tokenizer: used if the bundle was exported without a tokenizer.

    Raises:
        UsageError: the options contradict each other.
        RuntimeUnavailableError: this machine cannot run the runtime or precision, or would run it
            slower than float32.
    """
    if not isinstance(bundle, Bundle):
        _check_runtime(Path(bundle), runtime, graphs)
        bundle = Bundle.open(bundle)
    path, manifest = bundle.path, bundle.manifest
    opened = open_backend(bundle, runtime, graphs=choose_graphs(bundle, graphs))
    backend, choice = cast(GraphBackend, opened.backend), opened.choice
    # There are no float32 TensorRT engines; ONNX Runtime runs the float32 graphs instead.
    float32_on = "onnxruntime" if choice.runtime == "tensorrt" else choice.runtime
    exact = replace(runtime, runtime=float32_on, precision="float32")
    label = LABELS[choice.runtime]
    module = choice.runtime if choice.runtime in ("openvino", "tensorrt") else "onnxruntime"
    versioned = f"{label} {import_module(module).__version__.split('-')[0]}"
    own = lent_tokenizer if manifest.tokenizer is None else bundle.file(manifest.tokenizer)
    tokenizer = tokenizer or own
    reduced = backend.precision != "float32"
    return Encoder(
        info=EncoderInfo(
            name=f"{path.resolve().name} on {label}, {backend.precision}",
            source=str(path),
            runtime=versioned,
            precision=backend.precision,
            space_id=manifest.space_id,
        ),
        config=manifest.model,
        backend=backend,
        image=manifest.preprocessing["image"],
        prepare=partial(pixels_from_image, size=manifest.model.backbone.image_size),
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
        open_float32=partial(_backend, bundle, exact) if reduced else None,
        made_with=manifest.export.versions or {},
        towers=manifest.towers,
        model_bytes=graph_bytes(backend),
    )


def _backend(bundle: Bundle, options: RuntimeOptions) -> Backend:
    return open_backend(bundle, options).backend


def _check_runtime(path: Path, runtime: RuntimeOptions, graphs: Sequence[str]) -> None:
    if runtime.runtime == "torch":
        raise UsageError(
            f"{path}: is a bundle, and PyTorch only runs checkpoints. Pass the checkpoint as the "
            "reference: `reference=CHECKPOINT`"
        )
    if graphs and runtime.precision not in ("float32", "bfloat16"):
        raise UsageError(
            f"`graphs` cannot be used with `precision={runtime.precision}`, which selects its own "
            "graphs. Omit one."
        )


def open_checkpoint(
    path: Path,
    like: Encoder,
    options: CheckpointOptions | None = None,
    *,
    tokenizer: Path | None = None,
) -> Encoder:
    """Open a checkpoint on PyTorch, unmerged: torchscale's own encoder.

    Args:
        path: the checkpoint, or a base if the options name an adapter.
        like: the bundle to compare with. It supplies the image size, the tokenizer if none is
            given, and adapter options that neither the file nor ``options`` contain.
        options: see CheckpointOptions.
        tokenizer: the reference's own.

    Raises:
        CheckpointError, AdapterError, UsageError: see `load_model`.
        MissingPackageError: PyTorch is not installed.
    """
    check_installed("torch", "torchscale")
    import torch

    from mwa_export.model.space import space_id
    from mwa_export.runtimes.pytorch import TorchBackend

    model, warnings = model_like(path, like.config, options, source=like.info.source)
    own, sha = like.tokenizer, like.tokenizer_sha256
    if tokenizer is not None:
        own, sha = _tokenizer(tokenizer, model.config), sha256_of(tokenizer)
    image = {**IMAGE_SPEC, "size": like.image_size}
    text = {**TEXT_SPEC, "max_length": model.config.backbone.max_text_length}
    counted = sha if like.carries_tokenizer else None
    space = space_id(model.config, model.tensors, {"image": image, "text": text}, counted)
    runtime = f"PyTorch {torch.__version__.split('+')[0]}"
    return Encoder(
        info=EncoderInfo(
            name=f"{path.name} on PyTorch, float32",
            source=str(path),
            runtime=runtime,
            precision="float32",
            space_id=space,
        ),
        config=model.config,
        backend=TorchBackend(model),
        image=image,
        prepare=partial(pixels_from_image, size=like.image_size),
        tokenizer=own,
        tokenizer_sha256=sha,
        carries_tokenizer=like.carries_tokenizer,
        identity={"checkpoint": space, "runtime": runtime, "mwa_export": __version__},
        warnings=(*warnings, *model.warnings),
        towers=model.towers,
        model_bytes=sum(tensor.nbytes for tensor in model.tensors.values()),
    )


def model_like(
    path: Path, config: ModelConfig, options: CheckpointOptions | None, *, source: str
) -> tuple[Model, tuple[str, ...]]:
    """Load the checkpoint that a bundle was made from.

    Args:
        path: the checkpoint, or a base if the options name an adapter.
        config: of the bundle. It supplies the image size, and adapter options that neither the
            file nor ``options`` contain.
        options: see CheckpointOptions.
        source: name of the bundle, for the warning.

    Returns:
        The model, and a warning if options were taken from the bundle.

    Raises:
        CheckpointError, AdapterError, UsageError: see `load_model`.
    """
    from mwa_export.model.checkpoint import read_checkpoint
    from mwa_export.model.load import ModelSource, load_model

    given = options or CheckpointOptions()
    files: dict[str, Path] = (
        {"base": path, "adapter": given.adapter} if given.adapter else {"checkpoint": path}
    )
    model_source = ModelSource(**files, read=given.read)
    backbone, known = config.backbone, config.adapter
    options_like = replace(
        given.options,
        image_size=backbone.image_size,
        max_length=backbone.max_text_length,
    )
    try:
        usual = default_heads(backbone.embed_dim)
    except UsageError:
        usual = 0
    # An unusual number of heads is taken from the bundle unless the checkpoint stores its own.
    if backbone.heads != usual and "encoder_attention_heads" not in (
        read_checkpoint(given.adapter or path, given.read).args
    ):
        options_like = replace(options_like, heads=backbone.heads)
    try:
        return load_model(model_source, options_like), ()
    except MissingOptionError as error:
        if known is None:
            raise
        of_bundle = ModelOptions(known.scale, known.layernorm, known.option)
        taken = {name: getattr(of_bundle, name) for name in error.fields}
        warning = f"{path}: lacks adapter options, which were taken from {source}: " + ", ".join(
            f"`{name}`" for name in taken
        )
        return load_model(model_source, replace(options_like, **taken)), (warning,)


def check_same_space(reference: Encoder, candidate: Encoder) -> None:
    """Raise UsageError, with what differs, unless both have the same embedding space."""
    same_tokenizer = reference.tokenizer_sha256 == candidate.tokenizer_sha256
    if reference.space_id == candidate.space_id and same_tokenizer:
        return
    differing = [
        name
        for name, one, other in (
            ("model configuration", reference.config.to_json(), candidate.config.to_json()),
            ("tokenizer", reference.tokenizer_sha256, candidate.tokenizer_sha256),
            ("image preprocessing", dict(reference.image), dict(candidate.image)),
        )
        if one != other
    ] or ["weights"]
    raise UsageError(
        f"{reference.info.source} and {candidate.info.source} have different embedding spaces: "
        f"they differ in {', '.join(differing)}. Pass the checkpoint that the bundle was exported "
        "from, with the same options. To compare them anyway: `any_space`"
    )


def _tokenizer(path: Path, config: ModelConfig) -> Tokenizer:
    tokenizer = Tokenizer.from_file(path, max_length=config.backbone.max_text_length)
    tokenizer.check_vocabulary(config.backbone.vocab_size)
    return tokenizer
