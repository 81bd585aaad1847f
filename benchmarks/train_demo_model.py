"""Train the demo model in `mwa_export/assets`: a tiny BEiT-3 with MultiWay-Adapters.

As in the paper (arXiv 2309.01516), a model trained on one kind of images is frozen, and adapters
with an enhancer are trained for another kind, of which it has seen only a few. Images and captions
are drawn by `mwa_export.demo.scenes`; nothing is downloaded. To reproduce the shipped files, run it
from the repository root without options; its last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_training_data import (
    IMAGE_SIZE,
    PATCH_SIZE,
    Pictures,
    batches,
    draw,
    mixed,
    sentencepiece_from_captions,
)
from torch import Tensor, nn

from mwa_export.inputs.preprocess import normalize
from mwa_export.inputs.tokenizer import Tokenizer
from mwa_export.metrics.recall import Recall, recall
from mwa_export.model.reference import ReferenceModel
from mwa_export.spec import AdapterConfig, BackboneConfig, ModelConfig

EMBED_DIM, FFN_DIM, LAYERS = 128, 512, 4
TEXT_POSITIONS = 64
ADAPTER = AdapterConfig("both", 64, "none", 0.6, "parallel")
BASE_SEED, TARGET_SEED, TEST_SEED = 11, 12, 2024
TEST_PICTURES = 500
FACTS_WEIGHT, PATCH_WEIGHT = 0.12, 1.0  # weights of the auxiliary losses, per label
MAX_LOGIT_SCALE = math.log(100)
PARTS = {  # ablation -> parts of the names of parameters that it sets to zero
    "vision adapters": (".adaptmlp_text.up_proj.",),  # the reference swaps the two names
    "text adapters": (".adaptmlp_vision.up_proj.",),
    "adapters": (".adaptmlp_text.up_proj.", ".adaptmlp_vision.up_proj."),
    "enhancer": (".enhancemlp.fc2.",),
    "adapters and enhancer": (".adaptmlp_", ".enhancemlp.fc2."),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings for training one stage."""

    name: str
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.05
    warmup: int = 100  # steps
    bf16: bool = True
    seed: int = 0


def main() -> None:
    args = _arguments()
    started = time.perf_counter()
    torch.manual_seed(args.seed)
    base = draw("base", BASE_SEED + 1000 * args.seed, args.base_pictures)
    target = draw("target", TARGET_SEED + 1000 * args.seed, args.target_pictures)
    test = draw("target", TEST_SEED, TEST_PICTURES)
    base_test = draw("base", TEST_SEED, TEST_PICTURES)
    torch.set_num_threads(args.threads)
    say(started, f"drew {len(base.captions) + len(target.captions)} training pictures")

    args.out.mkdir(parents=True, exist_ok=True)
    spm = args.out / "demo.spm"
    spm.write_bytes(sentencepiece_from_captions(base.captions[:4000] + target.captions[:4000]))
    tokenizer = Tokenizer.from_file(spm, max_length=TEXT_POSITIONS)
    vocab_size = tokenizer.mask_id + 1
    say(started, f"{vocab_size} ids in the vocabulary")

    shape = BackboneConfig(
        EMBED_DIM, FFN_DIM, LAYERS, vocab_size, IMAGE_SIZE, PATCH_SIZE, TEXT_POSITIONS
    )
    config = ModelConfig(shape)
    recipe = Recipe(
        "base", args.base_steps, args.batch, args.base_learning_rate, bf16=args.bf16, seed=args.seed
    )
    progress = partial(say, started)
    model = ReferenceModel(config)
    if args.base_model and args.base_model.exists():
        model.load_state_dict(torch.load(args.base_model, weights_only=True))
    else:
        few = args.target_glimpse
        glimpse = Pictures(
            target.pixels[:few], target.captions[:few], target.facts[:few], target.patches[:few]
        )
        broad = mixed(base, glimpse)
        train(model, [list(model.parameters())], broad, tokenizer, recipe, progress)
        if args.base_model:
            torch.save(model.state_dict(), args.base_model)
    base_recall = evaluate(model, tokenizer, base_test)
    say(started, f"base model on base pictures: {as_row(base_recall)}")
    say(started, f"base model on target pictures: {as_row(evaluate(model, tokenizer, test))}")

    model, trainable = with_adapters(model)
    recipe = replace(
        recipe, name="target", steps=args.target_steps, learning_rate=args.target_learning_rate
    )
    train(model, trainable, target, tokenizer, recipe, progress)

    results = {"base model on base pictures": as_row(base_recall)}
    results["float32"] = as_row(evaluate(model, tokenizer, test))
    state = {
        name: tensor.half().contiguous().clone() for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state)
    results["float16"] = as_row(evaluate(model, tokenizer, test))
    for part, names in PARTS.items():
        with silenced(model, names):
            results[f"without {part}"] = as_row(evaluate(model, tokenizer, test))
    for name, row in results.items():
        say(started, f"{name}: {row}")
    path = args.out / "demo.pth"
    epochs = args.target_steps * args.batch // args.target_pictures
    torch.save({"model": state, "epoch": epochs, "args": reference_options(vocab_size)}, path)
    report = {
        "results": results,
        "bytes": {file.name: file.stat().st_size for file in (path, spm)},
        "seconds": round(time.perf_counter() - started),
        "threads": args.threads,
        "torch": torch.__version__,
    }
    print(json.dumps(report))


