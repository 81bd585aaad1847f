"""The command line reads files that upstream's own code wrote or reads.

They are in the shared folder of the authors' cases, not in the checkout: see tests/README.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused, run
from paths import SHARED

from mwa_export import load
from mwa_export.bundle.bundle import Bundle
from mwa_export.demo.run import assets
from mwa_export.encoder.open import ON_ONNX_RUNTIME
from mwa_export.runtimes.ort_session import session

pytestmark = pytest.mark.slow

UPSTREAM = SHARED / "golden" / "upstream"
TOLERANCE = 2e-5
CASES = sorted(path.parent.name for path in UPSTREAM.glob("*/case.json"))
_ABSENT = pytest.param("", marks=pytest.mark.skip(reason=f"{UPSTREAM} is not here"))


def _arguments(case: Path, told: dict[str, Any], *options: str) -> list[object]:
    words = [*told.get("source", ["checkpoint.pth"]), *options]
    return [
        case / word if (case / word).exists() else assets()[1] if word == "DEMO_SPM" else word
        for word in words
    ]


@pytest.mark.parametrize(
    "name", CASES or [_ABSENT], ids=[f"shared-{name}" for name in CASES] or None
)
def test_file_gives_what_upstream_computes_with_it(name: str, tmp_path: Path) -> None:
    case = UPSTREAM / name
    told = {"onnx_extra": [], **json.loads((case / "case.json").read_text())}
    if told["expect"] == "refusal":
        refused("onnx", *_arguments(case, told, *told["onnx_extra"]), "-o", tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()
        return
    outcome = run("onnx", *_arguments(case, told, *told["onnx_extra"]), "-o", tmp_path / "bundle")
    assert outcome.status == 0, outcome.stderr
    options = [] if "--tokenizer" in told["onnx_extra"] else told["onnx_extra"]
    assert run("inspect", *_arguments(case, told, *options)).status == 0
    expected = np.load(case / "io.npz")
    bundle = Bundle.open(tmp_path / "bundle")
    if (case / "text.txt").is_file():
        lines = (case / "text.txt").read_text(encoding="utf-8").splitlines()
        found = load(bundle, ON_ONNX_RUNTIME).embed_texts(lines)
        assert np.abs(found - expected["text"]).max() <= TOLERANCE
        return
    feeds = {
        "vision": {"image": expected["image"]},
        "text": {n: expected[n] for n in ("token_ids", "padding_mask") if n in expected},
    }
    for tower in bundle.manifest.towers:
        (found,) = session(bundle.graph(tower)[0]).run(None, feeds[tower])
        assert np.abs(found - expected[tower]).max() <= TOLERANCE
