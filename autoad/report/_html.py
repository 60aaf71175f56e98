"""What every page is made with; a page holds its pictures and style sheets itself, so that it needs no network."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
import markupsafe
import numpy as np
import numpy.typing as npt
from PIL import Image

from autoad.errors import UsageError
from autoad.files import write_atomically

__all__ = ["data_address", "packaged", "reduced", "templates", "write_page"]

_QUALITY = 74


def packaged(name: str) -> markupsafe.Markup:
    """A style sheet or script of ours, as it is."""
    return markupsafe.Markup((Path(__file__).parent / "templates" / name).read_text())  # noqa: S704 - our own file


def templates() -> jinja2.Environment:
    """Our templates; what they are given stands in the page as text, whatever it holds."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("autoad.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(file: Path, page: str, what: str) -> None:
    """Write a page, and the folders above it.

    Raises:
        UsageError: it cannot be written; says of ``what`` it is the page.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, page.encode())
    except OSError as error:
        raise UsageError(
            f"cannot write the {what} to {str(file)!r} ({error.strerror}); choose another --output"
        ) from error


def reduced(image: npt.NDArray[np.uint8], longest_side: int) -> npt.NDArray[np.uint8]:
    """A picture ``[H, W, 3]`` made smaller, if its longer side is longer than that many pixels."""
    drawn = Image.fromarray(image)
    drawn.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return np.asarray(drawn)


def data_address(image: npt.NDArray[np.uint8]) -> str:
    """A picture ``[H, W, 3]`` as an address that holds it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
