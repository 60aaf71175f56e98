"""Networks for inference as TorchScript, kept for the next process, which then needs no timm to build them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from importlib.metadata import version

import torch
from torch import Tensor, nn

from autoad.features.kept import keep, recall
from autoad.quiet import Quiet

__all__ = ["trace_network"]


def trace_network(create: Callable[[], nn.Module], example: Tensor, **key: object) -> nn.Module:
    """A network in evaluation mode whose weights are still to be loaded, as another process has traced it or anew.

    It has the same tensors, by the same names, as what ``create`` gives, and computes the same by the same kernels, on
    any number of inputs of the example's size, on a CPU.

    Args:
        create: builds the network.
        example: an input.
        **key: what decides how the network is built, beside timm's and torch's versions; JSON.
    """
    whole = {
        "network": 1,  # goes up when what is traced changes
        "timm": version("timm"),
        "torch": version("torch"),
        "example": list(example.shape),
        **key,
    }
    kept = recall(whole)
    network: nn.Module | None = None
    with Quiet():  # torch would rather have programs exported in another way
        if kept is not None:
            # What was kept may be no program; torch does not say so in a type.
            with contextlib.suppress(RuntimeError):
                network = torch.jit.load(io.BytesIO(kept))  # type: ignore[no-untyped-call]
        if network is None:
            with torch.no_grad():
                network = torch.jit.trace(create().eval(), example, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
            written = io.BytesIO()
            torch.jit.save(network, written)
            keep(whole, written.getvalue())
    return network.eval()
