"""Networks compiled by OpenVINO for this CPU, as another process has kept them or anew."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from autoad.features.backbones import NormalisedBackbone
from autoad.features.kept import keep, recall
from autoad.features.weights import Weights
from autoad.quiet import Quiet

__all__ = ["compile_backbone", "compile_kept", "options_for"]

_CONVERSION = 3  # goes up when NormalisedBackbone or _convert change
_THREADS_A_STREAM = 4
_LOCK = threading.Lock()


def options_for(precision: str, threads: int, streams: int | None) -> dict[str, Any]:
    """OpenVINO's options.

    Args:
        precision: ``"float32"`` or ``"bfloat16"``.
        threads: of the CPU.
        streams: pictures that are computed side by side; None for one with every four threads.
    """
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": min(threads, streams or max(1, threads // _THREADS_A_STREAM)),
    }


def compile_backbone(
    weights: Weights, stages: Sequence[int], image_size: tuple[int, int], precision: str, options: dict[str, Any]
) -> Any:
    """The backbone compiled for one picture ``[1, H, W, 3]`` uint8; see :func:`compile_kept`."""
    return compile_kept(
        lambda: NormalisedBackbone(weights.backbone, stages, weights),
        [torch.zeros(1, *image_size, 3, dtype=torch.uint8)],
        options,
        backbone=weights.backbone,
        weights=weights.identity,
        stages=list(stages),
        image_size=list(image_size),
        precision=precision,
    )


def compile_kept(
    create: Callable[[], nn.Module], examples: Sequence[Tensor], options: dict[str, Any], **key: object
) -> Any:
    """A network compiled for this CPU: as another process has kept it, or anew.

    What is kept is the graph after OpenVINO has fitted it to the CPU; threads and streams are no part of it.

    Args:
        create: builds the network, with its weights.
        examples: its inputs, uint8 or float32, whose shapes become fixed.
        options: of OpenVINO.
        **key: what decides the network, beside versions and the CPU; JSON.

    Returns:
        An ``openvino.CompiledModel``.
    """
    import openvino

    core = openvino.Core()
    whole = {
        "engine": "openvino",
        "version": openvino.__version__,
        "cpu": [core.get_property("CPU", "FULL_DEVICE_NAME"), torch.backends.cpu.get_cpu_capability()],
        "capabilities": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        "converted by": [version("torch"), version("timm"), _CONVERSION],
        **key,
    }
    with _LOCK:  # torch does not trace in several threads, and whoever comes second finds what the first has kept
        kept = recall(whole)
        if kept is not None:
            try:
                return core.import_model(io.BytesIO(kept), "CPU", options)
            except RuntimeError:  # OpenVINO would rather not, and does not say so in a type
                pass
        compiled = core.compile_model(_convert(create().eval(), examples), "CPU", options)
        exported = io.BytesIO()
        compiled.export_model(exported)
        keep(whole, exported.getvalue())
        return compiled


def _convert(network: nn.Module, examples: Sequence[Tensor]) -> Any:
    """A network as an OpenVINO model for inputs of fixed shapes.

    The front end is called directly: ``openvino.convert_model`` would report its use over the network.
    """
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.no_grad(), Quiet():  # sizes that the tracer warns of are fixed anyway
        # Not frozen: torch would never let go of the weights that freezing turns into constants.
        traced = torch.jit.trace(network, tuple(examples), check_trace=False)  # type: ignore[no-untyped-call]
    decoder = TorchScriptPythonDecoder(traced)  # the front end does not keep it alive
    front_end = FrontEndManager().load_by_framework("pytorch")
    model = front_end.convert(front_end.load(decoder))
    types = {torch.uint8: openvino.Type.u8, torch.float32: openvino.Type.f32}
    for parameter, example in zip(model.get_parameters(), examples, strict=True):
        parameter.set_element_type(types[example.dtype])
        parameter.set_partial_shape(openvino.PartialShape(list(example.shape)))
    model.validate_nodes_and_infer_types()
    return model
