"""Pictures and style sheets that a page holds itself, so that it needs no network."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import markupsafe
import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["data_address", "packaged", "reduced"]

_QUALITY = 74


def packaged(name: str) -> markupsafe.Markup:
    """A style sheet or script of ours, as it is."""
    return markupsafe.Markup((Path(__file__).parent / "templates" / name).read_text())  # noqa: S704 - our own file


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
