"""What a detector has learnt as a network, compiled for scoring one picture at a time.

torch's eager kernels serve training. For a single picture OpenVINO is up to twice as fast: it merges batch
normalisation and activations into the convolutions before them, and brings the weights into the order that its kernels
read once instead of with every picture.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoad.errors import UsageError
from autoad.features._openvino import compile_kept, options_for

__all__ = ["CompiledNetwork", "compile_network"]

_logger = logging.getLogger(__name__)


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
        # Copied in: a request would keep what it shares, and with it the batch that a picture is part of.
        request.infer([one.contiguous().numpy() for one in inputs], share_inputs=False)
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
        **key: what decides how the network is built, beside ``weights`` and the code of the algorithms; JSON.

    Returns:
        None where OpenVINO is not installed, or cannot run the network.
    """
    try:
        import openvino  # noqa: F401 - asked whether it is there
    except ImportError:
        return None
    try:
        compiled = compile_kept(
            create,
            examples,
            options_for("float32", threads or os.cpu_count() or 1, streams),
            code=_code(),
            inputs=[[str(example.dtype), *example.shape] for example in examples],
            weights=_digest(weights),
            **key,
        )
    except _conversion_errors() as error:
        _logger.warning("OpenVINO cannot run a network of %s, torch does: %s", key, error)
        return None
    return CompiledNetwork(compiled, [tuple(example.shape) for example in examples])


def _conversion_errors() -> tuple[type[Exception], ...]:
    """What OpenVINO's front end raises; none of it is a ``RuntimeError``."""
    from openvino import frontend

    return (
        frontend.GeneralFailure,
        frontend.InitializationFailure,
        frontend.NotImplementedFailure,
        frontend.OpConversionFailure,
        frontend.OpValidationFailure,
    )


@functools.cache
def _code() -> str:
    """Changes whenever the code does that networks are built by."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted([*(package / "algorithms").glob("*.py"), package / "features" / "backbones.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
