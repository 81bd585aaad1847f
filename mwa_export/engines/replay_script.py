"""Shell script that replays engine graphs with NVIDIA's tools, Polygraphy and trtexec."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mwa_export.bundle.engine import EnginePrecision, Profile
from mwa_export.trt.versions import is_typed

SCRIPT = "replay.sh"
_SIZES = ("min", "opt", "max")
_OWN_KERNELS = "--tactic-sources EDGE_MASK_CONVOLUTIONS JIT_CONVOLUTIONS"
_TYPED = f"--strongly-typed {_OWN_KERNELS}", "--stronglyTyped"  # for Polygraphy, for trtexec
_HEAD = """\
#!/bin/sh
# Build each tower's engine with Polygraphy and compare it with ONNX Runtime, on a machine with a
# GPU, TensorRT {versions}, onnxruntime, polygraphy and, to reduce a graph, onnx_graphsurgeon.
# Options are passed on to Polygraphy. To compare every tensor that both have, run
#   sh {script} --trt-outputs '*' --onnx-outputs '*' --compare cosine_similarity
# which also changes what TensorRT fuses. The exit status is 1 if an engine is wrong.
cd "$(dirname "$0")" || exit
failed=0
"""


@dataclass(frozen=True, slots=True)
class Replay:
    """A graph to replay; all names are those of files next to the script."""

    graph: str
    reference: str | None  # graph for ONNX Runtime if it cannot run ``graph``
    inputs: tuple[str, ...]  # one file per profile
    profiles: tuple[Profile, ...]
    least: float  # least cosine of the embeddings


def script(replays: Iterable[Replay], precision: EnginePrecision, tensorrt: int) -> str:
    """Return the shell script for a major version of TensorRT."""
    typed = is_typed(tensorrt)
    versions = "10 or 11" if typed else "8.6"
    flags, trtexec = _TYPED if typed else _of_8(precision)
    lines = [_HEAD.format(versions=versions, script=SCRIPT)]
    for replay in replays:
        lines += [_comparison(replay, index, flags) for index in range(len(replay.profiles))]
        lines += [_timing(replay, profile, trtexec) for profile in replay.profiles]
        lines.append(_reduction(replay, flags))
    return "\n".join([*lines, "exit $failed\n"])


def _of_8(precision: EnginePrecision) -> tuple[str, str]:
    """Options of Polygraphy and trtexec for 8.6, which chooses among allowed precisions."""
    allowed = "--fp16 --int8" if precision == "int8" else "--fp16"
    feature = "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805"
    return (
        f"{allowed} {_OWN_KERNELS} --preview-features {feature}",
        f"{allowed} --tacticSources=-CUBLAS,-CUBLAS_LT,-CUDNN "
        "--preview=+disableExternalTacticSourcesForCore0805",
    )


def _comparison(replay: Replay, index: int, flags: str) -> str:
    """Commands that compare an engine with ONNX Runtime in the shapes of one profile."""
    inputs = replay.inputs[index]
    parts, first = [f"polygraphy run {replay.graph} --trt"], ""
    if replay.reference is None:
        parts[0] += " --onnxrt"
    else:
        outputs = inputs.replace("inputs", "outputs")
        parts[0] += f" --load-outputs {outputs}"
        run = f"polygraphy run {replay.reference} --onnxrt"
        first = f'{run} --load-inputs {inputs} --save-outputs {outputs} "$@" &&\n'
    parts.append(flags)
    for profile in replay.profiles:
        for size in _SIZES:
            shapes = [f"'{e.name}:{list(getattr(e, size))}'".replace(" ", "") for e in profile]
            parts.append(f"--trt-{size}-shapes {' '.join(shapes)}")
    if index:
        parts.append(f"--optimization-profile {index}")
    parts.append(f"--load-inputs {inputs} --validate --compare simple cosine_similarity")
    # Components of unit vectors with this cosine differ by no more than this.
    most = math.sqrt(2 * (1 - replay.least))
    parts.append(f"--cosine-similarity-threshold {replay.least:.5f}")
    parts.append(f"--check-error-stat max --atol {most:.5f} --rtol 0")
    return first + " \\\n  ".join([*parts, '"$@" || failed=1'])


def _timing(replay: Replay, profile: Profile, flags: str) -> str:
    """Command with which trtexec builds and times an engine on random inputs."""
    parts = [f"# trtexec --onnx={replay.graph} {flags}"]
    for size in _SIZES:
        shapes = [f"{e.name}:{'x'.join(map(str, getattr(e, size)))}" for e in profile]
        parts.append(f"--{size}Shapes={','.join(shapes)}")
    return " \\\n#   ".join(parts)


def _reduction(replay: Replay, flags: str) -> str:
    """Commands that find the smallest part of a graph that is wrong."""
    if replay.reference is not None:
        return "# No `polygraphy debug reduce`: it needs bfloat16 values, which numpy lacks.\n"
    graph, inputs, stem = replay.graph, replay.inputs[0], Path(replay.graph).stem
    layers, values = f"{stem}.layers.json", f"{stem}.values.json"
    return f"""\
# The smallest part that is wrong:
# polygraphy run {graph} --onnxrt --onnx-outputs '*' \\
#   --load-inputs {inputs} --save-outputs {layers}
# polygraphy data merge {inputs} {layers} -o {values}
# polygraphy debug reduce {graph} -o {stem}.reduced.onnx --load-inputs {values} \\
#   --check polygraphy run polygraphy_debug.onnx --trt {flags} \\
#   --load-inputs {values} --load-outputs {layers} \\
#   --compare cosine_similarity --cosine-similarity-threshold {replay.least:.5f}
"""
