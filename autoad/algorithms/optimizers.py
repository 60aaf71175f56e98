"""Optimisers that take torch's own fused kernels and nothing else.

The first optimiser of ``torch.optim`` imports torch's compiler: two seconds and 170 MB in every process that trains.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["SGD", "Adam", "Optimizer"]

_EPSILON = 1e-8


class Optimizer(abc.ABC):
    """Changes parameters by their gradients; those without a gradient stay as they are.

    Args:
        parameters: float32 leaves, all on one device and already in the memory format that they keep.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change each parameter that has a gradient."""
        given = [(place, one, one.grad) for place, one in enumerate(self.parameters) if one.grad is not None]
        if given:
            gradients = [_in_order_of(one, gradient) for _, one, gradient in given]
            self._change([place for place, _, _ in given], [one for _, one, _ in given], gradients)

    @abc.abstractmethod
    def _change(self, places: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Change some parameters, at least one, which have these places among all of them."""


def _in_order_of(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient, with numbers in memory as the parameter's: the kernels for CPUs look at nothing else."""
    same = gradient.stride() == parameter.stride()
    return gradient if same else torch.empty_like(parameter).copy_(gradient)


class SGD(Optimizer):
    """Gradient descent with momentum, and weight decay in the gradient, as ``torch.optim.SGD``."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, *, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters)
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self._moving = [torch.zeros_like(parameter) for parameter in self.parameters]

    def _change(self, places: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        torch._fused_sgd_(  # the first time, too: momentum begins at zero
            parameters,
            gradients,
            [self._moving[place] for place in places],
            weight_decay=self._weight_decay,
            momentum=self._momentum,
            lr=self._lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )


class Adam(Optimizer):
    """Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, as ``torch.optim.Adam``.

    With a weight decay, that of Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, as
    ``torch.optim.AdamW``.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters)
        self._lr, self._betas, self._weight_decay = lr, betas, weight_decay
        self._means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._steps = [torch.zeros((), device=parameter.device) for parameter in self.parameters]

    def _change(self, places: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        steps = [self._steps[place] for place in places]
        torch._foreach_add_(steps, 1.0)
        torch._fused_adamw_(
            parameters,
            gradients,
            [self._means[place] for place in places],
            [self._squares[place] for place in places],
            [],
            steps,
            lr=self._lr,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=self._weight_decay,
            eps=_EPSILON,
            amsgrad=False,
            maximize=False,
        )