# --- training --------------------------------------------------------------------------------


def train(
    model: ReferenceModel,
    portions: list[list[nn.Parameter]],
    pictures: Pictures,
    tokenizer: Tokenizer,
    recipe: Recipe,
    progress: Callable[[str], None],
) -> None:
    """Train parameters in place; each portion has half the learning rate of the previous one.

    The loss is the symmetric contrastive loss plus two auxiliary classification losses: the scene's
    facts from both embeddings, and the content of each patch. They let such a small model learn to
    see in minutes.
    """
    model.requires_grad_(False).train()
    torch.manual_seed(recipe.seed)
    of_scene = nn.Linear(EMBED_DIM, pictures.facts.shape[-1])
    of_patch = nn.Linear(EMBED_DIM, pictures.patches.shape[-1])
    for classifier in (of_scene, of_patch):
        nn.init.constant_(classifier.bias, -3.0)  # most labels are 0
    portions = [[*portions[0], *of_scene.parameters(), *of_patch.parameters()], *portions[1:]]
    parameters = [parameter for portion in portions for parameter in portion]
    for parameter in parameters:
        parameter.requires_grad_(True)
    groups = [
        {
            "params": [p for p in portion if (p.ndim > 1) == decays],
            "weight_decay": recipe.weight_decay * decays,
            "lr": recipe.learning_rate / 2**number,
        }
        for number, portion in enumerate(portions)
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_warmup_cosine, recipe))
    data = batches(pictures, tokenizer, size=recipe.batch, seed=recipe.seed)
    mean = np.zeros(3)
    for step in range(1, recipe.steps + 1):
        inputs, facts, patches = next(data)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16), watched(model) as hidden:
            image, text = (embedding.float() for embedding in model(*inputs))
        scores = image @ text.T * model.logit_scale.exp()  # (B, B)
        same = torch.arange(len(scores))
        cross_entropy, wrong = (
            nn.functional.cross_entropy,
            nn.functional.multilabel_soft_margin_loss,
        )
        contrastive = (cross_entropy(scores, same) + cross_entropy(scores.T, same)) / 2
        seen = of_scene(torch.cat([image, text]) * EMBED_DIM**0.5)
        scene_loss = wrong(seen, facts.repeat(2, 1)) * facts.shape[-1]
        near = nn.functional.layer_norm(hidden[0][:, 1:].float(), (EMBED_DIM,))  # without CLS
        patch_loss = wrong(of_patch(near).flatten(0, 1), patches.flatten(0, 1)) * patches.shape[-1]
        optimizer.zero_grad()
        torch.autograd.backward(contrastive + FACTS_WEIGHT * scene_loss + PATCH_WEIGHT * patch_loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        mean += [contrastive.item(), scene_loss.item(), patch_loss.item()]
        if step % 100 == 0:
            told = "loss {:.3f}, scene {:.2f}, patches {:.3f}".format(*(mean / 100))
            progress(f"{recipe.name} step {step}: {told}")
            mean[:] = 0


@contextmanager
def watched(model: ReferenceModel) -> Iterator[list[Tensor]]:
    """Collect the outputs of the second-to-last block, vision first: (B, T, D) each."""
    hidden: list[Tensor] = []
    layer: Any = model.beit3.encoder.layers[-2]
    hook = layer.register_forward_hook(lambda _layer, _inputs, output: hidden.append(output[0]))
    yield hidden
    hook.remove()


def _warmup_cosine(recipe: Recipe, step: int) -> float:
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done))) + 0.01


