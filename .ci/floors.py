"""Print the lowest version of every requirement, for `pip install -c`.

Torch is left at the version of constraints.txt: wheels of the others need gigabytes of CUDA.
"""

from __future__ import annotations

import re
from pathlib import Path

import tomllib

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = {k: v for k, v in project["optional-dependencies"].items() if k != "dev"}
groups = [project["dependencies"], *extras.values()]
floors = {}
for requirement in (line for group in groups for line in group):
    found = re.match(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)", requirement)
    if found and found[1] not in ("torch", "tensorrt"):
        floors[found[1]] = found[2]
pinned = Path("constraints.txt").read_text(encoding="utf-8")
floors["torch"] = re.search(r"^torch==(\S+)", pinned, re.M)[1]
for name, version in sorted(floors.items()):
    print(f"{name}=={version}" if version.count(".") else f"{name}=={version}.0")
