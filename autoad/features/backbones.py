"""timm networks as pyramids of feature maps, addressed by stage.

Stage ``s`` of any backbone is its output at stride ``2 ** (s + 1)``: 0 is stride 2 (where the network has it), 1-4 are
strides 4, 8, 16 and 32. Names are timm's, with or without the tag of the weights (``resnet18``, ``resnet18.a1_in1k``).
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoad.errors import UsageError, WeightsError
from autoad.features.kept import remember
from autoad.features.weights import Weights, find_weights, load_weights

__all__ = ["NormalisedBackbone", "backbone_stages", "create_backbone", "feature_shapes", "stage_indices"]


class _Pyramid(nn.Module):
    """A timm feature extractor whose outputs are NCHW and in the order asked for."""

    def __init__(self, network: nn.Module, order: Sequence[int], *, channels_last: bool) -> None:
        super().__init__()
        self.network = network
        self._order = tuple(order)
        self._channels_last = channels_last

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.network(images)
        if self._channels_last:
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        return [maps[index] for index in self._order]


@functools.lru_cache(maxsize=64)
def _outputs(name: str) -> tuple[tuple[int, int, int], ...]:
    """Stage, channels and timm's output index of each map of the pyramid."""
    outputs = remember("outputs", lambda: _ask_outputs(name), backbone=name)
    return tuple((stage, channels, index) for stage, channels, index in outputs)


def _ask_outputs(name: str) -> list[tuple[int, int, int]]:
    import timm  # here and below: two seconds that a process which only scores should not wait

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UsageError(f"unknown backbone {name!r}.{hint} Backbones are named as in timm.list_models().")
    try:
        with torch.device("meta"):
            info = timm.create_model(name, features_only=True, pretrained=False).feature_info
    except Exception as error:  # whatever the network's own code stumbles over when asked for maps that it has not
        raise UsageError(f"backbone {name!r} gives no pyramid of feature maps ({error}); choose another") from error
    strides, channels = info.reduction(), info.channels()
    if len(set(strides)) != len(strides) or any(stride & (stride - 1) for stride in strides):
        raise UsageError(
            f"backbone {name!r} must have feature maps at strides that are different powers of two but has them at "
            f"{strides}; choose one with a pyramid, for example a ResNet, EfficientNet or ConvNeXt"
        )
    return [
        (stride.bit_length() - 2, width, index)
        for index, stride, width in zip(info.out_indices, strides, channels, strict=True)
        if stride >= 2
    ]


@functools.lru_cache(maxsize=64)
def _channels_by_stage(name: str) -> dict[int, int]:
    return {stage: channels for stage, channels, _ in _outputs(name)}


def backbone_stages(name: str) -> dict[int, int]:
    """Number of channels by stage; nothing is downloaded.

    Raises:
        UsageError: timm has no such network, or the network has no pyramid (a plain vision transformer).
    """
    return dict(_channels_by_stage(name))


def create_backbone(name: str, stages: Sequence[int], *, pretrained: bool) -> nn.Module:
    """A network that maps ``[B, 3, H, W]`` normalised pictures to a list of ``[B, C, h, w]`` maps, in ``stages`` order.

    Layers behind the last stage asked for are left out.

    Args:
        name: timm name.
        stages: which maps are wanted.
        pretrained: True for the weights that :func:`find_weights` gives, frozen and in evaluation mode; False for
            random ones, trainable, in training mode.

    Raises:
        UsageError: no such backbone, or it lacks a stage.
        WeightsError: the weights cannot be reached or do not fit the network.
    """
    chosen = stage_indices(name, stages)
    network = _create(name, sorted(chosen))
    if pretrained:
        weights = find_weights(name)
        _load(network, load_weights(weights), f"{weights.backbone} weights {weights.path}")
        network.requires_grad_(False).eval()
    _cut(network)
    channels_last = str(getattr(network, "output_fmt", "")).endswith("NHWC")
    pyramid = _Pyramid(network, [sorted(chosen).index(index) for index in chosen], channels_last=channels_last)
    return pyramid.train(not pretrained)


