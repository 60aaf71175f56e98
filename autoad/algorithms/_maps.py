"""Operations on anomaly maps that several algorithms share."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from autoad.algorithms._base import Prediction

__all__ = ["enlarge", "gaussian_blur", "smooth_prediction", "upsample"]

_PICTURES = 16
"""Maps finished at a time, so that they stay in cache."""


def gaussian_blur(maps: Tensor, sigma: float) -> Tensor:
    """Smooth ``[N, H, W]`` maps with a Gaussian of ``sigma`` pixels, cut at four sigma, borders mirrored.

    ``sigma`` 0 returns the maps unchanged. Maps smaller than the kernel repeat their border instead. A pass over rows
    and one over columns are two products with banded matrices: on a CPU nine times as fast as a convolution with one
    channel, to which convolution kernels are not tuned.
    """
    if sigma <= 0:
        return maps
    height, width = maps.shape[-2:]
    mirror = min(height, width) > int(4 * sigma + 0.5)
    rows, columns = (_smoothing(size, sigma, mirror, maps.dtype, maps.device) for size in (height, width))
    return rows @ maps @ columns.T


def _smoothing(size: int, sigma: float, mirror: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[size, size]`` matrix whose row ``i`` holds what the values around ``i`` contribute to its blurred value."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=device)
    kernel = torch.exp(-0.5 * (offsets.to(dtype) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    source = torch.arange(size, device=device)[:, None] + offsets
    if mirror:
        source = source.abs()
        source = torch.where(source > size - 1, 2 * (size - 1) - source, source)
    else:
        source = source.clamp(0, size - 1)
    matrix = torch.zeros(size, size, dtype=dtype, device=device)
    return matrix.scatter_add_(1, source, kernel.expand(size, -1).contiguous())


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``[N, h, w]`` maps bilinearly to ``size`` (height, width)."""
    return functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def enlarge(maps: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Resize ``[N, h, w]`` maps bilinearly to ``size`` and smooth them: ``gaussian_blur(upsample(maps, size), sigma)``.

    Both are linear along rows and columns, so one pair of matrices does it from the small maps, several times faster
    than one after the other.
    """
    mirror = min(size) > int(4 * sigma + 0.5)
    rows, columns = (
        _enlarging(*sides, sigma, mirror, maps.dtype, maps.device) for sides in zip(maps.shape[-2:], size, strict=True)
    )
    return rows @ maps @ columns.T


@functools.lru_cache(maxsize=32)
def _enlarging(
    source: int, target: int, sigma: float, mirror: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``[target, source]`` matrix that resizes a line of values and smooths it.

    Kept, for one picture's map is enlarged sooner than the matrix is made.
    """
    # Made in inference mode it could not be used outside of it.
    with torch.inference_mode(False):
        each = torch.eye(source, dtype=dtype, device=device)
        matrix = functional.interpolate(each[:, None], size=target, mode="linear", align_corners=False)[:, 0].T
        return matrix if sigma <= 0 else _smoothing(target, sigma, mirror, dtype, device) @ matrix


def smooth_prediction(count: int, render: Callable[[slice], Tensor], *, maps: bool) -> Prediction:
    """Maps of ``count`` pictures, made by ``render`` a few at a time, and their largest values as scores.

    Args:
        count: number of pictures.
        render: finished maps ``[n, H, W]`` of the pictures in a slice.
        maps: whether to keep them.
    """
    scores, whole = [], None
    for start in range(0, count, _PICTURES):
        here = slice(start, min(start + _PICTURES, count))
        part = render(here)
        scores.append(part.flatten(1).amax(1).cpu())
        if maps:
            whole = torch.empty(count, *part.shape[1:]) if whole is None else whole
            whole[here] = part
    return Prediction(torch.cat(scores), whole)
