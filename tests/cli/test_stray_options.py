"""Options that would have no effect are refused, not ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import run

from mwa_export import QuantizeOptions, UsageError, quantize
from mwa_export.calib.calibrate import CalibrationOptions


@pytest.mark.parametrize(
    ("arguments", "stray"),
    [
        ("search none abc --pictures .", "--pictures"),
        ("bench none --model-key model", "--model-key"),
        ("trt none --bf16 --held-back set.csv", "--held-back"),
        ("trt none --fp16 --for-tensorrt 8", "--for-tensorrt"),
        ("trt none --fp16 --graphs-only graphs --rtx", "--rtx"),
        ("trt none --fp16 --graphs-only graphs -o bundle", "--out"),
        ("trt none --int8 --graphs-only graphs --allow-slow", "--allow-slow"),
        ("quantize none --calibration c.json --method auto", "--method"),
        ("quantize none --calibration c.json --samples 256", "--samples"),
        ("quantize none --float16 --keep blocks.0.*", "--keep"),
        ("quantize none --float16 --held-back set.csv", "--held-back"),
        ("quantize none --float16 --calibration c.json", "--calibration"),
        ("quantize none --float16 --samples 64", "--samples"),
        ("embed --verify none --dtype int8", "--dtype"),
        ("embed none --verify none", "BUNDLE"),
    ],
)
def test_an_option_without_the_one_it_belongs_to_is_refused(arguments: str, stray: str) -> None:
    status, _, stderr = run(*arguments.split())
    assert status == 2
    assert f"error: {stray} " in stderr


def test_a_bundle_has_no_options_of_checkpoints(files: Path) -> None:
    status, _, stderr = run("inspect", files / "bundle", "--towers", "text")
    assert status == 2
    assert "--towers is for checkpoints" in stderr


@pytest.mark.parametrize(
    "options",
    [
        QuantizeOptions(samples=17),
        QuantizeOptions(calibration=CalibrationOptions(rounding="learned")),
    ],
)
def test_a_finished_calibration_takes_no_options_of_one(options: QuantizeOptions) -> None:
    with pytest.raises(UsageError, match="`calibration`"):
        quantize("none", None, calibration=Path("c.json"), options=options)
