"""Stage "report" of benchmarks/gpu.py: all measurements as JSON and as a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mwa_export.errors import UsageError
from mwa_export.metrics.recall import Recall, recall

PLAIN = "plain-float16"
PEAK_OF = {
    "float16": "bfloat16",
    PLAIN: "bfloat16",
    "bfloat16": "bfloat16",
    "int8": "int8",
    "float8": "float8",
}
COMPILE = "torch.compile float16"


@dataclass(frozen=True)
class Target:
    """A target and its measurement."""

    what: str
    target: str
    found: str
    reached: bool | None  # None: not measured


def collect(work: Path, models: list[str]) -> dict[str, Any]:
    """Collect the results of all stages and models, and add cosines and recall."""
    result: dict[str, Any] = {}
    for name in models:
        folder = work / name
        if not (folder / "meta.json").exists():
            continue
        entry: dict[str, Any] = {"meta": _read(folder / "meta.json")}
        for stage in ("trt", "torch", "ort"):
            if (folder / f"{stage}.json").exists():
                entry[stage] = _read(folder / f"{stage}.json")
        entry["parity"] = _parity(folder)
        result[name] = entry
    return result


def merged(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the results of several calls; later measurements replace earlier ones.

    Raises:
        UsageError: the results are from different GPUs or different graphs.
    """
    whole: dict[str, Any] = {}
    for result in results:
        for name, entry in result.items():
            before = whole.setdefault(name, {"meta": entry["meta"]})
            if before["meta"] != entry["meta"]:
                raise UsageError(f"{name}: the results are of different graphs")
            whole[name] = _joined(before, entry)
    if len(found := {gpu for result in results for gpu in gpus(result)}) > 1:
        raise UsageError(f"the results are of different GPUs: {', '.join(sorted(found))}")
    return whole


def gpus(result: dict[str, Any]) -> set[str]:
    """Return the names of the measured GPUs."""
    stages = [entry[s] for entry in result.values() for s in ("trt", "torch") if s in entry]
    return {str(stage["gpu"]) for stage in stages}


def _joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = [key for key in old if isinstance(new.get(key), dict) and key != "left_out"]
    return {**old, **new, **{key: _joined(old[key], new[key]) for key in both}}


def targets(result: dict[str, Any]) -> list[Target]:
    """Compare the targets with the measurements."""
    base = result.get("base", {})
    return [
        _share_of_peak(base),
        _ratio(base, ("torch", COMPILE), 1.3, "FP16 / torch.compile float16, base, batch 128"),
        _ratio(base, ("trt", PLAIN), 1.0, "FP16 / the plain export's FP16, base, batch 128"),
        _small(base, "int8"),
        _small(base, "float8"),
        *(_recall_target(result.get("demo", {}), p) for p in ("float16", "int8")),
    ]


def table(result: dict[str, Any]) -> str:
    """Format the targets, then every timing, cosine and recall, as Markdown."""
    lines = ["| | target | found | reached |", "| --- | --- | --- | --- |"]
    for t in targets(result):
        verdict = {True: "yes", False: "no", None: "not measured"}[t.reached]
        lines.append(f"| {t.what} | {t.target} | {t.found} | {verdict} |")
    for name, entry in result.items():
        lines += ["", f"### {name}", "", *_timings(entry), "", *_parities(entry)]
        for stage in ("trt", "torch", "ort"):
            left_out = entry.get(stage, {}).get("left_out", {})
            lines += [f"\nLeft out: {what}: {why}" for what, why in left_out.items()]
    return "\n".join(lines) + "\n"


def _timings(entry: dict[str, Any]) -> list[str]:
    head = ["tower", "rows x tokens", "what", "ms", "rows/s", "share of the GEMM peak"]
    lines = [f"| {' | '.join(head)} |", "| --- | --- | --- | ---: | ---: | ---: |"]
    peak = entry.get("torch", {}).get("peak", {})
    for stage, label in (("trt", "TensorRT "), ("torch", ""), ("ort", "")):
        for tower, forms in entry.get(stage, {}).get("towers", {}).items():
            for form, found in forms.items():
                for shape, timing in found["shapes"].items():
                    macs = entry["meta"]["macs"][tower][shape]
                    ms = statistics.median(timing["milliseconds"])
                    share = _share(macs, ms, form if stage == "trt" else "float16", peak)
                    shown = "" if share is None or "32" in form else f"{share:.0%}"
                    cells = [tower, shape, f"{label}{form}", f"{ms:.3f}"]
                    cells += [f"{timing['rows_per_second']:,.0f}", shown]
                    lines.append(f"| {' | '.join(cells)} |")
    return lines


