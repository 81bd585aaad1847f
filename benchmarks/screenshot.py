"""Render the top of an HTML report, or an SVG file, as PNG with headless Chromium.

mwa-export demo -o demo
python benchmarks/screenshot.py demo/parity/report.html docs/assets/report.png --size 1100x530
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path


def render(page: Path, png: Path, size: tuple[int, int], scale: float = 1.0) -> None:
    """Render the part of a page that fits a window of ``size`` CSS pixels, in light colours."""
    options = ["--headless", "--no-sandbox", "--hide-scrollbars"]
    options += [f"--window-size={size[0]},{size[1]}", f"--force-device-scale-factor={scale}"]
    command = ["chromium", *options, f"--screenshot={png.resolve()}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """Render one page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--size", default="1100x530", help="WIDTHxHEIGHT in CSS pixels")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    render(arguments.page, arguments.png, (width, height))


if __name__ == "__main__":
    main()
