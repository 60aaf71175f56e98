from __future__ import annotations

import pytest
import torch

from autoad.errors import UsageError
from autoad.features import backbone_stages, create_backbone, feature_shapes

FAMILIES = {
    "tf_efficientnet_lite0": {0: 16, 1: 24, 2: 40, 3: 112, 4: 320},
    "resnet18": {0: 64, 1: 64, 2: 128, 3: 256, 4: 512},
    "wide_resnet50_2": {0: 64, 1: 256, 2: 512, 3: 1024, 4: 2048},
    "convnext_tiny": {1: 96, 2: 192, 3: 384, 4: 768},
    "mobilenetv3_large_100": {0: 16, 1: 24, 2: 40, 3: 112, 4: 960},
    "vgg11": {0: 128, 1: 256, 2: 512, 3: 512, 4: 512},
    "dla34": {0: 32, 1: 64, 2: 128, 3: 256, 4: 512},
    "swin_tiny_patch4_window7_224": {1: 96, 2: 192, 3: 384, 4: 768},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stage_is_the_output_at_its_stride(name: str) -> None:
    assert backbone_stages(name) == FAMILIES[name]
    shapes = feature_shapes(name, (224, 224))
    assert shapes == {s: (224 >> (s + 1), 224 >> (s + 1), channels) for s, channels in FAMILIES[name].items()}


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet10t", "convnext_atto", "mobilenetv3_small_050"])
@pytest.mark.parametrize("size", [(64, 96), (75, 110)])
def test_any_size_and_any_order_of_stages(name: str, size: tuple[int, int]) -> None:
    network = create_backbone(name, (3, 1, 2), pretrained=False).eval()
    with torch.inference_mode():
        maps = network(torch.randn(2, 3, *size))
    shapes = feature_shapes(name, size)
    for stage, one in zip((3, 1, 2), maps, strict=True):
        height, width, channels = shapes[stage]
        assert one.shape == (2, channels, height, width)
        assert channels == backbone_stages(name)[stage]
        stride = 2 ** (stage + 1)
        assert size[0] // stride <= height <= size[0] // stride + 1
        assert size[1] // stride <= width <= size[1] // stride + 1


def test_stages_do_not_depend_on_which_others_are_asked_for() -> None:
    images = torch.randn(1, 3, 64, 64)
    torch.manual_seed(0)
    whole = create_backbone("tf_efficientnet_lite0", (1, 2, 3, 4), pretrained=False).eval()
    torch.manual_seed(0)
    first = create_backbone("tf_efficientnet_lite0", (2, 1), pretrained=False).eval()
    with torch.inference_mode():
        expected, got = whole(images), first(images)
    assert torch.equal(got[0], expected[1])
    assert torch.equal(got[1], expected[0])
    assert sum(p.numel() for p in first.parameters()) < 0.1 * sum(p.numel() for p in whole.parameters())


def test_a_network_whose_maps_are_channels_last_is_turned() -> None:
    network = create_backbone("swin_tiny_patch4_window7_224", (2, 1), pretrained=False).eval()
    with torch.inference_mode():
        maps = network(torch.zeros(1, 3, 224, 224))
    assert [tuple(one.shape) for one in maps] == [(1, 192, 28, 28), (1, 96, 56, 56)]


def test_random_backbones_train_and_pretrained_ones_do_not() -> None:
    torch.manual_seed(0)
    student = create_backbone("tf_efficientnet_lite0", (1, 2, 3), pretrained=False)
    other = create_backbone("tf_efficientnet_lite0", (1, 2, 3), pretrained=False)
    teacher = create_backbone("tf_efficientnet_lite0", (1, 2, 3), pretrained=True)
    assert student.training
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    sum(one.square().mean() for one in student(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in student.parameters())
    pairs = list(zip(student.parameters(), other.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "unknown backbone 'resnet19'. Did you mean 'resnet18'"),
        ("hf-hub:someone/something", "unknown backbone"),
        ("vit_small_patch16_224", "different powers of two but has them at \\[16, 16, 16\\]"),
    ],
)
def test_a_backbone_that_will_not_do_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        backbone_stages(name)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("stages", [(5,), (0, 1), (), (1, 1)])
def test_a_stage_that_is_not_there_is_refused(stages: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="different ones of 1, 2, 3, 4 for backbone 'convnext_atto'"):
        create_backbone("convnext_atto", stages, pretrained=False)


def test_a_backbone_of_fixed_size_says_so() -> None:
    with pytest.raises(UsageError, match="cannot take pictures of 96 x 128 pixels"):
        feature_shapes("swin_tiny_patch4_window7_224", (96, 128))
