"""A small image in every supported format, and unsupported or damaged files."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 24, 20
RAW = bytes(range(256)) * 6  # more than WIDTH * HEIGHT * 3 bytes


def image(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(form: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    image(mode).save(file, form, **options)
    return file.getvalue()


def _cur() -> bytes:
    icon = bytearray(saved("ICO", "RGBA", sizes=[(16, 16)], bitmap_format="bmp"))
    icon[2] = 2  # a cursor
    return bytes(icon)


def _dcx() -> bytes:
    return struct.pack("<3I", 0x3ADE68B1, 12, 0) + saved("PCX")


def _fits() -> bytes:
    cards = ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", f"NAXIS1  = {WIDTH}", "NAXIS2  = 20")
    header = b"".join(card.encode().ljust(80) for card in (*cards, "END"))
    return header.ljust(2880) + RAW[: WIDTH * HEIGHT].ljust(2880, b"\0")


def _fli() -> bytes:
    pixels = struct.pack("<IH", 6 + WIDTH * HEIGHT, 16) + RAW[: WIDTH * HEIGHT]  # uncompressed
    frame = struct.pack("<IHH8x", 16 + len(pixels), 0xF1FA, 1) + pixels
    header = struct.pack("<IHHHHHHI", 128 + len(frame), 0xAF11, 1, WIDTH, HEIGHT, 8, 3, 5)
    return header.ljust(128, b"\0") + frame


def _ftex() -> bytes:
    header = b"FTEX" + struct.pack("<5I", 0, WIDTH, HEIGHT, 1, 1) + struct.pack("<2I", 1, 32)
    return header + struct.pack("<I", WIDTH * HEIGHT * 3) + RAW[: WIDTH * HEIGHT * 3]


def _gbr() -> bytes:
    header = struct.pack(">5I", 30, 2, WIDTH, HEIGHT, 1) + b"GIMP" + struct.pack(">I", 10)
    return header + b"x\0" + RAW[: WIDTH * HEIGHT]


def _icns() -> bytes:
    icon = io.BytesIO()
    image("RGBA").resize((16, 16)).save(icon, "PNG")
    block = b"icp4" + struct.pack(">I", 8 + len(icon.getvalue())) + icon.getvalue()
    return b"icns" + struct.pack(">I", 8 + len(block)) + block


def _imt() -> bytes:
    return f"width {WIDTH}\nheight {HEIGHT}\npixel n8\n\x0c".encode() + RAW[: WIDTH * HEIGHT]


def _mcidas() -> bytes:
    words = [0] * 64
    words[1], words[8], words[9], words[10], words[13], words[33] = 4, HEIGHT, WIDTH, 1, 1, 256
    return struct.pack(">64i", *words) + RAW[: WIDTH * HEIGHT]


def _mpo() -> bytes:
    return saved("MPO", save_all=True, append_images=[image()])


def _pcd() -> bytes:
    return bytes(2048) + b"PCD_IPI".ljust(96 * 2048, b"\0") + RAW * 400


def _pixar() -> bytes:
    header = bytearray(1024)
    header[:4] = b"\200\350\0\0"
    struct.pack_into("<HH", header, 416, HEIGHT, WIDTH)
    struct.pack_into("<HH", header, 424, 14, 2)  # RGB
    return bytes(header) + RAW[: WIDTH * HEIGHT * 3]


def _psd() -> bytes:
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, HEIGHT, WIDTH, 8, 3)
    return header + struct.pack(">IIIH", 0, 0, 0, 0) + RAW[: WIDTH * HEIGHT * 3]


def _sun() -> bytes:
    length = WIDTH * HEIGHT * 3
    return struct.pack(">8I", 0x59A66A95, WIDTH, HEIGHT, 24, length, 1, 0, 0) + RAW[:length]


def _xpm() -> bytes:
    rows = ",\n".join(f'"{"ab" * (WIDTH // 2)}"' for _row in range(HEIGHT))
    head = f'/* XPM */\nstatic char *x[] = {{\n"{WIDTH} {HEIGHT} 2 1",\n'
    return f'{head}"a c #ff0000",\n"b c #0000ff",\n{rows}\n}};\n'.encode()


def _xvthumb() -> bytes:
    return f"P7 332\n#END_OF_COMMENTS\n{WIDTH} {HEIGHT} 255\n".encode() + RAW[: WIDTH * HEIGHT]


GOOD: dict[str, Callable[[], bytes]] = {
    "AVIF": lambda: saved("AVIF"),
    "BLP": lambda: saved("BLP", "P"),
    "BMP": lambda: saved("BMP"),
    "CUR": _cur,
    "DCX": _dcx,
    "DDS": lambda: saved("DDS"),
    "DIB": lambda: saved("DIB"),
    "FITS": _fits,
    "FLI": _fli,
    "FTEX": _ftex,
    "GBR": _gbr,
    "GIF": lambda: saved("GIF"),
    "ICNS": _icns,
    "ICO": lambda: saved("ICO"),
    "IM": lambda: saved("IM"),
    "IMT": _imt,
    "JPEG": lambda: saved("JPEG"),
    "JPEG2000": lambda: saved("JPEG2000"),
    "MCIDAS": _mcidas,
    "MPO": _mpo,
    "MSP": lambda: saved("MSP", "1"),
    "PCD": _pcd,
    "PCX": lambda: saved("PCX"),
    "PIXAR": _pixar,
    "PNG": lambda: saved("PNG"),
    "PPM": lambda: saved("PPM"),
    "PSD": _psd,
    "QOI": lambda: saved("QOI"),
    "SGI": lambda: saved("SGI"),
    "SPIDER": lambda: saved("SPIDER", "F"),
    "SUN": _sun,
    "TGA": lambda: saved("TGA"),
    "TIFF": lambda: saved("TIFF", compression="tiff_lzw"),
    "WEBP": lambda: saved("WEBP"),
    "XBM": lambda: saved("XBM", "1"),
    "XPM": _xpm,
    "XVTHUMB": _xvthumb,
}
"""Format -> a file that can be decoded."""


def unknown_dds() -> bytes:
    """A DDS whose pixels are of no known kind: Pillow raises NotImplementedError."""
    data = bytearray(saved("DDS"))
    data[80:84] = bytes(4)
    return bytes(data)


def damaged_avif() -> bytes:
    """An AVIF with damaged pixels behind a sound header: Pillow raises RuntimeError."""
    data = saved("AVIF")
    start = data.index(b"mdat") + 8
    return data[:start] + bytes(len(data) - start)


def eps_in_iptc() -> bytes:
    """An IPTC file that holds an EPS, which Pillow opens in turn."""
    fields = {(3, 60): b"\1\0", (3, 20): b"\0\4", (3, 30): b"\0\4", (3, 120): b"\5", (8, 10): EPS}
    parts = [b"\x1c" + bytes(key) + struct.pack(">H", len(v)) + v for key, v in fields.items()]
    return b"".join(parts)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
REFUSED: dict[str, bytes] = {
    "PostScript": EPS,
    "PostScript (EPS)": b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 32, len(EPS), 0, 0, 0, 0) + EPS,
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< >>\nendobj\n",
    "SVG": b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 40, 40, 72) + bytes(200),
    "EMF": b"\x01\0\0\0" + bytes(36) + b" EMF" + bytes(100),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40),
    "FlashPix": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(200),
    "GRIB": b"GRIB\0\0\0\x01" + bytes(200),
    "BUFR": b"BUFR\0\0\0\x04" + bytes(200),
    "MPEG": b"\0\0\x01\xb3\x01\x00\x10\x13" + bytes(100),
    "IPTC": eps_in_iptc(),
}
"""The start of the name in the message -> a file of that format."""


def damaged(name: str, data: bytes, seed: int = 0) -> Iterator[bytes]:
    """Versions of a file that are cut, overwritten, flipped, or all header."""
    rng = random.Random(f"{name}{seed}")
    yield from (data[:length] for length in (2, 16, 40, len(data) // 2, len(data) - 7))
    for _ in range(8):
        yield data[: rng.randrange(1, len(data))]
        flipped = bytearray(data)
        for _bit in range(rng.choice((1, 4, 30))):
            # The header decides more than what follows it.
            place = rng.randrange(min(len(data), rng.choice((64, 300, len(data)))))
            flipped[place] ^= 1 << rng.randrange(8)
        yield bytes(flipped)
    yield data[:30] + bytes(len(data) - 30 if len(data) < 10_000 else 500)


def broken() -> dict[str, bytes]:
    """For every format that is read a file that is cut in the middle; and some odd ones."""
    cut = {name: data[: len(data) // 2] for name, make in GOOD.items() if (data := make())}
    return cut | {"unknown-dds": unknown_dds(), "damaged-avif": damaged_avif(), "eps": EPS}