def with_adapters(model: ReferenceModel) -> tuple[ReferenceModel, list[list[nn.Parameter]]]:
    """Add adapters and enhancers that initially add nothing. Returns the model and what to train.

    The enhancers are the second portion and train more slowly, or they would do all the work.
    """
    adapted = ReferenceModel(replace(model.config, adapter=ADAPTER, enhancer=True))
    unfit = adapted.load_state_dict(model.state_dict(), strict=False)
    assert not unfit.unexpected_keys
    adapters, enhancers = [adapted.logit_scale], []
    for name, parameter in adapted.named_parameters():
        if ".adaptmlp_" in name:
            adapters.append(parameter)
        elif ".enhancemlp." in name:
            enhancers.append(parameter)
            if ".fc2." in name:
                nn.init.zeros_(parameter)
    return adapted, [adapters, enhancers]


# --- evaluation ------------------------------------------------------------------------------


@torch.inference_mode()
def evaluate(model: ReferenceModel, tokenizer: Tokenizer, pictures: Pictures) -> Recall:
    """Compute recall in float32, images against all captions."""
    model.eval()
    images = [
        model.encode_image(torch.from_numpy(normalize(part)))
        for part in np.array_split(pictures.pixels, math.ceil(len(pictures.pixels) / 100))
    ]
    texts, owners = [], []
    for owner, captions in enumerate(pictures.captions):
        texts += captions
        owners += [owner] * len(captions)
    embedded = []
    for start in range(0, len(texts), 100):
        token_ids, padding_mask = map(torch.from_numpy, tokenizer.batch(texts[start : start + 100]))
        embedded.append(model.encode_text(token_ids, padding_mask))
    return recall(torch.cat(images).numpy(), torch.cat(embedded).numpy(), np.array(owners))


@contextmanager
def silenced(model: ReferenceModel, names: tuple[str, ...]) -> Iterator[None]:
    """Temporarily set the parameters whose names contain one of ``names`` to zero."""
    chosen = [p for name, p in model.named_parameters() if any(part in name for part in names)]
    assert chosen
    kept = [parameter.detach().clone() for parameter in chosen]
    with torch.no_grad():
        for parameter in chosen:
            parameter.zero_()
        yield
        for parameter, value in zip(chosen, kept, strict=True):
            parameter.copy_(value)


def as_row(result: Recall) -> dict[str, float]:
    tr = {f"TR@{k}": round(value, 2) for k, value in result.tr.items()}
    return tr | {f"IR@{k}": round(value, 2) for k, value in result.ir.items()}


def reference_options(vocab_size: int) -> argparse.Namespace:
    """Return the options as the authors' training script stores them, with its names and types."""
    return argparse.Namespace(
        model=f"beit3_demo_patch{PATCH_SIZE}_{IMAGE_SIZE}",
        task="coco_retrieval",
        input_size=IMAGE_SIZE,
        drop_path=0.0,
        vocab_size=vocab_size,
        num_max_bpe_tokens=TEXT_POSITIONS,
        sentencepiece_model="demo.spm",
        ffn_adapt=True,
        ffn_num=ADAPTER.bottleneck,
        ffn_option=ADAPTER.option,
        ffn_mode=ADAPTER.mode,
        ffn_enhance=True,
        ffn_adapter_layernorm_option=ADAPTER.layernorm,
        ffn_adapter_init_option="lora",
        ffn_adapter_scalar=str(ADAPTER.scale),
        d_model=EMBED_DIM,
        loss="both",
    )


def say(started: float, message: str) -> None:
    print(f"{time.perf_counter() - started:6.0f} s  {message}", flush=True)


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("mwa_export/assets"))
    parser.add_argument("--base-pictures", type=int, default=12000)
    parser.add_argument("--target-pictures", type=int, default=10000)
    parser.add_argument(
        "--target-glimpse", type=int, default=2000, help="target images in the base training"
    )
    parser.add_argument("--base-steps", type=int, default=1500)
    parser.add_argument("--target-steps", type=int, default=2200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--base-learning-rate", type=float, default=1e-3)
    parser.add_argument("--target-learning-rate", type=float, default=4e-3)
    parser.add_argument(
        "--base-model",
        type=Path,
        help="read the base model from this file, or save it there if absent",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train in bfloat16 where that is safe; turn it off on CPUs without bfloat16",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
