"""Plan the calls that transfer what `gpu_run.sh prepare` packed to a GPU machine and measure there.

python benchmarks/gpu_calls.py FOLDER    # writes FOLDER/CALLS.md
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_TRANSFER, _MARGIN = 64 * MIB, 1 * MIB  # limit per call, including the tree
_SCRIPT = "bash benchmarks/gpu_run.sh"
_START, _CARRY = 120, 30  # seconds to start the machine, and for a call that only transfers
# Stage -> folders of slices that it needs in addition to earlier stages, seconds for measuring.
_STAGES = {
    "torch": (("models.*", "site.*"), 360),
    "trt8": (("s[0-9]*",), 540),
    "ort": (("ort.*",), 180),
    "rtx": (("models-rtx.*", "rtx.*"), 540),
}


@dataclass(frozen=True)
class Step:
    """A call: what it transfers, what it runs, and how long that should take in seconds."""

    carry: tuple[str, ...]
    command: str
    seconds: int


def steps(found: dict[str, list[tuple[str, int]]], room: int) -> list[Step]:
    """Pack the slices into as few calls as possible.

    Args:
        found: stage -> names and bytes of its slices.
        room: bytes that a call can transfer in addition to the tree.
    """
    made: list[Step] = []
    for stage, slices in found.items():
        if not slices:
            continue
        *earlier, last = _filled(slices, room)
        made += [Step(names, f"{_SCRIPT} receive {' '.join(names)}", _CARRY) for names in earlier]
        seconds = _STAGES[stage][1]
        command = f"{_SCRIPT} receive {' '.join(last)} && "
        command += f"CALL_SECONDS={seconds - _CARRY} {_SCRIPT} measure {stage}"
        made.append(Step(last, command, seconds))
    return made


def _filled(slices: Sequence[tuple[str, int]], room: int) -> list[tuple[str, ...]]:
    calls: list[list[str]] = []
    left = 0
    for name, size in slices:
        if size > room:
            sys.exit(f"{name}: has {size:,} bytes, and a call carries {room:,} beside the tree")
        if size > left:
            calls.append([])
            left = room
        calls[-1].append(name)
        left -= size
    return [tuple(call) for call in calls]


def page(made: Sequence[Step]) -> str:
    """Return the content of CALLS.md."""
    total = _START + sum(step.seconds for step in made)
    lines = [
        "# Calls on the GPU",
        "",
        f"{len(made)} calls back to back, about {total} s with the start of the machine. What "
        "`receive` still misses was on a machine that is gone: carry that again. A `measure` that "
        "leaves something out for want of time goes on where it is called again; "
        "`measure STAGE large` adds that model. Keep what comes back of each call, and end with "
        f"`{_SCRIPT} report FILE.json...`.",
    ]
    for number, step in enumerate(made, 1):
        call = {"carry": list(step.carry), "command": step.command, "timeout_s": 600}
        lines += ["", f"## {number}. About {step.seconds} s", "", "```json"]
        lines += [json.dumps(call, indent=1), "```"]
    return "\n".join(lines) + "\n"


def _slices(folder: Path, patterns: Sequence[str]) -> list[tuple[str, int]]:
    """Return the slices of a stage with their bytes, after checking their checksums."""
    paths = [path for pattern in patterns for path in folder.glob(f"*/{pattern}") if path.is_dir()]
    paths.sort(key=lambda path: (path.name.rstrip("0123456789"), path.name.zfill(99)))
    found = []
    for path in paths:
        sums = dict(line.split()[::-1] for line in (path / "SHA256SUMS").read_text().splitlines())
        for part in path.glob("part.*"):
            if hashlib.sha256(part.read_bytes()).hexdigest() != sums.get(part.name):
                sys.exit(f"{part}: is damaged. Prepare again.")
        found.append((path.as_posix(), sum(file.stat().st_size for file in path.iterdir())))
    return found


def _tree() -> int:
    """Return the bytes of the working tree, which is transferred with every call."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True).stdout.split(b"\0")[:-1]
    return sum(path.stat().st_size for name in names if (path := Path(name.decode())).is_file())


def main() -> None:
    folder = Path(sys.argv[1])
    found = {stage: _slices(folder, patterns) for stage, (patterns, _) in _STAGES.items()}
    made = steps(found, _TRANSFER - _MARGIN - _tree())
    (folder / "CALLS.md").write_text(page(made), encoding="utf-8")
    print(f"{len(made)} calls: {folder / 'CALLS.md'}")


if __name__ == "__main__":
    main()
