"""INT8 for the demo's bundle, in the time that a demo has."""

from __future__ import annotations

from pathlib import Path

from mwa_export.calib.quantize import Quantized, QuantizeOptions, quantize_bundle
from mwa_export.progress import Progress
from mwa_export.retrieval_data import RetrievalData

SAMPLES = 128  # pictures to calibrate with, and a caption of each

# What loses most in the text tower. `mwa-export quantize` finds such layers by itself, but its
# search embeds the held-back data a dozen times: longer here than all the rest together.
KEPT = ("text:*.fc2_up",)


def quantize_demo(
    bundle: Path, samples: RetrievalData, held_back: RetrievalData, progress: Progress
) -> Quantized:
    """Add INT8 graphs to the demo's bundle, without the search for precisions.

    Args:
        bundle: made from the shipped checkpoint; changed in place.
        samples: pictures with captions to calibrate with.
        held_back: others, to measure recall on for the manifest.
        progress: told about each step.
    """
    options = QuantizeOptions(samples=SAMPLES, keep=KEPT, search=False, points=0)
    return quantize_bundle(bundle, samples, held_back=held_back, options=options, progress=progress)
