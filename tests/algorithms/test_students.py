"""Layers that train faster on a CPU compute what timm's do, forwards and backwards."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import Conv2dSame, StdConv2d
from torch import Tensor, nn

from autoad.algorithms._students import train_faster
from autoad.features.backbones import create_backbone


def faster(network: nn.Module) -> nn.Module:
    other = copy.deepcopy(network)
    train_faster(other)
    return other


def results(network: nn.Module, pictures: Tensor, wanted: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What a network gives, and the gradients of its product with something, by parameter."""
    network.train()
    outputs = network(pictures)
    sum((output * one.to(output)).sum() for output, one in zip(outputs, wanted, strict=True)).backward()
    named = network.named_parameters()
    return outputs, {name.replace(".convolution", ""): parameter.grad for name, parameter in named}


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "same"),
    [
        *[(k, s, (h, w), True) for k in (3, 4, 5, 7, 9) for s in (1, 2) for h, w in ((16, 16), (15, 18))],
        *[(k, s, (16, 17), False) for k in (1, 3, 5, 7) for s in (1, 2)],
    ],
)
def test_a_depthwise_convolution_gives_the_same_gradients(
    kernel: int, stride: int, size: tuple[int, int], same: bool
) -> None:
    torch.manual_seed(kernel)
    kind = Conv2dSame if same else nn.Conv2d
    layer = kind(8, 8, kernel, stride, kernel // 2, groups=8, bias=False)
    inner = nn.Sequential(nn.Conv2d(3, 8, 1), layer)  # so that something needs the gradient of its input
    wrapped = faster(inner)
    x = torch.randn(3, 3, *size)
    wanted = torch.randn_like(inner(x))
    own = "_DepthwiseConvolutionBackward" in str(wrapped.train()(x).grad_fn.next_functions) + str(wrapped(x).grad_fn)
    assert own == (same or kernel > 3)
    for network in (inner, wrapped):
        network.train()
        (network(x) * wanted).sum().backward()
    for (name, one), other in zip(inner.named_parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_a_convolution_with_what_is_not_handled_is_left_to_torch() -> None:
    torch.manual_seed(0)
    for layer in (
        nn.Conv2d(4, 4, 5, padding=4, dilation=2, groups=4, bias=False),
        nn.Conv2d(4, 4, 5, padding="same", groups=4),
        StdConv2d(4, 4, 5, padding=2, groups=4),
        nn.Conv2d(4, 4, 5, padding=2, padding_mode="reflect", groups=4, bias=False),
    ):
        network = nn.Sequential(layer)
        x = torch.randn(2, 4, 12, 12)
        assert torch.equal(faster(network).train()(x), network(x))


def test_relu6_keeps_no_copy_and_gives_the_same_gradient() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(inplace=True))
    with torch.no_grad():
        plain[0].weight.mul_(10)  # so that some exceed 6
    other = faster(plain)
    x = torch.randn(2, 3, 8, 8)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        y = other(x)
    assert (y == 6).any()
    assert (y == 0).any()
    assert len({tensor.data_ptr() for tensor in saved if tensor.shape == y.shape}) == 1
    for result in (y, plain(x)):
        result.square().sum().backward()
    torch.testing.assert_close(other[0].weight.grad, plain[0].weight.grad)
    with torch.inference_mode():
        assert torch.equal(other(x), plain(x))


def test_in_bfloat16_it_stays_as_near() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), Conv2dSame(8, 8, 5, 2, groups=8, bias=False)).train()
    x = torch.randn(3, 3, 15, 15).contiguous(memory_format=torch.channels_last)
    wanted = torch.randn_like(network(x))
    (network(x) * wanted).sum().backward()
    other = faster(network)
    other.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = other(x)
    (y.float() * wanted).sum().backward()
    for one, here in zip(network.parameters(), other.parameters(), strict=True):
        assert float((here.grad - one.grad).norm() / one.grad.norm()) < 0.02


def test_a_whole_student_is_as_near_to_float64_as_timms() -> None:
    torch.manual_seed(0)
    timms = create_backbone("tf_efficientnet_lite0", (1, 2, 3), pretrained=False)
    pictures = torch.randn(4, 3, 96, 96)
    wanted = [torch.randn_like(output) for output in timms.train()(pictures)]
    exact, gradients = results(copy.deepcopy(timms).double(), pictures.double(), wanted)
    errors = {}
    for name, network in {"timm": copy.deepcopy(timms), "here": faster(timms)}.items():
        outputs, found = results(network, pictures.contiguous(memory_format=torch.channels_last), wanted)
        for output, one in zip(outputs, exact, strict=True):
            torch.testing.assert_close(output.double(), one, rtol=1e-3, atol=1e-3)
        errors[name] = {key: float((found[key] - one).norm()) for key, one in gradients.items()}
    assert errors["here"].keys() == errors["timm"].keys()
    assert all(error <= 3 * errors["timm"][key] + 1e-5 for key, error in errors["here"].items())
