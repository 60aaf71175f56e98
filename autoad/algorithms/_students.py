"""Layers of timm's networks for which torch has no fast way to train them on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Conv2dSame, get_same_padding
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["train_faster"]


def train_faster(network: nn.Module) -> None:
    """Replace layers below ``network`` by ones that compute the same, and train in less time on a CPU."""
    for name, child in list(network.named_children()):
        if isinstance(child, nn.Conv2d) and child.groups == child.in_channels > 1:
            setattr(network, name, _Depthwise(child))
        elif isinstance(child, nn.ReLU6) and child.inplace:
            setattr(network, name, _ReLU6())
        else:
            train_faster(child)


class _ReLU6(nn.Module):
    """``min(max(x, 0), 6)`` in place.

    torch's own keeps a copy of what it overwrites; the result tells as well where the gradient vanishes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return _Clamp.apply(x)  # type: ignore[no-any-return]
        return functional.relu6(x, inplace=True)


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.clamp_(0.0, 6.0)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, result, 0.0, 6.0)  # type: ignore[no-any-return]


class _Depthwise(nn.Module):
    """A depthwise convolution that trains in float32 on a CPU.

    The bfloat16 gradients of strided and of 5x5 depthwise convolutions have no fast CPU kernel: they alone took two
    thirds of a step of EfficientNet-Lite0.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        known = type(convolution) in (nn.Conv2d, Conv2dSame) and not isinstance(convolution.padding, str)
        plain = convolution.bias is None and convolution.dilation == (1, 1) and convolution.padding_mode == "zeros"
        slow = isinstance(convolution, Conv2dSame) or convolution.kernel_size[1] > _COLUMNS
        self._own = known and plain and slow

    def forward(self, x: Tensor) -> Tensor:
        convolution = self.convolution
        if not self.training or x.device.type not in ("cpu", "meta"):  # the second to find out what it takes
            return convolution(x)  # type: ignore[no-any-return]
        with torch.autocast("cpu", enabled=False):
            if not self._own:
                return convolution(x.float()).to(x.dtype)  # type: ignore[no-any-return]
            padding = _padding(convolution, x)
            y = _DepthwiseConvolution.apply(x.float(), convolution.weight, convolution.stride, padding)
            return y.to(x.dtype)  # type: ignore[no-any-return]


_COLUMNS = 3
"""Columns of a depthwise kernel whose gradient oneDNN finds fast; a fourth costs it ten times as much."""


class _DepthwiseConvolution(torch.autograd.Function):
    """``[N, C, H, W]``, with zeros around it, by a kernel ``[C, 1, h, w]``.

    The gradient of a kernel five wide is found in two parts of three columns: in a quarter to a half of the time. Zeros
    are put around what is copied once; torch fills all of it with zeros first.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: Sequence[int]) -> Tensor:
        left, right, above, below = padding
        count, channels, height, width = x.shape
        size = (count, channels, above + height + below, left + width + right)
        padded = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for side, start, length in ((2, 0, above), (2, above + height, below), (3, 0, left), (3, left + width, right)):
            padded.narrow(side, start, length).zero_()
        padded[:, :, above : above + height, left : left + width] = x
        ctx.save_for_backward(padded, weight)
        ctx.stride, ctx.here = stride, (slice(above, above + height), slice(left, left + width))
        return torch.conv2d(padded, weight, None, stride, 0, 1, channels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        padded, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        before, _ = _gradients(gradient, padded, weight, ctx.stride, of_input=True)
        of_weight, columns = torch.empty_like(weight), weight.shape[3]
        width = min(columns, _COLUMNS)
        span = (gradient.shape[3] - 1) * ctx.stride[1] + width
        for start in (*range(0, columns - width, width), columns - width):
            part, seen = slice(start, start + width), padded.narrow(3, start, span)
            _, of_weight[..., part] = _gradients(gradient, seen, weight[..., part], ctx.stride, of_input=False)
        return before[:, :, ctx.here[0], ctx.here[1]], of_weight, None, None


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], *, of_input: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of an unpadded depthwise convolution: its input's or its kernel's; the other one means nothing."""
    wanted = [of_input, not of_input, False]
    found = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, [0, 0], [1, 1], False, [0, 0], x.shape[1], wanted
    )
    return found[0], found[1]


def _padding(convolution: nn.Conv2d, x: Tensor) -> tuple[int, int, int, int]:
    """Zeros left and right of, above and below ``x``."""
    if not isinstance(convolution, Conv2dSame):
        above, left = map(int, convolution.padding)
        return left, left, above, above
    high, wide = (
        get_same_padding(length, kernel, stride, 1)
        for length, kernel, stride in zip(x.shape[2:], convolution.kernel_size, convolution.stride, strict=True)
    )
    return wide // 2, wide - wide // 2, high // 2, high - high // 2
