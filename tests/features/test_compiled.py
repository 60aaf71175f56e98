"""A compiled network computes what torch computes with it, and is compiled once."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoad.errors import UsageError
from autoad.features.compiled import CompiledNetwork, compile_network

EXAMPLES = [torch.zeros(1, 8, 9, 3, dtype=torch.uint8), torch.zeros(1, 8, 9, 4)]


class Network(nn.Module):
    """Two inputs of two types, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2))

    def forward(self, images: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        own = self.layers(images.permute(0, 3, 1, 2).float() / 255)
        return own, (own - features.permute(0, 3, 1, 2)).square().sum(1)


def network_of(seed: int) -> Network:
    torch.manual_seed(seed)
    network = Network()
    network(torch.randint(0, 256, (4, 8, 9, 3)), torch.randn(4, 8, 9, 4))  # statistics to fold in
    return network.eval()


def compiled(network: nn.Module, **changes: Any) -> CompiledNetwork:
    weights: Mapping[str, Tensor] = network.state_dict()
    given: dict[str, Any] = {"create": lambda: network, "examples": EXAMPLES, "weights": weights, "name": "a"}
    made = compile_network(**given | changes)
    assert made is not None
    return made


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 256, (1, 8, 9, 3), generator=random, dtype=torch.uint8),
        torch.randn(1, 8, 9, 4, generator=random),
    )


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOAD_DATA_DIR", str(tmp_path))


@torch.inference_mode()
def test_it_computes_the_same_and_is_built_once() -> None:
    network = network_of(0)
    first = compiled(network)
    second = compiled(network, create=lambda: pytest.fail("it was kept"), threads=1, streams=1)
    for seed in range(3):
        expected = network(*inputs(seed))
        for one, answer, again in zip(expected, first(*inputs(seed)), second(*inputs(seed)), strict=True):
            torch.testing.assert_close(answer, one, rtol=1e-5, atol=1e-5)
            assert torch.equal(answer, again)


def test_answers_are_the_callers_own_whatever_others_ask_meanwhile() -> None:
    network = compiled(network_of(0), threads=2, streams=2)
    expected = [network(*inputs(seed)) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: network(*inputs(i % 4)), range(80)))
    for i, answer in enumerate(answers):
        assert all(map(torch.equal, answer, expected[i % 4]))


def test_other_weights_key_or_shapes_are_another_network() -> None:
    network, built = network_of(0), []

    def build() -> nn.Module:
        built.append(1)
        return network

    compiled(network)
    for changes in (
        {"weights": network_of(1).state_dict()},
        {"weights": {name: tensor.double() for name, tensor in network.state_dict().items()}},
        {"name": "b"},
        {"examples": [torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 8, 8, 4)]},
        {},
    ):
        compiled(network, create=build, **changes)
    assert len(built) == 4


def test_what_is_no_network_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoad.features._openvino.recall", lambda key: b"no network")
    network = network_of(0)
    torch.testing.assert_close(compiled(network)(*inputs(0))[0], network(*inputs(0))[0].detach(), rtol=1e-5, atol=1e-5)


def test_inputs_of_another_shape_are_refused() -> None:
    network = compiled(network_of(0))
    with pytest.raises(UsageError, match=r"inputs must be of the shapes .*\(1, 8, 9, 3\).* but got .*\(2, 8, 9, 3\)"):
        network(torch.zeros(2, 8, 9, 3, dtype=torch.uint8), EXAMPLES[1])


def test_nothing_of_what_was_asked_is_kept() -> None:
    network = compiled(network_of(0))
    features = np.zeros((1, 8, 9, 4), np.float32)
    gone = weakref.ref(features)
    network(EXAMPLES[0], torch.from_numpy(features))
    del features
    assert gone() is None


def test_networks_that_were_compiled_leave_no_memory_behind(tmp_path: Path) -> None:
    """In a process of its own, where freed tensors are given back: a heap with holes may grow all the same."""
    program = r"""
import ctypes, gc, re, torch
from pathlib import Path
from torch import nn
from autoad.features.compiled import compile_network

def used():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**10

def compile_one(number):
    network = nn.Sequential(nn.Conv2d(256, 512, 3), nn.BatchNorm2d(512), nn.Conv2d(512, 256, 3)).eval()
    weights = network.state_dict()
    assert compile_network(lambda: network, [torch.zeros(1, 256, 8, 8)], weights, threads=1, number=number) is not None
    return sum(tensor.nbytes for tensor in weights.values()) / 2**20

for number in range(5):
    print(compile_one(number), used())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(64 << 10), "AUTOAD_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    lines = [[float(word) for word in line.split()] for line in done.stdout.splitlines()]
    sizes = [used for _, used in lines]
    assert lines[0][0] > 8
    assert sizes[-1] - sizes[1] < lines[0][0]  # of three networks


def test_what_openvino_cannot_run_is_left_to_torch(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.cosine_similarity(x, 2 * x, dim=1)

    assert compile_network(Odd, [torch.zeros(1, 4, 8)], {}, detector="odd") is None
    assert "OpenVINO cannot run a network of {'detector': 'odd'}, torch does" in caplog.text


def test_without_openvino_there_is_none() -> None:
    program = (
        "import sys, torch\n"
        "sys.modules['openvino'] = None\n"
        "from autoad.features.compiled import compile_network\n"
        "from autoad.algorithms.ganomaly import GANomaly, GANomalyConfig\n"
        "from autoad.algorithms import Inputs\n"
        "assert compile_network(None, [], {}) is None\n"
        "pictures = Inputs((32, 32), images=torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8))\n"
        "detector = GANomaly(GANomalyConfig(image_size=32, n_features=8, epochs=1))\n"
        "next(detector.fit(pictures))\n"
        "scores = detector.predict(pictures).scores\n"
        "detector.compile()\n"
        "assert torch.equal(detector.predict(pictures).scores, scores)\n"
        "assert detector.tensors()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
