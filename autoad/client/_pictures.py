"""Pictures as callers have them: files, bytes, PIL images, NumPy arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import sys
from collections.abc import AsyncIterable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from autoad.errors import UnreadableImageError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

__all__ = ["Encoded", "Picture", "Pictures", "encode_picture"]

Picture: TypeAlias = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, "Image.Image", "npt.NDArray[np.uint8]"
]
"""A path, an encoded picture's bytes, a PIL image, or a NumPy array ``[H, W]`` or ``[H, W, 1|3|4]`` of uint8, RGB."""
Pictures: TypeAlias = Union[str, "os.PathLike[str]", Iterable[Picture], AsyncIterable[Picture]]
"""A folder, or several pictures."""

_LOSSLESS = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_CONVERTED = frozenset({"PA", "RGBX", "CMYK", "YCbCr"})


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A picture as it is sent.

    Attributes:
        name: the path, or what was given instead.
        path: of the file; None for a picture that is none.
        sha256: of the bytes.
        data: the bytes; None for a file, which can be read again.
    """

    name: str
    path: Path | None
    sha256: str
    data: bytes | None

    def read(self) -> bytes:
        """The bytes that were sent.

        Raises:
            UnreadableImageError: the file is gone, or another one than it was.
        """
        if self.data is not None or self.path is None:
            return self.data or b""
        data = _read(self.path)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise UnreadableImageError(f"{self.path} has changed since it was scored: score it again")
        return data


def encode_picture(picture: Picture, name: str) -> tuple[Encoded, bytes]:
    """A picture's encoded bytes; pixels are sent as PNG, which loses nothing.

    Args:
        picture: whatever is one.
        name: of a picture that is no file.

    Raises:
        UnreadableImageError: a file cannot be read, or there is nothing in it.
        UsageError: it is of another type, shape or mode.
    """
    path = None
    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        name, data = str(picture), _read(path)
    elif isinstance(picture, bytes | bytearray | memoryview):
        data = bytes(picture)
        if not data:
            raise UnreadableImageError(f"{name} is empty (0 bytes)")
    else:
        data = _encode(picture)
    return Encoded(name, path, hashlib.sha256(data).hexdigest(), None if path else data), data


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"{path} cannot be read ({error.strerror})") from error
    if not data:
        raise UnreadableImageError(f"{path} is empty (0 bytes)")
    return data


def _encode(picture: Any) -> bytes:
    # Whoever has such an object has imported its library already.
    numpy, pil = sys.modules.get("numpy"), sys.modules.get("PIL.Image")
    if numpy is not None and isinstance(picture, numpy.ndarray):
        image = _from_array(picture)
    elif pil is not None and isinstance(picture, pil.Image):
        image = _from_image(picture)
    else:
        raise UsageError(
            f"a picture must be a path, bytes, a PIL image or a NumPy array but got {type(picture).__name__}"
        )
    buffer = io.BytesIO()
    try:
        image.save(buffer, "PNG", compress_level=1)
    except OSError as error:  # Pillow reads a file when its pixels are asked for
        raise UnreadableImageError(f"the PIL image cannot be read ({error})") from error
    return buffer.getvalue()


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    try:
        import numpy as np
        from PIL import Image
    except ImportError as error:
        raise UsageError(
            "a NumPy array is sent as PNG, for which Pillow must be installed: pip install pillow"
        ) from error
    if array.dtype == np.bool_:  # of a mask
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8:
        raise UsageError(f"a picture must be an array of uint8, from 0 to 255, but got {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or 0 in array.shape:
        raise UsageError(f"a picture must be an array [H, W] or [H, W, 1, 3 or 4] (RGB) but got {list(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(array))


def _from_image(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    if image.mode not in _LOSSLESS | _CONVERTED:
        raise UsageError(
            f"a PIL image must be of 8 bits, or grey of 16, but has mode {image.mode!r}: convert it to RGB"
        )
    with contextlib.suppress(Exception):  # damaged EXIF is no reason to refuse sound pixels
        image = ImageOps.exif_transpose(image)  # as a server does with a file
    return image if image.mode in _LOSSLESS else image.convert("RGBA" if image.mode == "PA" else "RGB")
