"""The optimisers do what torch's own do, and import no compiler."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoad.algorithms.optimizers import SGD, Adam

PAIRS: list[tuple[Callable[[Iterable[Tensor]], Any], Callable[[Iterable[Tensor]], Any]]] = [
    (
        lambda given: SGD(given, 0.3, momentum=0.9, weight_decay=1e-2),
        lambda given: torch.optim.SGD(given, 0.3, 0.9, weight_decay=1e-2),
    ),
    (lambda given: Adam(given, 0.02, (0.5, 0.99)), lambda given: torch.optim.Adam(given, 0.02, (0.5, 0.99))),
    (lambda given: Adam(given, 0.02, weight_decay=0.1), lambda given: torch.optim.AdamW(given, 0.02, weight_decay=0.1)),
]


def trained(create: Callable[[Iterable[Tensor]], Any]) -> list[Tensor]:
    """Parameters after twenty steps; those of one layer have no gradient in the first ten."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    extra, unused = nn.Linear(4, 4), nn.Parameter(torch.ones(3))
    optimizer = create([*network.parameters(), *extra.parameters(), unused])
    for step in range(20):
        found = network(torch.randn(4, 3, 8, 8)).mean((2, 3))
        loss = functional.mse_loss(extra(found) if step >= 10 else found, torch.ones(4, 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(unused, torch.ones(3))
    return [parameter.detach() for parameter in (*network.parameters(), *extra.parameters())]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["sgd", "adam", "adamw"])
def test_it_learns_what_torchs_does(ours: Any, theirs: Any) -> None:
    for one, other in zip(trained(ours), trained(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["sgd", "adam", "adamw"])
def test_a_gradient_may_lie_otherwise_in_memory(ours: Any, theirs: Any) -> None:
    found = []
    for create in (ours, theirs):
        torch.manual_seed(0)
        weights = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
        optimizer = create([weights])
        optimizer.step()  # without any gradient
        for _ in range(3):
            weights.grad = torch.randn(4, 3, 5, 5)
            optimizer.step()
        found.append(weights.detach())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_what_needs_no_timm_trains_without_the_compiler() -> None:
    program = """
import sys, torch
from autoad.algorithms import Inputs, get_algorithm

shapes = {1: (24, 16, 16), 2: (40, 8, 8), 3: (112, 4, 4), 4: (320, 2, 2)}
features = {stage: torch.randn(8, *shape).half() for stage, shape in shapes.items()}
images = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
for name in ("cflow", "ganomaly", "reverse_distillation"):
    algorithm = get_algorithm(name)
    detector = algorithm(algorithm.Config(image_size=64, epochs=1))
    assert set(detector.needs.stages) <= set(features)
    for progress in detector.fit(Inputs((64, 64), features, images)):
        print(name, progress.loss)
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
