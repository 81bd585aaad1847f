"""Stage "torch" of benchmarks/gpu.py: the unmerged reference in several forms, and GEMMs."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from machine import WHOLE, Call, NoTimeLeftError
from torch import Tensor

import mwa_export
from mwa_export.bundle.manifest import read_manifest
from mwa_export.model.load import ModelSource, load_model
from mwa_export.model.reference import ReferenceModel, reference_from_tensors
from mwa_export.model.synthetic import random_tensors
from mwa_export.progress import Progress
from mwa_export.spec import ModelConfig

FORMS = ("eager float32", "eager float16", "SDPA float16", "torch.compile float16")
SQUARES = (4096, 8192)
WARM_UP, RUNS = 3, 10


def measure(
    work: Path,
    name: str,
    *,
    rounds: int,
    progress: Progress,
    call: Call = WHOLE,
    device: str = "cuda",
    forms: Sequence[str] = FORMS,
) -> dict[str, Any]:
    """Time the reference at the prepared shapes, each form in every round. Writes torch.json.

    The file is written after each shape, the largest first. Shapes in it are not timed again.

    Args:
        work: the folder that `prepare` wrote.
        name: name of the model.
        rounds: number of rounds; each form runs once per round.
        progress: reports each step.
        call: time limit. Shapes that do not fit are left out; another call continues.
        device: "cuda", or "cpu" for tests.
        forms: some of FORMS.
    """
    folder = work / name
    path = folder / "torch.json"
    meta = json.loads((folder / "meta.json").read_text())
    backbone = read_manifest(folder / "bundle").model.backbone
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result |= {"torch": torch.__version__, "gpu": _name(device), "left_out": {}}
    towers = result.setdefault("towers", {})

    def save() -> None:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        call.saved()

    if "peak" not in result:
        progress(f"{name}: GEMMs")
        result["peak"] = gemm_peak(device, rounds=rounds)
        save()
    model, slowest = _model(folder, name), 0.0
    for tower, shapes in meta["macs"].items():
        found = towers.setdefault(tower, {form: {"shapes": {}} for form in forms})
        runs = _runs(model, tower, forms, device)
        for shape in reversed(shapes):
            if all(shape in found[form]["shapes"] for form in forms):
                continue
            try:
                call.demand(slowest)
            except NoTimeLeftError as error:
                result["left_out"][f"{tower} {shape}"] = str(error)
                continue
            progress(f"{name}, {tower} tower, {shape}: {', '.join(forms)}")
            start = time.perf_counter()
            rows, _, length = shape.partition("x")
            batches = [
                _inputs(backbone, tower, int(rows), int(length or 0), seed, device)
                for seed in range(2)
            ]
            timed = _interleaved(runs, batches, rounds, device)
            for form, milliseconds in timed.items():
                found[form]["shapes"][shape] = {
                    "milliseconds": milliseconds,
                    "rows_per_second": 1000 * int(rows) / statistics.median(milliseconds),
                }
            slowest = max(slowest, time.perf_counter() - start)
            save()
    save()
    return result


def _model(folder: Path, name: str) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """Load the unmerged demo model, or draw random weights, which avoids transferring them."""
    if name != "demo":
        config = read_manifest(folder / "bundle").model
        return config, random_tensors(config)
    # Not through mwa_export.demo, which imports the dependencies of all other commands.
    model = load_model(ModelSource(Path(mwa_export.__file__).parent / "assets" / "demo.pth"))
    return model.config, model.tensors


def _runs(
    model: tuple[ModelConfig, Mapping[str, Tensor]],
    tower: str,
    forms: Sequence[str],
    device: str,
) -> dict[str, Callable[..., Tensor]]:
    """Return each form of a tower as a function of tensors."""
    runs: dict[str, Callable[..., Tensor]] = {}
    for form in forms:
        dtype = torch.float32 if "32" in form else torch.float16
        own = reference_from_tensors(*model, dtype=dtype).to(device)
        if not form.startswith("eager"):
            use_sdpa(own)
        encode = own.encode_image if tower == "vision" else own.encode_text
        runs[form] = torch.compile(encode, dynamic=False) if "compile" in form else encode
    return runs


def gemm_peak(
    device: str, *, rounds: int, squares: Sequence[int] = SQUARES
) -> dict[str, dict[str, Any]]:
    """Measure the best GEMM rate of each type over all shapes, the basis for shares of the peak.

    Returns precision -> {"operations_per_second", "shape"}; types that PyTorch cannot multiply on
    this device are left out.
    """
    best: dict[str, dict[str, Any]] = {}
    for size in squares:
        for shape in ((size, size, size), (128 * 197, 768, 3072), (128 * 197, 1024, 4096)):
            for precision, run in _gemms(shape, device).items():
                try:
                    times = [_timed(run, RUNS, device) for _ in range(WARM_UP + rounds)][WARM_UP:]
                except RuntimeError:  # no such kernel on this device
                    continue
                rate = 2 * shape[0] * shape[1] * shape[2] / (statistics.median(times) / 1000)
                if (
                    rate
                    > best.get(precision, {"operations_per_second": 0})["operations_per_second"]
                ):
                    best[precision] = {"operations_per_second": rate, "shape": list(shape)}
    return best


def use_sdpa(reference: ReferenceModel) -> None:
    """Replace the attention of torchscale with PyTorch's fused attention."""
    for module in reference.modules():
        if type(module).__name__ == "MultiheadAttention":
            module.forward = MethodType(_sdpa, module)


