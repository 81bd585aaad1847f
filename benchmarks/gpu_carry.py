"""Split folders into slices that fit a transfer, and reassemble them.

    python gpu_carry.py slice FOLDER OUT [MIB]    # OUT/NAME.0, OUT/NAME.1 ...
    python gpu_carry.py receive SLICE HOME        # HOME/NAME, once the last slice has arrived

Slices may arrive in any order and more than once. Needs only the standard library. A slice that
contains recv_slice.sh is received by that script.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

SUMS = "SHA256SUMS"
MIB = 1 << 20
_USUAL = 46  # default MiB per slice


def slice_folder(folder: Path, out: Path, most: int) -> list[Path]:
    """Pack a folder into slices of at most ``most`` bytes, replacing its earlier slices."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{folder.name}.*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    packed = out / f"{folder.name}.tar.xz"
    with tarfile.open(packed, "w:xz", preset=9) as tar:
        tar.add(folder, ".", filter=_anonymous)
    slices, sums = list[Path](), list[str]()
    with packed.open("rb") as file:
        while part := file.read(most - 64 * 1024):  # leave room for the checksums
            target = out / f"{folder.name}.{len(slices)}"
            target.mkdir()
            name = f"part.{len(slices):03d}"
            (target / name).write_bytes(part)
            sums.append(f"{hashlib.sha256(part).hexdigest()}  {name}\n")
            slices.append(target)
    packed.unlink()
    for target in slices:
        (target / SUMS).write_text("".join(sums), encoding="utf-8")
    return slices


def receive(source: Path, home: Path) -> str:
    """Store a slice, and unpack the folder after the last one. Returns a message."""
    name, _, _ = source.name.rpartition(".")
    target, parts = home / name, home / f"{name}.parts"
    sums = (source / SUMS).read_text(encoding="utf-8")
    if (target / SUMS).exists() and (target / SUMS).read_text(encoding="utf-8") == sums:
        return f"{name}: is here already"
    if parts.exists() and (parts / SUMS).read_text(encoding="utf-8") != sums:
        shutil.rmtree(parts)  # from an earlier packing
    parts.mkdir(parents=True, exist_ok=True)
    wanted = {part: digest for digest, part in (line.split() for line in sums.splitlines())}
    (parts / SUMS).write_text(sums, encoding="utf-8")
    for path in source.glob("part.*"):
        if _sha256(path) != wanted.get(path.name):
            raise SystemExit(f"{path}: is damaged. Carry this slice again.")
        shutil.copyfile(path, parts / f"{path.name}.copied")
        (parts / f"{path.name}.copied").replace(parts / path.name)
    missing = [f"{name}.{int(part[-3:])}" for part in wanted if not (parts / part).exists()]
    if missing:
        return f"{name}: still missing {', '.join(missing)}"
    _unpack(parts, sorted(wanted), target)
    return f"{name}: unpacked"


def _unpack(parts: Path, names: list[str], target: Path) -> None:
    packed, fresh = parts / "whole", parts / "unpacked"
    with packed.open("wb") as whole:
        for name in names:
            with (parts / name).open("rb") as part:
                shutil.copyfileobj(part, whole)
    shutil.rmtree(fresh, ignore_errors=True)
    with tarfile.open(packed, "r:xz") as tar:
        tar.extractall(fresh, filter="data")
    shutil.copyfile(parts / SUMS, fresh / SUMS)
    shutil.rmtree(target, ignore_errors=True)
    fresh.replace(target)
    shutil.rmtree(parts)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    command, *names = sys.argv[1:] or [""]
    if command == "slice" and len(names) in (2, 3):
        most = int(names[2]) if len(names) == 3 else _USUAL
        for path in slice_folder(Path(names[0]), Path(names[1]), most * MIB):
            print(f"  {path.name}: {sum(f.stat().st_size for f in path.iterdir()):,} bytes")
    elif command == "receive" and len(names) == 2:
        source, home = map(Path, names)
        if (source / "recv_slice.sh").exists():
            environment = {**os.environ, "TRT_DEST": str(home / "trt")}
            done = subprocess.run(["bash", source / "recv_slice.sh"], env=environment, check=False)
            sys.exit(done.returncode)
        print(receive(source, home))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
