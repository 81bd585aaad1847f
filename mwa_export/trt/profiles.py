"""Optimization profiles: minimum, optimum and maximum shape of every input of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mwa_export.bundle.engine import Profile, ShapeRange
from mwa_export.errors import ProfileError
from mwa_export.spec import Port, TowerSpec

BATCH, LENGTH = "batch", "length"  # the dynamic axes, as TowerSpec names them
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
            numbers = [int(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 3) or min(numbers) < 1:
            raise ProfileError(
                f"{option} {text}: is not MIN,OPT,MAX. Expected three numbers of 1 or more, or one "
                f"for a fixed {axis}: {option} 1,32,128"
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
    """The shapes of every input of a tower.

    Raises:
        ProfileError: the tower has lengths and none are given.
    """
    sizes = {BATCH: batch} if lengths is None else {BATCH: batch, LENGTH: lengths}
    return tuple(_range(spec, port, sizes) for port in spec.inputs)


def profiles_of(
    spec: TowerSpec, batches: Sequence[Span], lengths: Span | None = None
) -> tuple[Profile, ...]:
    """One profile for each range of batches; see `profile_of`."""
    return tuple(profile_of(spec, batch, lengths) for batch in batches)


def text_lengths(given: Span | None, max_length: int) -> Span:
    """The range of text lengths in tokens, BOS and EOS included.

    None given: all that the model has, fastest at 16 tokens, a typical caption.

    Raises:
        ProfileError: lengths that no text of this model has.
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
        raise ProfileError("`lengths`: max length 1 holds no text: BOS and EOS alone are 2 tokens.")
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
                f"{spec.tower}/{port.name}: the size of axis {dim} is not known. Give it: "
                f"{_OPTIONS.get(dim, dim)} MIN,OPT,MAX"
            )
    low, usual, high = zip(*((span.min, span.opt, span.max) for span in spans), strict=True)
    return ShapeRange(port.name, low, usual, high)
