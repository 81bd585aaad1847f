"""Run the commands of docs/tutorial.md in a new folder, and update their output on the page.

    python benchmarks/tutorial.py          # run everything and update the outputs
    python benchmarks/tutorial.py --check  # run everything, write nothing
    python benchmarks/tutorial.py --work w # resumable: does not repeat blocks that ran in w

A `shell` block is run with bash. The `text` block after it contains the output.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
HEAD, TAIL = 24, 1  # lines kept of a long output
UNDECIDED = 3  # exit status of parity: too little data
BLOCK = re.compile(r"```(shell|python)\n(.*?)```(?:\n\n(```text\n.*?```))?", re.S)


def blocks(markdown: str) -> list[tuple[str, str]]:
    """Return language and code of every block to run, in page order."""
    return [(match[1], match[2]) for match in BLOCK.finditer(markdown)]


def execute(language: str, code: str, folder: Path) -> str:
    """Run a block. Returns its stdout and stderr; raises CalledProcessError if a command fails."""
    command = ["bash", "-e", "-c", code] if language == "shell" else [sys.executable, "-c", code]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "COLUMNS": "80", "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode not in (0, UNDECIDED):
        print(done.stdout, file=sys.stderr)
        raise subprocess.CalledProcessError(done.returncode, code)
    return done.stdout


def shortened(output: str) -> str:
    """Remove trailing blanks, empty lines and the middle of a long output."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    if len(lines) > HEAD + TAIL + 4:
        lines[HEAD:-TAIL] = [" ..."]
    return "\n".join(lines)


def once(language: str, code: str, folder: Path) -> str:
    """Run a block, or return its output from an earlier run in the folder."""
    kept = folder / ".outputs" / hashlib.sha256(code.encode()).hexdigest()[:16]
    if not kept.exists():
        output = execute(language, code, folder)
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(output, encoding="utf-8")
    return kept.read_text(encoding="utf-8")


def main() -> None:
    """Run the page and update it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--work", type=Path, help="folder to work in; pass it again to resume")
    arguments = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(exist_ok=True)

        def with_output(match: re.Match[str]) -> str:
            language, code, output = match.groups()
            printed = shortened(once(language, code, folder.resolve()))
            if output is None:
                return match[0]
            return f"```{language}\n{code}```\n\n```text\n{printed}\n```"

        fresh = BLOCK.sub(with_output, page)
    if not arguments.check:
        PAGE.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
