"""The backbone compiled by OpenVINO, as another process has kept it or anew."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from autoad.features.backbones import NormalisedBackbone
from autoad.features.kept import keep, recall
from autoad.features.weights import Weights
from autoad.quiet import Quiet

__all__ = ["compile_backbone"]

_CONVERSION = 2  # goes up when NormalisedBackbone or _convert change


def compile_backbone(
    weights: Weights, stages: Sequence[int], image_size: tuple[int, int], precision: str, options: dict[str, Any]
) -> Any:
    """The backbone compiled for this CPU: as another process has kept it, or anew.

    What is kept is the graph after OpenVINO has fitted it to the CPU; threads and streams are no part of it.
    """
    import openvino

    core = openvino.Core()
    key = {
        "engine": "openvino",
        "version": openvino.__version__,
        "cpu": [core.get_property("CPU", "FULL_DEVICE_NAME"), torch.backends.cpu.get_cpu_capability()],
        "capabilities": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        "converted by": [version("torch"), version("timm"), _CONVERSION],
        "backbone": weights.backbone,
        "weights": weights.identity,
        "stages": list(stages),
        "image_size": list(image_size),
        "precision": precision,
    }
    kept = recall(key)
    if kept is not None:
        try:
            return core.import_model(io.BytesIO(kept), "CPU", options)
        except RuntimeError:  # OpenVINO would rather not, and does not say so in a type
            pass
    compiled = core.compile_model(_convert(weights, stages, image_size), "CPU", options)
    exported = io.BytesIO()
    compiled.export_model(exported)
    keep(key, exported.getvalue())
    return compiled


def _convert(weights: Weights, stages: Sequence[int], image_size: tuple[int, int]) -> Any:
    """The backbone as an OpenVINO model, for one picture of a fixed size.

    The front end is called directly: ``openvino.convert_model`` would report its use over the network.
    """
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    network = NormalisedBackbone(weights.backbone, stages, weights).eval()
    example = torch.zeros(1, *image_size, 3, dtype=torch.uint8)
    with torch.no_grad(), Quiet():  # sizes that the tracer warns of are fixed anyway
        traced = torch.jit.freeze(torch.jit.trace(network, example, check_trace=False))  # type: ignore[no-untyped-call]
    decoder = TorchScriptPythonDecoder(traced)  # the front end does not keep it alive
    front_end = FrontEndManager().load_by_framework("pytorch")
    model = front_end.convert(front_end.load(decoder))
    parameter = model.get_parameters()[0]
    parameter.set_element_type(openvino.Type.u8)
    parameter.set_partial_shape(openvino.PartialShape(list(example.shape)))
    model.validate_nodes_and_infer_types()
    return model