class NormalisedBackbone(nn.Module):
    """From uint8 ``[B, H, W, 3]`` to a list of float ``[B, h * w, C]``: what an engine computes.

    Pixels are one axis, because OpenVINO reorders maps of four axes on one thread, which takes an eighth of the time.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, backbone: str, stages: Sequence[int], weights: Weights) -> None:
        super().__init__()
        self.pyramid = create_backbone(backbone, stages, pretrained=True)
        self.register_buffer("mean", 255 * torch.tensor(weights.mean).view(1, 3, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(weights.std).view(1, 3, 1, 1)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of the stages in their order."""
        pixels = images.permute(0, 3, 1, 2).float()
        return tuple(one.flatten(2).transpose(1, 2) for one in self.pyramid((pixels - self.mean) * self.scale))


@functools.lru_cache(maxsize=256)
def feature_shapes(name: str, image_size: tuple[int, int]) -> Mapping[int, tuple[int, int, int]]:
    """Height, width and channels of each stage's map for pictures of ``image_size``; nothing is computed.

    Raises:
        UsageError: no such backbone, or it cannot take pictures of that size.
    """
    shapes = remember("shapes", lambda: _compute_shapes(name, image_size), backbone=name, image_size=image_size)
    return {stage: (height, width, channels) for stage, height, width, channels in shapes}


def _compute_shapes(name: str, image_size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    stages = [stage for stage, _, _ in _outputs(name)]
    try:
        with torch.device("meta"), torch.inference_mode():
            maps = create_backbone(name, stages, pretrained=False).eval()(torch.empty(1, 3, *image_size))
    except Exception as error:  # networks refuse a size in their own ways: assertions, failed broadcasts, ...
        height, width = image_size
        raise UsageError(f"backbone {name!r} cannot take pictures of {height} x {width} pixels ({error})") from error
    return [(stage, one.shape[2], one.shape[3], one.shape[1]) for stage, one in zip(stages, maps, strict=True)]


def stage_indices(name: str, stages: Sequence[int]) -> list[int]:
    """Output indices, as timm counts them, of the stages.

    Raises:
        UsageError: no such backbone, or it lacks a stage.
    """
    indices = {stage: index for stage, _, index in _outputs(name)}
    wrong = [stage for stage in stages if stage not in indices]
    if wrong or not stages or len(set(stages)) != len(stages):
        raise UsageError(
            f"stages must be different ones of {', '.join(map(str, indices))} for backbone {name!r} but got "
            f"{list(stages)}"
        )
    return [indices[stage] for stage in stages]


def _create(name: str, indices: Sequence[int]) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(name, features_only=True, out_indices=tuple(indices), pretrained=False)
    return network


def _cut(network: nn.Module) -> None:
    """Drop blocks behind the last output where timm's extractor would run them for nothing (EfficientNet's does)."""
    info: Any = network.feature_info
    last = str(info.get_dicts()[-1].get("module", ""))
    blocks = getattr(network, "blocks", None)
    if isinstance(blocks, nn.Sequential) and last.startswith("blocks."):
        network.blocks = blocks[: int(last.split(".")[1]) + 1]


def _load(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Fill every tensor of the network: timm's own loader would leave those it does not find random."""
    found = {}
    for name, target in network.state_dict().items():
        source = next((tensors[alias] for alias in _aliases(name) if alias in tensors), None)
        if source is None and name.endswith("num_batches_tracked"):
            source = target  # counts training steps only; older files lack it
        if source is None or source.shape != target.shape:
            got = "nothing" if source is None else list(source.shape)
            raise WeightsError(f"{what} must hold {name!r} of shape {list(target.shape)} but has {got} there")
        found[name] = source
    network.load_state_dict(found, strict=True)


def _aliases(name: str) -> list[str]:
    """What a tensor of a timm extractor may be called in the network that it is taken from.

    Extractors flatten the first levels of a network: ``stages_0.x`` is its ``stages.0.x``.
    """
    head, _, tail = name.partition(".")
    aliases = [name]
    for index, letter in enumerate(head):
        if letter == "_":
            aliases.append(f"{head[:index]}.{head[index + 1 :]}.{tail}")
    if head == "model":
        aliases.append(tail)
    return aliases
