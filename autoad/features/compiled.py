"""What a detector has learnt as a network, compiled for scoring one picture at a time.

torch's eager kernels serve training. For a single picture OpenVINO is two to three times as fast: it merges batch
normalisation and activations into the convolutions before them, and brings the weights into the order that its kernels
read once instead of with every picture.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoad.errors import UsageError
from autoad.features._openvino import compile_kept, options_for

__all__ = ["CompiledNetwork", "compile_network"]

_NETWORK = 1  # goes up when what detectors compile changes


class CompiledNetwork:
    """A network for inputs of fixed shapes, in float32; any number of threads may call it.

    Args:
        compiled: an ``openvino.CompiledModel``.
        shapes: of its inputs.
    """

    def __init__(self, compiled: Any, shapes: Sequence[tuple[int, ...]]) -> None:
        self._compiled = compiled
        self._shapes = list(shapes)
        self._outputs = range(len(compiled.outputs))
        self._idle: deque[Any] = deque()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs, float32 on the CPU.

        Raises:
            UsageError: the inputs are not of the shapes that the network was compiled for.
        """
        if [tuple(one.shape) for one in inputs] != self._shapes:
            raise UsageError(
                f"inputs must be of the shapes that the network was compiled for, {self._shapes}, but got "
                f"{[tuple(one.shape) for one in inputs]}"
            )
        try:
            request = self._idle.pop()  # a request belongs to one thread until its outputs have been copied
        except IndexError:
            request = self._compiled.create_infer_request()
        request.infer([one.contiguous().numpy() for one in inputs], share_inputs=True)
        outputs = [torch.from_numpy(np.array(request.get_output_tensor(index).data)) for index in self._outputs]
        self._idle.append(request)
        return outputs


def compile_network(
    create: Callable[[], nn.Module],
    examples: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    *,
    threads: int | None = None,
    streams: int | None = None,
    **key: object,
) -> CompiledNetwork | None:
    """A network with its weights, compiled in float32: as another process has kept it, or anew.

    Args:
        create: builds the network, with its weights; called where none was kept.
        examples: its inputs, uint8 or float32; the shapes become fixed.
        weights: all that was learnt.
        threads: CPU threads; None for all.
        streams: pictures that are computed side by side; see :func:`autoad.features.create_engine`.
        **key: what decides how the network is built, beside ``weights``; JSON.

    Returns:
        None where OpenVINO is not installed.
    """
    try:
        import openvino  # noqa: F401 - asked whether it is there
    except ImportError:
        return None
    compiled = compile_kept(
        create,
        examples,
        options_for("float32", threads or os.cpu_count() or 1, streams),
        network=_NETWORK,
        inputs=[list(example.shape) for example in examples],
        weights=_digest(weights),
        **key,
    )
    return CompiledNetwork(compiled, [tuple(example.shape) for example in examples])


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