def _parities(entry: dict[str, Any]) -> list[str]:
    lines = ["| TensorRT | mean cosine, pictures | mean cosine, texts | recall |"]
    lines.append("| --- | ---: | ---: | --- |")
    for precision, found in entry["parity"].items():
        recalls = ", ".join(f"{k} {v:+.2f}" for k, v in found.get("recall_change", {}).items())
        cosines = [found["cosine"].get(tower) for tower in ("vision", "text")]
        shown = " | ".join("" if cosine is None else f"{cosine:.5f}" for cosine in cosines)
        lines.append(f"| {precision} | {shown} | {recalls} |")
    return lines


def _share(macs: int, ms: float, precision: str, peak: dict[str, Any]) -> float | None:
    """Return the share of the best measured GEMM rate of that type; None if unknown."""
    best = peak.get(PEAK_OF.get(precision, ""))
    return None if best is None else 2 * macs / (ms / 1000) / best["operations_per_second"]


def _median(entry: dict[str, Any], stage: str, form: str, shape: str) -> float | None:
    found = entry.get(stage, {}).get("towers", {}).get("vision", {}).get(form, {})
    timing = found.get("shapes", {}).get(shape)
    return None if timing is None else statistics.median(timing["milliseconds"])


def _share_of_peak(base: dict[str, Any]) -> Target:
    what, target = "FP16 base at batch 128, of the bf16 GEMM rate", ">= 55 %"
    ms = _median(base, "trt", "float16", "128")
    peak = base.get("torch", {}).get("peak", {})
    if ms is None or "bfloat16" not in peak:
        return Target(what, target, "", None)
    share = _share(base["meta"]["macs"]["vision"]["128"], ms, "float16", peak)
    assert share is not None
    return Target(what, target, f"{share:.0%}, {128000 / ms:,.0f} pictures/s", share >= 0.55)


def _ratio(base: dict[str, Any], peer: tuple[str, str], least: float, what: str) -> Target:
    one, other = _median(base, "trt", "float16", "128"), _median(base, *peer, "128")
    if one is None or other is None:
        return Target(what, f">= {least} x", "", None)
    return Target(what, f">= {least} x", f"{other / one:.2f} x", other / one >= least)


def _small(base: dict[str, Any], precision: str) -> Target:
    """Judge the speed of an 8-bit precision over float16 by the worst batch size of 32 or more."""
    label = {"int8": "INT8", "float8": "FP8"}[precision]
    what, target = f"{label} / FP16, base, batch >= 32", ">= 1.4 x"
    ratios = []
    for shape in ("32", "128"):
        half, small = (_median(base, "trt", p, shape) for p in ("float16", precision))
        if half is None or small is None:
            return Target(what, target, "", None)
        ratios.append(half / small)
    found = ", ".join(f"{ratio:.2f} x" for ratio in ratios)
    return Target(what, target, found, min(ratios) >= 1.4)


def _recall_target(demo: dict[str, Any], precision: str) -> Target:
    what, target = f"drop of R@1, demo, {precision}", "<= 0.2 points"
    change = demo.get("parity", {}).get(precision, {}).get("recall_change")
    if not change:
        return Target(what, target, "", None)
    drops = {name: -change[name] for name in ("TR@1", "IR@1")}
    found = ", ".join(f"{name} {drop:+.2f}" for name, drop in drops.items())
    return Target(what, target, found, max(drops.values()) <= 0.2)


def _parity(folder: Path) -> dict[str, Any]:
    """Return precision -> cosines with the reference and, for the demo, recall change in points.

    If one tower of a precision failed, only the other's cosine is given.
    """
    with np.load(folder / "reference.npz") as arrays:
        reference = dict(arrays)
    with np.load(folder / "inputs.npz") as arrays:
        ids = {n: arrays[n] for n in ("image_ids", "caption_image_ids") if n in arrays}
    result: dict[str, Any] = {}
    for path in sorted(folder.glob("embeddings.*.npz")):
        precision = path.name.split(".")[1]
        with np.load(path) as arrays:
            found = dict(arrays)
        entry: dict[str, Any] = {"cosine": {}}
        for tower, vectors in found.items():
            wanted = reference.get(f"{tower}.{precision}", reference[tower])
            cosines = (vectors.astype(np.float64) * wanted).sum(axis=1)
            entry["cosine"][tower] = float(cosines.mean())
        if ids and set(found) == {"vision", "text"}:
            before, after = (
                recall(v["vision"], v["text"], ids["caption_image_ids"], image_ids=ids["image_ids"])
                for v in (reference, found)
            )
            entry["recall_change"] = _change(before, after)
        result[precision] = entry
    return result


def _change(before: Recall, after: Recall) -> dict[str, float]:
    pairs = {f"TR@{k}": (before.tr[k], after.tr[k]) for k in before.tr}
    pairs |= {f"IR@{k}": (before.ir[k], after.ir[k]) for k in before.ir}
    return {name: float(new - old) for name, (old, new) in pairs.items()}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
