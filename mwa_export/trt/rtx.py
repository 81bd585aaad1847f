"""TensorRT-RTX: TensorRT 11's interface, and the compute capabilities that it compiles for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mwa_export.bundle.engine import TENSORRT_RTX, dotted
from mwa_export.errors import UsageError
from mwa_export.trt.versions import TensorRt

if TYPE_CHECKING:
    import tensorrt_rtx_bindings as trt


class TensorRtRtx(TensorRt):
    """An installed TensorRT-RTX, which compiles for RTX cards without needing one."""

    compiler = TENSORRT_RTX

    def own_kernels_only(self, config: trt.IBuilderConfig) -> None:
        pass

    @property
    def capabilities(self) -> tuple[tuple[int, int], ...]:
        """Compute capabilities for which it compiles."""
        names = self.trt.ComputeCapability.__members__
        found = [name.removeprefix("SM") for name in names if re.fullmatch(r"SM\d+", name)]
        return tuple(sorted((int(digits[:-1]), int(digits[-1])) for digits in found))

    def compile_for(
        self, config: trt.IBuilderConfig, capabilities: Sequence[tuple[int, int]]
    ) -> None:
        """Set the compute capabilities of an engine."""
        config.num_compute_capabilities = len(capabilities)
        for index, (major, minor) in enumerate(capabilities):
            chosen = getattr(self.trt.ComputeCapability, f"SM{major}{minor}")
            config.set_compute_capability(chosen, index)


def check_capabilities(rtx: TensorRtRtx, capabilities: Sequence[tuple[int, int]]) -> None:
    """Raise UsageError if TensorRT-RTX does not compile for a compute capability."""
    for capability in capabilities:
        if capability not in rtx.capabilities:
            known = ", ".join(map(dotted, rtx.capabilities))
            raise UsageError(
                f"`capabilities`: {rtx.name} does not compile for compute capability "
                f"{dotted(capability)}. Expected one of {known}."
            )
