"""Where the part is: a picture's foreground, so that drawn defects lie on it."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

__all__ = ["Part", "find_part"]

_SIDE = 256  # the longest side, in pixels, at which the part is looked for
_AREA = (0.05, 0.9)  # shares of the picture within which a part is believed
_FRAME_SHARE, _FRAME_CONTACTS = 0.2, 3  # of the frame: a part may cross it (a cable does), a texture goes on beyond it
_STEADY = 0.65  # the least intersection over union with the masks by other thresholds
_NOISE = 3.0  # a part differs by more standard deviations of the background's noise


@dataclasses.dataclass(frozen=True)
class Part:
    """What of a picture is the part.

    Attributes:
        mask: ``[H, W]`` bool, the part's pixels; all of them where nothing stands out from a background.
        plane: ``[3, 3]`` float32, the background's colour as a plane over the picture: for each channel what it is in
            the middle and how much it grows over the height and the width. None where there is no background.
        noise: standard deviation of the background around that plane, in grey levels.
    """

    mask: NDArray[np.bool_]
    plane: NDArray[np.float32] | None = None
    noise: float = 0.0

    @property
    def scale(self) -> float:
        """Side, in pixels, of the square with the part's area: what sizes of defects are measured by."""
        return float(np.sqrt(self.mask.sum()))

    def background(self, window: tuple[slice, slice], rng: np.random.Generator) -> NDArray[np.float32]:
        """Background ``[h, w, 3]`` as it might be behind the part in ``window``, with its noise.

        Raises:
            ValueError: the picture has no background.
        """
        if self.plane is None:
            raise ValueError("a part must stand before a background to be asked for it")
        colours = _terms(self.mask.shape)[window] @ self.plane
        return np.asarray(colours + rng.normal(0, self.noise, size=colours.shape).astype(np.float32))


def find_part(image: NDArray[np.uint8]) -> Part:
    """Estimate the foreground: what differs from the colours along the picture's frame.

    The background is a plane of colour fitted to the frame without outliers. Pixels' distances from it, on a
    logarithmic scale so that a dark side of a part counts beside its highlights, are divided by Otsu's threshold
    (1979); gaps are closed, holes filled, crumbs dropped. The whole picture is the part where that is not plausible:
    its area is below 5 % or above 90 %, it goes on beyond the frame in many places (textures, patterns), or other
    thresholds give another mask.

    Args:
        image: ``[H, W, 3]``.
    """
    height, width = image.shape[:2]
    whole = Part(np.ones((height, width), dtype=np.bool_))
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if min(size) < 8:
        return whole
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX), dtype=np.float32)
    frame = np.ones(small.shape[:2], dtype=np.bool_)
    ring = max(1, min(size) // 64)
    frame[ring:-ring, ring:-ring] = False
    plane, spread = _fit_plane(small, frame)
    distance = np.linalg.norm(small - _terms(frame.shape) @ plane, axis=2) / max(spread, 1.0)
    contrast = ndimage.gaussian_filter(np.log1p(distance), 1.0)
    threshold = max(_otsu(contrast), float(np.log1p(_NOISE)))
    mask = _cleaned(contrast > threshold)
    if not _AREA[0] <= mask.mean() <= _AREA[1] or not _ends_within(mask):
        return whole
    for factor in (0.8, 1.2):
        other = _cleaned(contrast > threshold * factor)
        if (mask & other).sum() < _STEADY * (mask | other).sum():
            return whole
    enlarged = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    full = np.asarray(enlarged) >= 128
    # Averaging to the small size took noise away: measure it where there is background, at full size.
    behind = ~ndimage.binary_dilation(full, iterations=3)
    residual = np.abs(image[behind] - (_terms(full.shape)[behind] @ plane)) if behind.any() else np.zeros(1)
    return Part(full, plane, float(1.4826 * np.median(residual)))


def _terms(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """``[H, W, 3]``: one, and the place of each pixel's middle along height and width, from -1 to 1."""
    y, x = ((2 * np.arange(side, dtype=np.float32) + 1) / side - 1 for side in shape)
    return np.stack(np.broadcast_arrays(np.float32(1), y[:, None], x[None, :]), axis=2)


def _fit_plane(image: NDArray[np.float32], frame: NDArray[np.bool_]) -> tuple[NDArray[np.float32], float]:
    """The plane through the colours of the frame that most of its pixels agree on, and their spread around it."""
    terms, colours = _terms(frame.shape)[frame], image[frame]
    kept = np.abs(colours - np.median(colours, axis=0)).sum(axis=1)
    kept = kept <= np.median(kept) * 2.5 + 1
    for _ in range(3):
        plane = np.linalg.lstsq(terms[kept], colours[kept], rcond=None)[0]
        residual = np.linalg.norm(colours - terms @ plane, axis=1)
        kept = residual <= np.median(residual) * 2.5 + 1
    return plane.astype(np.float32), float(np.median(residual))


def _otsu(values: NDArray[np.float32]) -> float:
    """The threshold that maximises the variance between the two classes (Otsu, 1979), from 128 bins."""
    counts, edges = np.histogram(values, bins=128)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = values.size - below
    sums = np.cumsum(counts * centres)
    gap = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below * above * gap**2)])


def _cleaned(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Gaps closed, holes filled, hairs and crumbs (components below a tenth of the largest) dropped."""
    reach = max(1, min(mask.shape) // 64)
    padded = np.pad(mask, 2 * reach, mode="edge")
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(padded, iterations=2 * reach))
    opened = ndimage.binary_opening(closed, iterations=reach)[2 * reach : -2 * reach, 2 * reach : -2 * reach]
    labels, _ = ndimage.label(opened)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= max(1, 0.1 * sizes.max()))[labels])


def _ends_within(mask: NDArray[np.bool_]) -> bool:
    """Whether the mask crosses the picture's frame in few, short places."""
    around = np.concatenate([mask[0], mask[1:, -1], mask[-1, -2::-1], mask[-2:0:-1, 0]])
    contacts = int((around & ~np.roll(around, 1)).sum())
    return bool(around.mean() <= _FRAME_SHARE) and contacts <= _FRAME_CONTACTS
