"""Optimization profiles: shapes for which an engine is built, and batches cut to fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.bundle.engine import Profile, ShapeRange
from mwa_export.errors import ProfileError
from mwa_export.inputs.tokenizer import PAD
from mwa_export.spec import Port, TowerSpec

BATCH, LENGTH = "batch", "length"  # names of the dynamic axes in TowerSpec
_PADDING = {"token_ids": PAD, "padding_mask": 1}  # pads a text without changing its result
Arrays = tuple[NDArray[Any], ...]
_OPTIONS = {BATCH: "`batch`", LENGTH: "`lengths`"}


@dataclass(frozen=True, slots=True)
class Span:
    """Range of one dynamic axis; the engine is fastest at ``opt``."""

    min: int
    opt: int
    max: int

    @classmethod
    def parse(cls, text: str, axis: str) -> Span:
        """Read "MIN,OPT,MAX" of an axis, "batch" or "length", or one number for all three.

        Raises:
            ProfileError: not one or three numbers of at least 1, or not in ascending order.
        """
        option = _OPTIONS[axis]
        try:
            numbers = [int(part) if len(part) < 10 else 0 for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 3) or min(numbers) < 1:
            raise ProfileError(
                f"{option} {text}: is not MIN,OPT,MAX. Expected three numbers of at least 1, or "
                f"one for a fixed {axis}, such as {option} 1,32,128"
            )
        span = cls(numbers[0], numbers[len(numbers) // 2], numbers[-1])
        for low, high in (("min", "opt"), ("opt", "max")):
            if getattr(span, low) > getattr(span, high):
                raise ProfileError(
                    f"{option} {text}: {low} {axis} {getattr(span, low)} is above {high} {axis} "
                    f"{getattr(span, high)}. Expected MIN <= OPT <= MAX."
                )
        return span


def profile_of(spec: TowerSpec, batch: Span, lengths: Span | None = None) -> Profile:
    """Make the profile of a tower: shape ranges of all its inputs.

    Raises:
        ProfileError: the inputs have a length axis, and ``lengths`` is None.
    """
    sizes = {BATCH: batch} if lengths is None else {BATCH: batch, LENGTH: lengths}
    return tuple(_range(spec, port, sizes) for port in spec.inputs)


def profiles_of(
    spec: TowerSpec, batches: Sequence[Span], lengths: Span | None = None
) -> tuple[Profile, ...]:
    """Make one profile per range of batches; see `profile_of`."""
    return tuple(profile_of(spec, batch, lengths) for batch in batches)


def text_lengths(given: Span | None, max_length: int) -> Span:
    """Range of text lengths in tokens, including BOS and EOS.

    ``given``: None for all lengths of the model, fastest at 16 tokens, a typical caption.

    Raises:
        ProfileError: no text of this model has such lengths.
    """
    if given is None:
        return Span(2, min(16, max_length), max_length)
    if given.max > max_length:
        raise ProfileError(
            f"`lengths`: max length {given.max} is above {max_length}, the longest text of this "
            f"model. Expected at most `lengths={given.min},{min(given.opt, max_length)},"
            f"{max_length}`."
        )
    if given.max < 2:
        raise ProfileError("`lengths`: max length 1 is too short: BOS and EOS alone are 2 tokens.")
    return given


def _range(spec: TowerSpec, port: Port, sizes: dict[str, Span]) -> ShapeRange:
    spans = []
    for dim in port.shape:
        if isinstance(dim, int):
            spans.append(Span(dim, dim, dim))
        elif dim in sizes:
            spans.append(sizes[dim])
        else:
            raise ProfileError(
                f"{spec.tower}/{port.name}: the size of axis {dim} is unknown. Pass it: "
                f"{_OPTIONS.get(dim, dim)} MIN,OPT,MAX"
            )
    low, usual, high = zip(*((span.min, span.opt, span.max) for span in spans), strict=True)
    return ShapeRange(port.name, low, usual, high)


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a batch that is processed in one run of the engine."""

    arrays: Arrays  # of shapes that the profile allows
    rows: int  # number of real rows; any further rows are filling
    profile: int  # index of the profile


def pieces(spec: TowerSpec, profiles: Sequence[Profile], arrays: Arrays) -> list[Piece]:
    """Cut a batch, (rows, ...) of each input, into runs for which the engine has profiles.

    If there are too few rows, the last one is repeated; texts that are too short are padded.
    Neither changes the result of a row.

    Raises:
        ProfileError: the engine was not built for these sizes, as with a text that is too long.
    """
    spans = [_spans(spec, profile) for profile in profiles]
    length = arrays[0].shape[1] if LENGTH in spec.inputs[0].shape else None
    fit = [i for i, span in enumerate(spans) if length is None or length <= span[LENGTH].max]
    if not fit:
        longest = max(span[LENGTH].max for span in spans)
        raise ProfileError(
            f"{spec.tower}: found a text of {length} tokens, but the engine was built for at most "
            f"{longest}. Build it for longer texts: `mwa-export trt` with "
            "`lengths=MIN,OPT,MAX` `rebuild`"
        )
    _check_fixed(spec, profiles[0], arrays)
    most = max(spans[i][BATCH].max for i in fit)
    cut = []
    for start in range(0, len(arrays[0]), most):
        part = tuple(array[start : start + most] for array in arrays)
        rows = len(part[0])
        # The smallest profile that is large enough, as it is built for such batches.
        chosen = min(
            (i for i in fit if rows <= spans[i][BATCH].max), key=lambda i: spans[i][BATCH].max
        )
        cut.append(Piece(_filled(spec, spans[chosen], part), rows, chosen))
    return cut


def _spans(spec: TowerSpec, profile: Profile) -> dict[str, Span]:
    """Ranges of the dynamic axes in a profile."""
    shapes = {entry.name: entry for entry in profile}
    first = spec.inputs[0]
    entry = shapes[first.name]
    return {
        dim: Span(entry.min[axis], entry.opt[axis], entry.max[axis])
        for axis, dim in enumerate(first.shape)
        if isinstance(dim, str)
    }


def _check_fixed(spec: TowerSpec, profile: Profile, arrays: Arrays) -> None:
    """Check the fixed axes, which are pixels and channels of an image."""
    largest = {entry.name: entry.max for entry in profile}
    for port, array in zip(spec.inputs, arrays, strict=True):
        expected = tuple(
            dim if isinstance(dim, str) else size
            for dim, size in zip(port.shape, largest[port.name], strict=True)
        )
        fits = array.ndim == len(expected) and all(
            isinstance(dim, str) or dim == size
            for dim, size in zip(expected, array.shape, strict=True)
        )
        if not fits:
            raise ProfileError(
                f"{spec.tower}/{port.name}: has shape {array.shape}. Expected "
                f"({', '.join(map(str, expected))}), for which the engine was built."
            )


def _filled(spec: TowerSpec, spans: dict[str, Span], arrays: Arrays) -> Arrays:
    filled = []
    for port, array in zip(spec.inputs, arrays, strict=True):
        if LENGTH in spans and array.shape[1] < spans[LENGTH].min:
            more = ((0, 0), (0, spans[LENGTH].min - array.shape[1]))
            array = np.pad(array, more, constant_values=_PADDING[port.name])
        if len(array) < spans[BATCH].min:
            last = np.repeat(array[-1:], spans[BATCH].min - len(array), axis=0)
            array = np.concatenate([array, last])
        filled.append(array)
    return tuple(filled)
