"""From a picture file's bytes to pixels: the one way in which autoad sees a picture.

Every file becomes uint8 RGB by fixed rules that look at nothing but the file itself:

- EXIF orientation is applied; of several frames or pages the first is taken; colour profiles are not applied.
- Grey, 1-bit, palette, YCbCr and CMYK pictures are converted to RGB.
- Transparency is composited over black. A part that was cut out then stands on an empty background, and colours that an
  editor left behind under transparent pixels cannot reach a detector.
- 16-bit grey is scaled from its full range (65,535 becomes 255), never from the picture's own extremes: two
  pictures of one camera stay comparable. 12-bit cameras that store their values unshifted therefore look dark.
- 32-bit integer grey is scaled from its full range too; negative values become 0.
- Float grey has no full range: it is read as 0..1, or 0..255, or 0..65,535, whichever is the first to hold the
  picture's maximum. Negative and non-finite values become 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from autoad.data._picture import Picture
from autoad.errors import DatasetError, FileStoreError, ImageTooLargeError, UnreadableImageError
from autoad.quiet import Quiet

__all__ = ["MAX_PIXELS", "Inspection", "decode_image", "inspect_image", "load_image", "load_mask", "resize_image"]

MAX_PIXELS = 100_000_000
"""Largest number of pixels (height x width) that is decoded; the header is checked before any pixel is."""

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"RIFF")
_ORIENTATION_TAG = 0x0112
_BITS_PER_SAMPLE_TAG, _SAMPLE_FORMAT_TAG, _SIGNED = 258, 339, 2
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_quiet_pillow = Quiet(module=r"PIL\.")


def decode_image(data: bytes, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """Decode a PNG, JPEG, BMP, TIFF or WebP picture.

    Args:
        data: the file's bytes; the format is recognised by content.
        max_pixels: a picture with more is refused before it is decoded; ``MAX_PIXELS`` unless told otherwise.

    Returns:
        RGB pixels, ``[H, W, 3]`` uint8, upright; the module's docstring says how other modes become RGB.

    Raises:
        ImageTooLargeError: it has more than ``max_pixels``.
        UnreadableImageError: the file is empty, truncated, damaged or no such picture.
    """
    with _decoded(data, max_pixels) as image:
        return np.array(_to_rgb(image))


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize RGB pixels ``[H, W, 3]`` to ``size`` (height, width) by antialiased bilinear interpolation."""
    if image.shape[:2] == tuple(size):
        return image
    return np.array(_resized(Image.fromarray(image), size))


