"""HTML pages from the templates and style sheets in ``assets``."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from mwa_export.inputs.content import Content
from mwa_export.inputs.decode import decode_picture
from mwa_export.report.text import printable
from mwa_export.version import __version__

THUMBNAIL = 160  # pixels of the longer side, in the parity report
_QUALITY = 80  # of the JPEG


class Fact(NamedTuple):
    """One figure at the top of a page: its name, its value, and what it is compared with."""

    name: str
    value: str
    detail: str


def rendered(
    template: str, styles: Sequence[str], filters: Mapping[str, Callable[..., str]], **values: Any
) -> str:
    """Render a template to printable text. Values are escaped; a missing value is an error.

    Args:
        template: name of a file in ``assets``.
        styles: names of style sheets in ``assets``, in order.
        filters: additional Jinja filters by name.
        values: variables of the template.
    """
    import jinja2

    assets = files("mwa_export") / "assets"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (assets / name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(filters)
    css = "".join((assets / name).read_text(encoding="utf-8") for name in styles)
    page: str = environment.get_template(template).render(css=css, version=__version__, **values)
    return "\n".join(map(printable, page.split("\n")))


def thumbnail(picture: Content, longest: int) -> bytes:
    """Encode an image as a small JPEG; the longer side has at most ``longest`` pixels.

    Raises:
        ImageError: the image cannot be read or decoded.
    """
    small = decode_picture(picture)
    small.thumbnail((longest, longest))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
