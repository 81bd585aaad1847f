"""Seeded damage for the tests in tests/fuzz: a fixed number of cases, or a time limit.

`make fuzz` sets FUZZ_SECONDS per test and draws other seeds. A failure names its seed; to run only
that one, set FUZZ_SEED=SEED.
"""

from __future__ import annotations

import copy
import os
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ODD = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_ROOM = 3 << 30  # bytes of addresses above what the process has


def cases(name: str, count: int) -> Iterator[random.Random]:
    """Generators of random numbers, one a case. They are named, so that a failure shows which."""
    if seed := os.environ.get("FUZZ_SEED"):
        yield named(seed)
        return
    seconds = float(os.environ.get("FUZZ_SECONDS", 0))
    start, session, number = time.monotonic(), f"{time.time_ns()}-" if seconds else "", 0
    while number < count if not seconds else time.monotonic() - start < seconds:
        yield named(f"{name}-{session}{number}")
        number += 1


class named(random.Random):  # noqa: N801  # reads as a function
    """A generator that shows its seed."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.name = seed

    def __repr__(self) -> str:
        return f"FUZZ_SEED={self.name}"


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A file with a few bytes, numbers or stretches that are other than they were."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        at = rng.randrange(len(found) + 1)
        length = min(rng.choice((1, 2, 4, 8, 16, 256)), len(found) - at)
        match rng.randrange(7):
            case 0 if length:
                found[at] ^= 1 << rng.randrange(8)
            case 1:
                found[at : at + length] = rng.randbytes(length)
            case 2:
                size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
                number = rng.choice(_ODD) % (1 << 8 * size)
                found[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
            case 3:
                del found[at : at + length]
            case 4:
                found[at:at] = found[at : at + length] * rng.choice((1, 2, 50))
            case 5:
                other = rng.randrange(len(found) + 1)
                found[at : at + length] = found[other : other + length]
            case 6 if rng.random() < 0.3:
                del found[at:]
        if not found:
            return b""
    return bytes(found)


def mutated_json(rng: random.Random, data: Any) -> Any:
    """JSON data with one value that is another, missing or doubled."""
    holder, key = rng.choice(list(_places(data)))
    odd: list[Any] = [None, True, 0, -1, 2**63, 0.5, -1e300, "", "../x", "a" * 5000, [], {}, [[]]]
    match rng.randrange(3):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case 1:
            holder[rng.choice(["x", "schema", "files", ""])] = holder.pop(key)
        case _:
            holder[key] = copy.deepcopy(rng.choice([*odd, *data.values()]))
    return data


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every dict and list in JSON data with each of its keys."""
    for key, value in list(data.items() if isinstance(data, dict) else enumerate(data)):
        yield data, key
        if isinstance(value, dict | list):
            yield from _places(value)


@contextmanager
def survived(rng: random.Random, refusal: type[Exception]) -> Iterator[None]:
    """Let a refusal end the block, and show the seed of any other error or failed assertion."""
    try:
        yield
    except refusal:
        pass
    except Exception as error:
        raise AssertionError(f"{rng!r}: {error!r}") from error


@contextmanager
def little_memory() -> Iterator[None]:
    """Refuse memory for what a small file claims to need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
