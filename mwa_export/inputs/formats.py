"""Image formats: supported ones, their file extensions, and detection of truncated files."""

from __future__ import annotations

import ctypes
import io
import re
import struct
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "WEBP", "AVIF", "TIFF", "JPEG2000"),
    *("BLP", "CUR", "DCX", "DDS", "FITS", "FLI", "FTEX", "GBR", "ICNS", "ICO", "IM", "IMT"),
    *("MCIDAS", "MSP", "PCD", "PCX", "PIXAR", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA"),
    *("XBM", "XPM", "XVTHUMB"),
)
"""Pillow's names of the supported formats. Pillow decodes all of them inside this process.

Left out: EPS starts Ghostscript; IPTC opens embedded files of any format, including EPS; WMF, EMF,
BUFR, GRIB, HDF5 and MPEG need an external handler; FPX and MIC are containers of other formats.
"""

_REFUSED = (  # well-known formats that are not supported, and how their files begin
    ("PostScript (EPS)", rb"%!|\xc5\xd0\xd3\xc6"),
    ("PDF", rb"%PDF"),
    ("SVG", rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg\b"),
    ("WMF", rb"\xd7\xcd\xc6\x9a"),
    ("EMF", rb"\x01\0\0\0.{36} EMF"),
    ("HEIC", rb".{4}ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)"),
    ("AVIF (by this version of Pillow)", rb".{4}ftypavi[fs]"),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("FlashPix or MIC", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    ("HDF5", rb"\x89HDF\r\n"),
    ("GRIB", rb"GRIB"),
    ("BUFR", rb"BUFR"),
    ("MPEG", rb"\0\0\x01[\xb3\xba]"),
    ("IPTC", rb"\x1c[\x01-\x09]"),
)
_NOT_READ = frozenset(
    {"avif", "avifs", "eps", "heic", "heif", "iim", "jxl", "pdf", "svg", "wmf", "emf"}
)
HEAD = 16  # bytes by which Pillow recognizes a format


@cache
def formats() -> tuple[str, ...]:
    """Return the FORMATS that this version of Pillow knows; it raises KeyError for others."""
    Image.init()
    _quiet_libtiff()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def extensions() -> frozenset[str]:
    """Return the file extensions of images, without the dot.

    They are Pillow's extensions of the FORMATS and those of well-known unsupported formats, whose
    files become failed rows rather than being skipped.
    """
    read = {*formats(), "MPO"}  # MPO is opened as JPEG
    found = {end[1:] for end, name in Image.registered_extensions().items() if name in read}
    return frozenset(found) | _NOT_READ


def extension_of(name: str) -> str:
    """Return the extension of a file in lower case and without the dot; "" if it has none."""
    base = name.rpartition("/")[2].lstrip(".")
    return base.rpartition(".")[2].lower() if "." in base else ""


def shown(extension: str) -> str:
    """Format an extension for messages."""
    return f".{extension}" if extension else "without extension"


def likely(head: bytes) -> tuple[str, ...]:
    """Return the formats whose magic number matches ``head``, the first bytes of a file."""
    return tuple(name for name in formats() if _fits(name, head[:HEAD]))


def _fits(name: str, head: bytes) -> bool:
    accepts = Image.OPEN[name][1]
    try:
        return accepts is not None and accepts(head) is True
    except Exception:  # Pillow raises if there are fewer bytes than the magic number has
        return False


def unknown(head: bytes) -> str:
    """Explain why Pillow does not recognize a file that starts with ``head``."""
    for name, start in _REFUSED:
        if re.match(start, head, re.DOTALL | re.IGNORECASE):
            return f"{name} is not supported. Convert it to PNG or JPEG."
    return (
        f"it is not an image, or its header is damaged (it starts with {head[:16]!r}). Expected "
        "JPEG, PNG, WebP, TIFF or another raster format."
    )


def is_cut(data: bytes, form: str | None) -> bool:
    """Whether an undecodable image is truncated. ``form``: its format; None: not recognized."""
    if _says_it_is_longer(data):
        return True
    file = _Watched(data)
    with suppress(Exception):  # decoding fails again, but shows whether it reads past the end
        # MPO is opened as JPEG and has no magic number of its own.
        if candidates := (form,) if form in formats() else likely(data):
            Image.open(file, formats=candidates).load()
    return file.ran_out or _strips_end(data) > len(data)


class _Watched(io.BytesIO):
    """Notes reads past the end. Pillow reads large blocks, of which the last may be short."""

    ran_out = False

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        if size is not None and size > len(found) and (not found or size < 4096):
            self.ran_out = True
        return found

    def readline(self, size: int | None = -1, /) -> bytes:
        found = super().readline(size)
        self.ran_out |= not found.endswith(b"\n")
        return found


def _says_it_is_longer(data: bytes) -> bool:
    """Whether stored sizes (RIFF: WebP; boxes: AVIF, JPEG 2000) or a missing end mark show it."""
    if data[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000 without boxes
        return not data.endswith(b"\xff\xd9")
    if data[:4] == b"RIFF":
        return len(data) < 12 or 8 + int(struct.unpack_from("<I", data, 4)[0]) > len(data)
    if data[4:8] not in (b"ftyp", b"jP  "):
        return False
    position, names = 0, set[bytes]()
    while position + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        if size == 1:  # the size follows
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:  # 0: up to the end
            return False
        position += size
        names.add(name)
    return position > len(data) or names.isdisjoint({b"mdat", b"jp2c"})


def _strips_end(data: bytes) -> int:
    """Return the end of a TIFF's last strip or tile, which libtiff reads itself; 0 otherwise."""
    with suppress(Exception):
        tags: Any = getattr(Image.open(io.BytesIO(data), formats=["TIFF"]), "tag_v2", {})
        for offsets, counts in ((273, 279), (324, 325)):
            if offsets in tags and counts in tags:
                return int(max(map(sum, zip(tags[offsets], tags[counts], strict=True))))
    return 0


def _quiet_libtiff() -> None:
    """Stop libtiff from printing errors without the image's name; Pillow raises them anyway."""
    with suppress(OSError, AttributeError):  # not Linux, or libtiff is linked statically
        maps = Path("/proc/self/maps").read_text(errors="replace")
        for name in set(re.findall(r"/\S*libtiff[^/\s]*\.so\S*", maps)):
            library = ctypes.CDLL(name)
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)