def _sdpa(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    incremental_state: None = None,
    key_padding_mask: Tensor | None = None,
    attn_mask: None = None,
    rel_pos: None = None,
    is_first_step: bool = False,
) -> tuple[Tensor, None]:
    assert incremental_state is None
    assert attn_mask is None
    assert rel_pos is None
    rows, tokens, width = query.shape
    heads = (rows, tokens, self.num_heads, self.head_dim)
    q, k, v = (
        project(x).view(heads).transpose(1, 2)
        for project, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
    )
    seen = None if key_padding_mask is None else ~key_padding_mask[:, None, None, :].bool()
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    mixed = mixed.transpose(1, 2).reshape(rows, tokens, width)
    if self.inner_attn_ln is not None:
        mixed = self.inner_attn_ln(mixed)
    return self.out_proj(mixed), None


def _inputs(
    backbone: Any, tower: str, rows: int, length: int, seed: int, device: str
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    if tower == "vision":
        size = backbone.image_size
        return (torch.rand((rows, 3, size, size), generator=generator).mul(2).sub(1).to(device),)
    ids = torch.randint(4, backbone.vocab_size, (rows, length), generator=generator)
    return ids.to(device), torch.zeros_like(ids).to(device)


def _interleaved(
    runs: dict[str, Callable[..., Tensor]],
    batches: Sequence[tuple[Tensor, ...]],
    rounds: int,
    device: str,
) -> dict[str, list[float]]:
    """Time each form in every round, in milliseconds per run, alternating between batches."""
    found: dict[str, list[float]] = {form: [] for form in runs}
    halves = [tuple(t.half() if t.is_floating_point() else t for t in batch) for batch in batches]
    with torch.inference_mode():
        for turn in range(WARM_UP + rounds):
            for form, encode in runs.items():
                fed = itertools.cycle(batches if "32" in form else halves)
                milliseconds = _timed(partial(_next, encode, fed), RUNS, device)
                if turn >= WARM_UP:
                    found[form].append(milliseconds)
    return found


def _next(encode: Callable[..., Tensor], fed: Iterator[tuple[Tensor, ...]]) -> Tensor:
    return encode(*next(fed))


def _timed(run: Callable[[], Any], runs: int, device: str) -> float:
    """Time consecutive runs: mean milliseconds, with CUDA events, or the clock on a CPU."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(runs):
            run()
        return 1000 * (time.perf_counter() - start) / runs
    event: Any = torch.cuda.Event  # has no types
    first, last = (event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(runs):
        run()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / runs


def _gemms(shape: tuple[int, int, int], device: str) -> dict[str, Callable[[], Tensor]]:
    rows, inner, columns = shape
    made: dict[str, Callable[[], Tensor]] = {}
    for precision, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        x = torch.randn(rows, inner, device=device).to(dtype)
        w = torch.randn(inner, columns, device=device).to(dtype)
        made[precision] = partial(torch.mm, x, w)
    a = torch.randint(-127, 128, (rows, inner), dtype=torch.int8, device=device)
    b = torch.randint(-127, 128, (columns, inner), dtype=torch.int8, device=device).t()
    made["int8"] = lambda: torch._int_mm(a, b)
    if device != "cpu" and torch.cuda.get_device_capability() >= (8, 9):
        x8, w8 = (t.clamp(-8, 8).to(torch.float8_e4m3fn) for t in (x, w.t().contiguous()))
        one = torch.ones((), device=device)
        made["float8"] = lambda: torch._scaled_mm(
            x8, w8.t(), scale_a=one, scale_b=one, out_dtype=torch.float16
        )
    return made


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"
