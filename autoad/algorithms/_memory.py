"""Estimating, without allocating, how much memory a detector takes.

Networks are built and run on torch's ``meta`` device, where tensors have shapes but no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from autoad.algorithms._base import Runtime, Shapes

__all__ = ["SCRATCH", "feature_bytes", "finishing_bytes", "training_bytes", "weight_bytes"]

SCRATCH = 8 << 20
"""Bytes that kernels, their caches and the allocator take whatever the sizes."""

_PICTURES = 16


def feature_bytes(shapes: Shapes, width: int = 4) -> int:
    """Bytes of one picture's features with ``width`` bytes a number."""
    return width * sum(math.prod(shape) for shape in shapes.values())


def finishing_bytes(scored: int, image_size: tuple[int, int], images: int = 2, width: int = 4) -> int:
    """Bytes of the maps of ``scored`` pictures, and of ``images`` as large ones beside those being finished."""
    pixels = math.prod(image_size)
    return 4 * scored * pixels + width * images * min(scored, _PICTURES) * pixels


def weight_bytes(*networks: nn.Module) -> int:
    """Bytes of the parameters and buffers of some networks."""
    tensors = (t for network in networks for t in (*network.parameters(), *network.buffers()))
    return sum(tensor.nbytes for tensor in tensors)


def training_bytes(
    networks: Sequence[nn.Module], losses: Callable[[], object], runtime: Runtime, *, moments: int
) -> int:
    """Bytes that training takes: weights, their gradients, the optimiser's moments, and what a step keeps.

    Args:
        networks: on the ``meta`` device.
        losses: runs a step's forward passes on ``meta`` tensors and returns what their graphs hang on.
        runtime: whether activations take two bytes a number or four.
        moments: tensors that the optimiser keeps beside each weight.
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # None would ask for the number of batches, which meta tensors cannot say
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = losses()
    activations = [tensor.untyped_storage().nbytes() for tensor in kept.values()]
    del graph
    # The backward pass adds the gradients of the largest ones.
    share = 0.6 if runtime.precision == "bfloat16" else 1.0
    return weight_bytes(*networks) * (2 + moments) + int(share * (sum(activations) + 3 * max(activations, default=0)))