def load_image(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode a picture and resize it to ``size`` (height, width): ``resize_image(decode_image(data), size)``.

    Raises:
        UnreadableImageError: as :func:`decode_image`.
    """
    with _decoded(data) as image:
        return np.array(_resized(_to_rgb(image), size))


def load_mask(picture: Picture, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """The defective pixels of a picture.

    Every nonzero pixel of the mask file is defective (from 128 on in a JPEG, whose compression leaves faint
    noise). The mask is resized by nearest neighbour; a connected region that this would lose altogether, such as a
    hairline scratch, is kept by marking each cell that holds one of its pixels.

    Args:
        picture: whose mask is wanted.
        size: height and width in pixels.

    Returns:
        ``[height, width]`` bool, all False for a normal picture, None for a defective one without a mask.

    Raises:
        DatasetError: the mask cannot be read.
    """
    if picture.is_normal:
        return np.zeros(size, dtype=np.bool_)
    try:
        data = picture.read_mask()
        return None if data is None else _resize_mask(decode_mask(data), size)
    except (OSError, FileStoreError, UnreadableImageError) as error:
        raise DatasetError(f"mask {picture.mask} of {picture.path} must be readable but {error}") from error


def decode_mask(data: bytes) -> NDArray[np.bool_]:
    """The defective pixels ``[H, W]`` of a mask file at its own size; see :func:`load_mask`.

    Raises:
        UnreadableImageError: as :func:`decode_image`.
    """
    with _decoded(data) as image:
        values = np.asarray(image) if _is_grey(image) else np.asarray(_to_rgb(image)).max(axis=2)
        return np.asarray(_defective(values, image))


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a file is, as a picture and as a mask.

    Attributes:
        size: height and width in pixels; None if it cannot be decoded.
        fault: why it is no picture; None if it is one.
        marks: whether it marks anything where it is taken for a mask; None for what cannot be one, which ``fault``
            explains.
    """

    size: tuple[int, int] | None
    fault: str | None
    marks: bool | None


def inspect_image(data: bytes | memoryview) -> Inspection:
    """What a file is, found by decoding all of it once."""
    size, marks = None, None
    try:
        with _decoded(data) as image:
            size = (image.height, image.width)
            if _is_grey(image):  # a mask even where float values cannot be a picture's
                marks = bool(_defective(np.asarray(image), image).any())
            rgb = _to_rgb(image)
            if marks is None:
                marks = bool(_defective(np.asarray(rgb), image).any())
    except UnreadableImageError as error:
        return Inspection(size if marks is not None else None, str(error), marks)
    return Inspection(size, None, marks)


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L") or image.mode.startswith(("I", "F"))


def _defective(values: NDArray[Any], image: Image.Image) -> NDArray[np.bool_]:
    """Which of a mask's values mark a defect."""
    marked: NDArray[np.bool_] = values > 127 if image.format in ("JPEG", "MPO") else values != 0
    return marked


@contextlib.contextmanager
def _decoded(data: bytes | memoryview, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """The first frame, decoded and upright, in the file's own mode."""
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    if not data:
        raise UnreadableImageError("is empty (0 bytes)")
    try:
        with _quiet_pillow, Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ImageTooLargeError(
                    f"holds {image.width} x {image.height} pixels but at most {max_pixels:,} are decoded"
                )
            file_format = image.format
            image.load()
            upright = _upright(image)
            upright.format = file_format
            yield upright
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"holds more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        known = bytes(data[:8]).startswith(_SIGNATURES)
        reason = "is damaged or truncated" if known else "is no PNG, JPEG, BMP, TIFF or WebP picture"
        raise UnreadableImageError(reason) from error
    except Exception as error:  # Pillow's plugins raise whatever a damaged file makes them stumble over
        raise UnreadableImageError(f"is damaged or truncated ({error or type(error).__name__})") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged EXIF is no reason to refuse sound pixels
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info = dict(image.info)  # the transparent colour, where there is one
    return turned


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode.startswith("I"):
        return _grey(_from_integers(image))
    if mode == "F":
        return _grey(_from_floats(np.asarray(image)))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def _grey(values: NDArray[Any]) -> Image.Image:
    """``[H, W]`` values in 0..1 as a grey RGB picture."""
    return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")


def _from_integers(image: Image.Image) -> NDArray[Any]:
    values = np.asarray(image)
    if values.dtype.itemsize == 2:
        return values / np.float32(65535)
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE_TAG, (32,))[0]
    signed = tags.get(_SAMPLE_FORMAT_TAG, (1,))[0] == _SIGNED
    values = np.maximum(values, 0) if signed else values.view(np.uint32)
    return values / float(2 ** (bits - signed) - 1)


def _from_floats(values: NDArray[Any]) -> NDArray[Any]:
    values = np.where(np.isfinite(values), values, 0).clip(min=0)
    highest = float(values.max())
    for full in (1.0, 255.0, 65535.0):
        if highest <= full:
            return values / full
    raise UnreadableImageError(f"holds float values up to {highest:g} but they must lie in 0..1, 0..255 or 0..65535")


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=None)


def _resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    (height, width), (new_height, new_width) = mask.shape, size
    rows = ((np.arange(new_height) + 0.5) * height / new_height).astype(np.intp)
    columns = ((np.arange(new_width) + 0.5) * width / new_width).astype(np.intp)
    resized = mask[np.ix_(rows, columns)]
    if new_height >= height and new_width >= width:
        return resized
    from scipy import ndimage  # a quarter of a second that no process without masks should wait

    regions, count = ndimage.label(mask, structure=np.ones((3, 3)))
    kept = np.zeros(count + 1, dtype=np.bool_)
    kept[regions[np.ix_(rows, columns)]] = True
    kept[0] = True
    y, x = np.nonzero(~kept[regions])
    resized[y * new_height // height, x * new_width // width] = True
    return resized
