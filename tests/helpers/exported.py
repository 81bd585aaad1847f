"""Export towers as tests need them, and measure their error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from cases import Case

from mwa_export.model.load import Model
from mwa_export.runtimes.ort_session import session
from mwa_export.spec import ImageInput, Tower
from mwa_export.towers.export import onnx_from_tower
from mwa_export.towers.extract import tower_from_model
from mwa_export.towers.merge import merge_tower
from mwa_export.towers.steps import STEPS


def write_graph(
    model: Model,
    tower: Tower,
    path: Path,
    *,
    steps: Any = tuple(STEPS),
    image_input: ImageInput = "float32",
    **options: Any,
) -> Path:
    plan, tensors = tower_from_model(model.config, model.tensors, tower, image_input=image_input)
    return onnx_from_tower(*merge_tower(plan, tensors, steps), path, **options)[0]


def difference(case: Case, folder: Path, **options: Any) -> float:
    """Largest difference of any component, over both towers, from what is right."""
    vision = session(write_graph(case.model, "vision", folder / "v.onnx", **options))
    text = session(write_graph(case.model, "text", folder / "t.onnx", **options))
    feed = {"token_ids": case.token_ids, "padding_mask": case.padding_mask}
    found = vision.run(None, {"image": case.image})[0], text.run(None, feed)[0]
    return max(
        float(np.abs(f - e).max()) for f, e in zip(found, (case.vision, case.text), strict=True)
    )
