"""A traced network is the network that was traced, in the next process too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autoad.features.backbones import create_backbone
from autoad.features.traced import trace_network

EXAMPLE = torch.zeros(1, 3, 64, 64)


def build() -> nn.Module:
    return create_backbone("tf_efficientnet_lite0", (1, 2), pretrained=False)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOAD_DATA_DIR", str(tmp_path))


@torch.inference_mode()
def answers(network: nn.Module, weights: dict[str, Tensor]) -> list[Tensor]:
    network.load_state_dict(weights)
    pictures = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return [*network(pictures), *network(pictures[:1])]


def test_it_computes_the_same_with_any_weights_and_is_built_once(tmp_path: Path) -> None:
    original = build().eval()
    expected = answers(original, original.state_dict())
    first = trace_network(build, EXAMPLE, name="a")
    second = trace_network(lambda: pytest.fail("it was kept"), EXAMPLE, name="a")
    for network in (first, second):
        assert not network.training
        assert all(map(torch.equal, answers(network, original.state_dict()), expected))
    assert 1e5 < max(path.stat().st_size for path in (tmp_path / "kept").iterdir()) < 20e6


def test_another_key_or_size_is_another_network() -> None:
    trace_network(build, EXAMPLE, name="a")
    built = []

    def count() -> nn.Module:
        built.append(1)
        return build()

    trace_network(count, EXAMPLE, name="b")
    trace_network(count, torch.zeros(1, 3, 96, 96), name="a")
    trace_network(count, EXAMPLE, name="a")
    assert len(built) == 2


def test_what_is_no_program_is_built_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoad.features.traced.recall", lambda key: b"no program")
    network = trace_network(build, EXAMPLE, name="a")
    assert isinstance(network, nn.Module)


def test_the_next_process_needs_no_timm() -> None:
    trace_network(build, EXAMPLE, name="a")
    program = (
        "import sys, torch\n"
        "from autoad.features.traced import trace_network\n"
        "network = trace_network(lambda: sys.exit('not kept'), torch.zeros(1, 3, 64, 64), name='a')\n"
        "assert [tuple(one.shape) for one in network(torch.zeros(2, 3, 64, 64))] == [(2, 24, 16, 16), (2, 40, 8, 8)]\n"
        "assert 'timm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
