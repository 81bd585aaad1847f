"""Write the golden cases in this folder: small checkpoints and the authors' embeddings of them.

Tests do not run it. README.md describes its inputs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mwa_export.model.reference import training_only_packages

HERE = Path(__file__).parent
TENSORS = dict[str, Tensor]
ADAPTERS = ("adaptmlp_text", "adaptmlp_vision", "enhancemlp")
IMAGE, PATCH, FFN, BOTTLENECK, VOCAB, TEXT_ROWS = 16, 4, 32, 8, 64, 26
IMAGES, TEXTS = 2, 4
SAME = 2e-6  # what the large cases must be reproduced to before anything is written
TOLD = (
    "name",
    "layout",
    "ffn_mode",
    "ffn_option",
    "ffn_adapter_scalar",
    "ffn_adapter_layernorm_option",
    "ffn_enhance",
)  # of the large case's facts


@dataclass(frozen=True)
class Plan:
    """A small case cut out of a large one."""

    name: str
    source: str
    width: int = 128
    base: str | None = None  # the case whose checkpoint the adapter belongs to
    changes: Mapping[str, str] = field(default_factory=dict)  # options other than the source's


BASE = "beit3_plain"
PLANS = (
    Plan(BASE, BASE),
    Plan("mwa_both_enhance", "mwa_both_enhance", width=64),
    *(
        Plan(name, name, base=BASE)
        for name in (
            "mwa_both_ln_in_learnable",
            "mwa_ln_out",
            "mwa_raw_state_dict",
            "mwa_text_mode",
        )
    ),
    Plan("mwa_vision_mode", "mwa_both_enhance", base=BASE, changes={"ffn_mode": "vision"}),
    Plan("mwa_sequential", "mwa_ln_out", base=BASE, changes={"ffn_option": "sequential"}),
)


class Authors:
    """The authors' model, imported from a checkout of their repository."""

    def __init__(self, checkout: Path) -> None:
        sys.path.insert(0, str(checkout))
        with training_only_packages():
            self._beit3 = importlib.import_module("adapter_multiway").BEiT3
            self._config = importlib.import_module("config").EncoderConfig

    def embed(
        self, tensors: TENSORS, facts: Mapping[str, Any], inputs: Mapping[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Embeddings of images and texts in float32, as BEiT3ForRetrieval computes them."""
        model = self._beit3(self._config(**encoder_options(tensors, facts)))
        prefix = "beit3."
        weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        model.eval()
        image, ids, mask = (
            torch.from_numpy(inputs[name]) for name in ("image", "token_ids", "padding_mask")
        )
        with torch.inference_mode():
            seen = model(visual_tokens=image)["encoder_out"][:, 0]
            read = model(textual_tokens=ids, text_padding_position=mask)["encoder_out"][:, 0]
            vision = nn.functional.linear(seen, tensors["vision_head.weight"].float())
            text = nn.functional.linear(read, tensors["language_head.weight"].float())
            unit = nn.functional.normalize
            return unit(vision, dim=-1).numpy(), unit(text, dim=-1).numpy()


def encoder_options(tensors: TENSORS, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' encoder options: sizes from the tensors, the rest from `case.json`."""
    layers = {name.split(".")[3] for name in tensors if name.startswith("beit3.encoder.layers.")}
    vocabulary, width = tensors["beit3.text_embed.weight"].shape
    down = next((t for n, t in tensors.items() if n.endswith("down_proj.weight")), None)
    return {
        **{name: value for name, value in facts.items() if name.startswith("ffn_")},
        "multiway": True,
        "no_output_layer": True,
        "img_size": facts["img_size"],
        "patch_size": tensors["beit3.vision_embed.proj.weight"].shape[-1],
        "vocab_size": vocabulary,
        "encoder_embed_dim": width,
        "encoder_attention_heads": width // 64,
        "encoder_ffn_embed_dim": len(tensors["beit3.encoder.layers.0.ffn.A.fc1.bias"]),
        "encoder_layers": len(layers),
        "max_source_positions": len(tensors["beit3.encoder.embed_positions.B.weight"]),
        "d_model": width,
        "ffn_num": None if down is None else len(down),
        "ffn_adapter_init_option": "lora",
    }


def cut(tensors: TENSORS, width: int) -> TENSORS:
    """The first channels, patch pixels, words and positions of every tensor, in float16.

    A matrix that loses inputs is scaled up, so that what it adds keeps its size.
    """
    whole = tensors["beit3.text_embed.weight"].shape[1]
    sizes = {
        whole: width,
        len(tensors["beit3.encoder.layers.0.ffn.A.fc1.bias"]): FFN,
        **{len(t): BOTTLENECK for n, t in tensors.items() if n.endswith("down_proj.bias")},
    }
    rows = {
        "embed_positions.A.weight": (IMAGE // PATCH) ** 2 + 3,
        "embed_positions.B.weight": TEXT_ROWS,
        "text_embed.weight": VOCAB,
    }

    def cut_one(name: str, tensor: Tensor) -> Tensor:
        kept = next((count for end, count in rows.items() if name.endswith(end)), None)
        if kept is not None:
            return tensor[:kept, :width]
        if name.endswith("vision_embed.proj.weight"):
            small = tensor[:width, :, :PATCH, :PATCH]
        else:
            small = tensor[tuple(slice(sizes.get(size, size)) for size in tensor.shape)]
        if tensor.dim() in (2, 4):  # (outputs, inputs...)
            small = small * math.sqrt(tensor[0].numel() / small[0].numel())
        return small

    return {name: cut_one(name, tensor).half().clone() for name, tensor in tensors.items()}


def read(folder: Path) -> tuple[TENSORS, argparse.Namespace | None, dict[str, Any]]:
    """Tensors, training options and facts of a case."""
    found = torch.load(folder / "checkpoint.pth", weights_only=False)
    facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    if facts["layout"] == "raw":
        return found, None, facts
    return found["model"], found.get("args"), facts


def is_added(name: str) -> bool:
    """Whether a tensor belongs to an adapter or an enhancer."""
    return any(f".{part}." in name for part in ADAPTERS)


def reproduce(golden: Path, authors: Authors) -> None:
    """Stop unless the authors' code gives here what it gave when the large cases were made."""
    for plan in PLANS:
        tensors, _args, facts = read(golden / plan.source)
        inputs = np.load(golden / plan.source / "io.npz")
        found = authors.embed(tensors, facts, inputs)
        for side, embeddings in zip(("vision", "text"), found, strict=True):
            distance = float(np.abs(embeddings - inputs[side]).max())
            if not distance <= SAME:
                raise SystemExit(f"{plan.source}: {side} differs by {distance:.1e}")


def small_inputs(golden: Path) -> dict[str, NDArray[Any]]:
    """Pictures and texts of the large plain case, cut to the small size."""
    whole = np.load(golden / BASE / "io.npz")
    ids = whole["token_ids"][:TEXTS]
    special = 4  # BOS, PAD, EOS and UNK come first
    ids = np.where(ids < special, ids, special + (ids - special) % (VOCAB - special))
    return {
        "image": np.ascontiguousarray(whole["image"][:IMAGES, :, :IMAGE, :IMAGE]),
        "token_ids": ids,
        "padding_mask": whole["padding_mask"][:TEXTS],
    }


def write_models(golden: Path, authors: Authors) -> None:
    """Every small checkpoint or adapter, with its inputs and the authors' embeddings."""
    inputs = small_inputs(golden)
    base = cut(read(golden / BASE)[0], 128)
    for plan in PLANS:
        whole, args, facts = read(golden / plan.source)
        facts |= {"name": plan.name, "img_size": IMAGE, **plan.changes}
        tensors = cut(whole, plan.width)
        if facts["ffn_mode"] == "vision":
            tensors = {name: t for name, t in tensors.items() if ".adaptmlp_text." not in name}
        added = {name: t for name, t in tensors.items() if is_added(name)}
        if plan.base is not None:
            tensors = base | added
        vision, text = authors.embed(tensors, facts, inputs)
        folder = HERE / plan.name
        folder.mkdir(exist_ok=True)
        arrays: dict[str, Any] = {**inputs, "vision": vision, "text": text}
        np.savez_compressed(folder / "io.npz", **arrays)
        name, kept = ("checkpoint.pth", tensors) if plan.base is None else ("adapter.pth", added)
        torch.save(laid_out(kept, args, facts), folder / name)
        bare = {name: t for name, t in tensors.items() if not is_added(name)}
        plain = authors.embed(bare, facts | {"ffn_adapt": False, "ffn_enhance": False}, inputs)
        told = {name: facts[name] for name in TOLD if name in facts}
        told["base"] = plan.base
        told["cosine_without_adapters"] = {
            side: round(float((with_ * without).sum(axis=-1).mean()), 4)
            for side, with_, without in zip(("vision", "text"), (vision, text), plain, strict=True)
        }
        write_json(folder / "case.json", told)


def laid_out(
    tensors: TENSORS, args: argparse.Namespace | None, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What the authors' training script, or whoever keeps tensors only, passes to `torch.save`."""
    if facts["layout"] == "raw":
        return tensors
    if args is None:
        return {"model": tensors}
    width = tensors[next(name for name in tensors if name.endswith("up_proj.bias"))].shape[0]
    sizes = {"input_size": IMAGE, "vocab_size": VOCAB, "ffn_num": BOTTLENECK, "d_model": width}
    options = {name: facts[name] for name in ("ffn_mode", "ffn_option")}
    args = argparse.Namespace(**{**vars(args), **sizes, **options})
    return {"model": tensors, "epoch": 1, "args": args}


def write_recall(golden: Path) -> None:
    """Embeddings in float16, with what the authors' evaluation prints for them in float32.

    Stops unless as many matches are found in float16.
    """
    folder = HERE / "recall"
    folder.mkdir(exist_ok=True)
    for path in sorted((golden / "recall").glob("*.npz")):
        arrays = dict(np.load(path))
        owners = arrays["text_image_ids"]
        images, texts = arrays["image_embeddings"], arrays["text_embeddings"]
        small = images.astype(np.float16), texts.astype(np.float16)
        if hits(images, texts, owners) != hits(*small, owners):
            raise SystemExit(f"{path.name}: float16 changes the recall")
        np.savez_compressed(
            folder / path.name,
            image_embeddings=small[0],
            text_embeddings=small[1],
            text_image_ids=owners.astype(np.int16),
        )
        printed = path.with_suffix(".json").read_text(encoding="utf-8")
        (folder / path.name).with_suffix(".json").write_text(printed, encoding="utf-8")


def hits(images: NDArray[Any], texts: NDArray[Any], owners: NDArray[Any]) -> list[int]:
    """How many images and texts find a match among the first 1, 5 and 10."""
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    by_image, by_text = np.argsort(-scores, axis=1), np.argsort(-scores, axis=0)
    rows, columns = np.arange(len(images)), np.arange(len(texts))
    return [
        count
        for k in (1, 5, 10)
        for count in (
            int((owners[by_image[:, :k]] == rows[:, None]).any(axis=1).sum()),
            int((by_text[:k] == owners[columns]).any(axis=0).sum()),
        )
    ]


def write_tokens(golden: Path, real: Path) -> None:
    """Texts with the ids that the authors' tokenizer gives with the demo's tokenizer model."""
    lines = (golden / "tokenizer.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    for case in cases:
        if token_ids(real, case["text"]) != case["token_ids"]:
            raise SystemExit(f"other ids than those of {golden.name}: {case['text']!r}")
    demo = HERE.parents[1] / "mwa_export" / "assets" / "demo.spm"
    found = [{"text": c["text"], "token_ids": token_ids(demo, c["text"])} for c in cases]
    text = "".join(json.dumps(case) + "\n" for case in found)
    (HERE / "tokenizer.jsonl").write_text(text, encoding="utf-8")


def token_ids(model: Path, text: str, limit: int = 64) -> list[int]:
    """Ids as the authors' `datasets.py` makes them."""
    tokenizer = load_tokenizer(model)
    pieces = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))[: limit - 2]
    return [tokenizer.bos_token_id, *pieces, tokenizer.eos_token_id]


@cache
def load_tokenizer(model: Path) -> Any:
    """The tokenizer class that the authors use, with a SentencePiece model."""
    return importlib.import_module("transformers").XLMRobertaTokenizer(str(model))


def write_json(path: Path, value: Any) -> None:
    """Indented, with a line end."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("golden", type=Path, help="the folder of large cases")
    parser.add_argument("authors", type=Path, help="a checkout of MultiWay-Adapter")
    parser.add_argument("tokenizer", type=Path, help="the authors' tokenizer model, beit3.spm")
    found = parser.parse_args()
    authors = Authors(found.authors)
    reproduce(found.golden, authors)
    write_models(found.golden, authors)
    write_recall(found.golden)
    write_tokens(found.golden, found.tokenizer)


if __name__ == "__main__":
    main()
