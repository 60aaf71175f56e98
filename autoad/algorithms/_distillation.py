"""What the two teacher-student algorithms share: reproducible training, and networks kept as flat tensors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from autoad.algorithms._base import Inputs, Prediction, Progress
from autoad.algorithms._maps import enlarge, gaussian_blur, smooth_prediction
from autoad.algorithms.optimizers import Optimizer
from autoad.errors import TrialError

__all__ = [
    "STAGES",
    "Student",
    "combine_stages",
    "inference_batches",
    "load_network",
    "measure_stages",
    "network_tensors",
    "seeded",
]

STAGES = (1, 2, 3)
"""Backbone stages at which student and teacher are compared, in both papers."""

_STATISTICS_PICTURES = 64

Loss = Callable[[nn.Module, Tensor], Tensor]
"""Of a network and indices of pictures."""


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw CPU random numbers (initial weights) from ``seed``, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class Student:
    """A network that learns, with batch normalisation's statistics measured when it is looked at.

    Measuring them takes a fifth of an epoch of 60 pictures, and most epochs are followed by another one at once. From
    an epoch to the first look at it (by one thread) the pictures that were learnt from must stay as they are.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._unmeasured: tuple[Loss, tuple[Tensor, ...]] | None = None

    @property
    def network(self) -> nn.Module:
        """In evaluation mode, unless it has not learnt to the end of an epoch."""
        self.measure()
        return self._network

    def measure(self) -> None:
        """Measure the statistics, unless they have been since the last epoch."""
        if self._unmeasured is not None:
            _measure_statistics(self._network, *self._unmeasured)
            self._unmeasured = None

    def learn(
        self,
        optimizer: Optimizer,
        loss_of: Loss,
        *,
        pictures: int,
        batch_size: int,
        epochs: int,
        seed: int,
    ) -> Iterator[Progress]:
        """Minimise a loss; after each epoch yield with a network that may be looked at.

        Args:
            optimizer: over the network's parameters.
            loss_of: of the network, the mean loss of the pictures at the given int64 indices.
            pictures: how many there are to learn from.
            batch_size: pictures a step; see :func:`_batches`.
            epochs: passes over the pictures.
            seed: of their order.

        Raises:
            TrialError: the loss is no longer finite.
        """
        network, generator = self._network, torch.Generator().manual_seed(seed)
        for epoch in range(1, epochs + 1):
            self._unmeasured = None
            network.train()
            batches = _batches(pictures, batch_size, generator)
            total = 0.0
            for indices in batches:
                loss = loss_of(network, indices)
                value = loss.item()
                if not math.isfinite(value):
                    raise TrialError(f"training diverged: the loss is {value} in epoch {epoch}; lower lr")
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += value
            network.eval()
            self._unmeasured = loss_of, batches
            if epoch == epochs:
                self.measure()
            yield Progress(epoch, epochs, total / len(batches))


def _batches(pictures: int, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Shuffled indices in batches of nearly equal size, none below ``batch_size`` unless there are fewer pictures.

    A remainder is spread over the other batches: batch normalisation must not meet a last batch of one picture. For
    the same reason a single picture is shown twice.
    """
    order = torch.randperm(pictures, generator=generator)
    if pictures == 1:
        order = order.repeat(2)
    return order.tensor_split(max(1, pictures // batch_size))


def _measure_statistics(network: nn.Module, loss_of: Loss, batches: tuple[Tensor, ...]) -> None:
    """Set batch normalisation's running statistics to the mean over some batches with the weights as they are now.

    The usual moving average mixes statistics of weights many steps apart, and after a few steps is still mostly its
    initial value. At these learning rates its error was larger than what a defect changes: from one epoch to the next
    the image AUROC jumped between 0.5 and 0.9. (Wu and Johnson: Rethinking "Batch" in BatchNorm, 2021.)
    """
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not layers:
        return
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    seen = 0
    network.train()
    try:
        with torch.no_grad():
            for indices in batches:
                loss_of(network, indices)
                seen += len(indices)
                if seen >= _STATISTICS_PICTURES:
                    break
    finally:
        network.eval()


def inference_batches(batch: Inputs, device: str) -> Iterator[Inputs]:
    """Parts in which to score ``batch``: single pictures on a CPU.

    Matrix kernels round differently for different batch sizes, in bfloat16 visibly so; picture by picture, a score is
    the same to the last bit whatever else is in the batch, and on a CPU costs no more. A GPU needs larger parts.
    """
    return batch.batches(1 if torch.device(device).type == "cpu" else 32)


def measure_stages(
    batch: Inputs, device: str, distances_of: Callable[[Inputs], Sequence[Tensor]]
) -> tuple[list[Tensor], tuple[int, int]]:
    """Distances of teacher and student by stage, ``[N, h, w]`` each, and the pictures' size."""
    parts = [distances_of(part) for part in inference_batches(batch, device)]
    return [torch.cat(stage) for stage in zip(*parts, strict=True)], batch.image_size


def combine_stages(
    measured: tuple[list[Tensor], tuple[int, int]], sigma: float, *, product: bool, maps: bool
) -> Prediction:
    """The stages' distances, enlarged, multiplied or added, and smoothed; the score is the map's largest value.

    Args:
        measured: what :func:`measure_stages` gave.
        sigma: of the Gaussian that smooths the map, in pixels.
        product: whether stages are multiplied.
        maps: whether maps are wanted.
    """
    stages, size = measured

    def render(here: slice) -> Tensor:
        if product:
            whole = torch.stack([enlarge(stage[here], size, 0.0) for stage in stages])
            return gaussian_blur(whole.prod(0), sigma)
        return torch.stack([enlarge(stage[here], size, sigma) for stage in stages]).sum(0)

    return smooth_prediction(len(stages[0]), render, maps=maps)


def network_tensors(network: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Parameters and buffers as contiguous CPU tensors that share no memory with the network."""
    return {
        f"{prefix}.{name}": t.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, t in network.state_dict().items()
    }


def load_network(network: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Reverse of :func:`network_tensors`, into a network of the same architecture, left in evaluation mode."""
    start = f"{prefix}."
    network.load_state_dict({name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)})
    network.eval()
