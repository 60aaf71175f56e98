from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from autoad.algorithms import Inputs, Needs, Runtime
from autoad.algorithms import cflow as module
from autoad.algorithms.cflow import CFlow, CFlowConfig, _Flow, position_codes
from autoad.errors import TrialError, UsageError

SMALL = CFlowConfig(image_size=64, stages=(2, 3), coupling_blocks=2, condition_vector=8, fiber_batch_size=64, epochs=2)


def inputs(count: int, seed: int, channels: tuple[int, int] = (6, 8), size: tuple[int, int] = (64, 64)) -> Inputs:
    draw = torch.Generator().manual_seed(seed)
    features = {}
    for stage, width in zip((2, 3), channels, strict=True):
        h, w = (-(-side // 2 ** (stage + 1)) for side in size)
        common = torch.randn(count, h, w, 1, generator=draw) * 4
        maps = torch.randn(count, h, w, width, generator=draw) * 3 + common + torch.arange(float(width))
        features[stage] = maps.half().permute(0, 3, 1, 2)
    return Inputs(size, features)


def fitted(config: CFlowConfig = SMALL, train: Inputs | None = None, **kwargs: Any) -> CFlow:
    detector = CFlow(config, **kwargs)
    for _ in detector.fit(inputs(4, 0) if train is None else train):
        pass
    return detector


def wild_flow(channels: int, blocks: int = 3) -> _Flow:
    """A float64 flow that is far from the identity."""
    draw = torch.Generator().manual_seed(channels)
    flow = _Flow(channels, 8, blocks, clamp=1.9)
    flow.initialise(torch.randn(2, channels, 3, 5, generator=draw), draw)
    flow.double()
    with torch.no_grad():
        for weight in (flow.w_x, flow.w_condition, flow.w_out, flow.b_out):
            weight.mul_(4)
        flow.scale.add_(torch.randn(flow.scale.shape, generator=draw))
        flow.offset.add_(torch.randn(flow.offset.shape, generator=draw))
    return flow


def places(count: int, height: int = 3, width: int = 5) -> tuple[Tensor, Tensor]:
    codes, index = position_codes(height, width, 8)
    return index[torch.arange(count) * 4 % len(index)], codes.double()


@pytest.mark.parametrize("channels", [2, 5, 6])
def test_log_determinant_is_that_of_the_numerical_jacobian(channels: int) -> None:
    flow = wild_flow(channels)
    index, codes = places(4)
    x = torch.randn(4, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, log_det = flow.transform(x, index, codes)
        assert log_det.std() > 0.05
        step = 1e-6
        for i in range(4):
            columns = []
            for k in range(channels):
                ends = x[[i, i]].clone()
                ends[0, k] += step
                ends[1, k] -= step
                z, _ = flow.transform(ends, index[[i, i]], codes)
                columns.append((z[0] - z[1]) / (2 * step))
            sign, expected = np.linalg.slogdet(torch.stack(columns, 1).numpy())
            assert sign != 0
            assert log_det[i].item() == pytest.approx(expected, abs=1e-6)


def test_log_likelihood_is_the_normal_density_plus_the_determinant_per_channel() -> None:
    flow = wild_flow(5)
    index, codes = places(4)
    raw = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 + 1
    with torch.no_grad():
        z, log_det = flow.transform((raw - flow.mean) / flow.std, index, codes)
        density = multivariate_normal(np.zeros(5)).logpdf(z.numpy())
        log_p = flow.float()(raw, index, codes.float())
    np.testing.assert_allclose(log_p.numpy(), (density + log_det.numpy()) / 5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [2, 5, 6])
def test_the_flow_can_be_inverted(channels: int) -> None:
    flow = wild_flow(channels)
    index, codes = places(6)
    x = torch.randn(6, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        z, _ = flow.transform(x, index, codes)
        conditions = (codes[index].sum(1) @ flow.w_condition + flow.b_hidden).view(6, flow.blocks, -1)
        kept = channels - channels // 2
        for block in reversed(range(flow.blocks)):
            permuted, z = z, torch.empty_like(z)
            z[:, flow.permutation[block]] = permuted
            z = (z - flow.offset[block]) / (0.1 * functional.softplus(flow.scale[block], beta=0.5))
            hidden = (conditions[:, block] + z[:, :kept] @ flow.w_x[block]).relu()
            out = 0.1 * (hidden @ flow.w_out[block] + flow.b_out[block])
            s, t = out[:, : channels // 2].tanh() * 1.9, out[:, channels // 2 :]
            z = torch.cat([z[:, :kept], (z[:, kept:] - t) / s.exp()], 1)
    torch.testing.assert_close(z, x, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_the_transform() -> None:
    flow = wild_flow(5, blocks=2)
    index, codes = places(3)
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    names = ("w_x", "w_condition", "b_hidden", "w_out", "b_out", "scale", "offset")

    def transform(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        for name, weight in zip(names, weights, strict=True):
            delattr(flow, name)
            setattr(flow, name, weight)
        return flow.transform(x, index, codes)

    weights = tuple(getattr(flow, name).detach().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(transform, (x, *weights))


def test_blocks_permute_the_channels_each_in_its_own_way() -> None:
    flow = _Flow(40, 8, 6, clamp=1.9)
    flow.initialise(torch.randn(1, 40, 2, 2), torch.Generator().manual_seed(0))
    assert torch.equal(flow.permutation.sort(1).values, torch.arange(40).expand(6, -1))
    assert len({tuple(row.tolist()) for row in flow.permutation}) == 6


def test_standardisation_is_the_training_features_mean_and_deviation() -> None:
    train = inputs(40, 5)
    flow = _Flow(6, 8, 1, clamp=1.9)
    flow.initialise(train.features[2], torch.Generator())
    fibers = train.features[2].permute(0, 2, 3, 1).reshape(-1, 6).double().numpy()
    np.testing.assert_allclose(flow.mean.numpy(), fibers.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(flow.std.numpy(), fibers.std(0), rtol=1e-5)


@pytest.mark.parametrize(("height", "width", "dim"), [(3, 5, 8), (7, 2, 12)])
def test_position_codes_follow_the_formula(height: int, width: int, dim: int) -> None:
    codes, index = position_codes(height, width, dim)
    made = codes[index].sum(1).numpy()
    assert made.shape == (height * width, dim)
    half = dim // 2
    for row in range(height):
        for column in range(width):
            for k in range(half):
                frequency = 10_000 ** (-(k - k % 2) / half)
                wave = math.cos if k % 2 else math.sin
                assert made[row * width + column, k] == pytest.approx(wave(column * frequency), abs=1e-6)
                assert made[row * width + column, half + k] == pytest.approx(wave(row * frequency), abs=1e-6)


def test_the_maximum_kept_is_the_training_sets() -> None:
    train = inputs(4, 0)
    detector = fitted(dataclasses.replace(SMALL, lr=1e-12), train)
    for stage, flow in detector._flows.items():
        height, width = train.features[stage].shape[-2:]
        codes, index = position_codes(height, width, 8)
        fibers = train.features[stage].permute(0, 2, 3, 1).flatten(0, 2)
        with torch.no_grad():
            log_p = flow(fibers, index.repeat(4, 1), codes)
        assert flow.log_p_max.item() == pytest.approx(log_p.max().item(), abs=1e-5)


def test_maps_add_the_stages_likelihood_ratios() -> None:
    detector, batch = fitted(), inputs(3, 7)
    prediction = detector.predict(batch)
    total = torch.zeros(3, 64, 64, dtype=torch.float64)
    for stage, flow in detector._flows.items():
        height, width = batch.features[stage].shape[-2:]
        codes, index = position_codes(height, width, 8)
        with torch.no_grad():
            log_p = flow(batch.features[stage].permute(0, 2, 3, 1).flatten(0, 2), index.repeat(3, 1), codes)
        ratio = (log_p.double() - flow.log_p_max.double()).exp().clamp(max=1)
        total += functional.interpolate(ratio.view(3, 1, height, width), (64, 64), mode="bilinear")[:, 0]
    assert prediction.maps is not None
    torch.testing.assert_close(prediction.maps, -torch.log(total / 2).float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(prediction.scores, prediction.maps.flatten(1).max(1).values)
    paper = (2 - total).flatten(1).max(1).values
    assert torch.equal(paper.argsort(), prediction.scores.argsort())


def test_a_score_never_depends_on_the_batch() -> None:
    detector, batch = fitted(), inputs(5, 8)
    strange = Inputs(batch.image_size, {stage: maps.clone() for stage, maps in batch.features.items()})
    for stage, flow in detector._flows.items():
        # the likeliest fibers there are, which a maximum over the batch would follow
        strange.features[stage][0] = flow.mean[:, None, None].half()
        strange.features[stage][1] = 1000.0
    whole, mixed = detector.predict(batch), detector.predict(strange)
    assert whole.maps is not None
    assert mixed.maps is not None
    assert torch.equal(whole.maps[2:], mixed.maps[2:])
    for i in range(5):
        alone = detector.predict(batch[i : i + 1])
        assert alone.maps is not None
        assert torch.equal(alone.maps[0], whole.maps[i])
        assert alone.scores[0] == whole.scores[i]


def test_hopeless_places_are_still_told_apart() -> None:
    detector, batch = fitted(), inputs(3, 9)
    for maps in batch.features.values():
        for i, level in enumerate((100.0, 200.0, 400.0)):
            maps[i] = level
    scores = detector.predict(batch).scores
    assert scores[0] < scores[1] < scores[2]
    assert scores[2].isfinite()


def test_an_epoch_is_part_of_a_shuffle_that_leaves_no_fiber_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EPOCH_FIBERS", 100)
    parts = module._parts(256, torch.Generator().manual_seed(0))
    drawn = [next(parts) for _ in range(6)]
    assert [len(part) for part in drawn] == [86, 85, 85] * 2
    for shuffle in (drawn[:3], drawn[3:]):
        assert torch.equal(torch.cat(shuffle).sort().values, torch.arange(256))
    assert not torch.equal(torch.cat(drawn[:3]), torch.cat(drawn[3:]))


def test_same_seed_same_detector_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (fitted(seed=seed).tensors() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stage2.w_x"], other["stage2.w_x"])


def test_tensors_survive_a_file_and_do_not_follow_later_training() -> None:
    detector, batch = CFlow(SMALL), inputs(3, 10, channels=(5, 7))
    steps = detector.fit(inputs(2, 0, channels=(5, 7)))
    assert next(steps).epoch == 1
    first, tensors = detector.predict(batch), detector.tensors()
    last = next(steps)
    assert (last.epoch, last.epochs) == (2, 2)
    copy = CFlow(SMALL)
    copy.load_tensors(load(save(tensors)))
    again = copy.predict(batch)
    assert again.maps is not None
    assert first.maps is not None
    assert torch.equal(again.maps, first.maps)
    assert not torch.equal(detector.predict(batch).scores, first.scores)


def test_training_raises_the_likelihood() -> None:
    train = inputs(8, 0)
    losses = [progress.loss for progress in CFlow(dataclasses.replace(SMALL, lr=5e-3, epochs=8)).fit(train)]
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < losses[0] - 0.05
    assert all(math.isfinite(loss) for loss in losses if loss is not None)


def test_bfloat16_agrees_with_float32_about_likelihood() -> None:
    train, batch = inputs(4, 0), inputs(3, 1)
    full = fitted(train=train)
    half = CFlow(SMALL, runtime=Runtime(precision="bfloat16"))
    half.load_tensors(full.tensors())
    torch.testing.assert_close(half.predict(batch).scores, full.predict(batch).scores, rtol=0.02, atol=0.02)
    assert next(half.fit(train)).loss == pytest.approx(next(CFlow(SMALL).fit(train)).loss, rel=0.02)


@pytest.mark.parametrize("count", [1, 3])
def test_few_pictures_odd_sizes_and_odd_channels(count: int) -> None:
    train = inputs(count, 0, channels=(3, 7), size=(70, 101))
    prediction = fitted(train=train).predict(train)
    assert prediction.maps is not None
    assert prediction.maps.shape == (count, 70, 101)
    assert prediction.maps.isfinite().all()


def test_constant_pictures() -> None:
    train = inputs(2, 0)
    for maps in train.features.values():
        maps.fill_(2.0)
    detector = fitted(train=train)
    assert detector.predict(train).scores.isfinite().all()
    other = inputs(2, 1)
    other.features[2].fill_(60_000.0)
    scores = detector.predict(other).scores
    assert scores.isfinite().all()
    assert (scores > detector.predict(train).scores).all()


def test_a_loss_that_explodes_names_the_learning_rate() -> None:
    with pytest.raises(TrialError, match=r"loss became (nan|inf) in epoch \d+: lower lr"):
        fitted(dataclasses.replace(SMALL, lr=1e20, epochs=20))


def test_a_single_channel_cannot_be_coupled() -> None:
    with pytest.raises(TrialError, match="at least 2 channels to couple but got 1"):
        fitted(train=inputs(2, 0, channels=(1, 8)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stages", ()),
        ("stages", (3, 2)),
        ("image_size", 8),
        ("coupling_blocks", 0),
        ("condition_vector", 30),
        ("clamp_alpha", 0.0),
        ("lr", math.nan),
        ("fiber_batch_size", 0),
        ("epochs", 0),
    ],
)
def test_wrong_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"{field} must be .* but got "):
        CFlowConfig(**{field: value})


def test_learns_what_untrained_flows_do_not_know(given: Callable[[Tensor, Needs], Inputs]) -> None:
    def spotted(count: int, seed: int, *, defect: bool) -> Tensor:
        """A dark spot on the left; a defect when on the right, so that only its place betrays it."""
        draw = np.random.default_rng(seed)
        y, x = np.mgrid[:96, :96]
        made = []
        for _ in range(count):
            row, column = draw.uniform(16, 80), draw.uniform(16, 36) + 44 * defect
            spot = np.exp(-((((y - row) ** 2 + (x - column) ** 2) / 100) ** 2))
            made.append(150 - 90 * spot + draw.normal(0, 8, (96, 96)))
        return torch.from_numpy(np.stack(made)[..., None].repeat(3, 3).clip(0, 255).astype(np.uint8))

    config = CFlowConfig(
        image_size=96, stages=(2, 3), coupling_blocks=4, condition_vector=32, lr=3e-3, fiber_batch_size=64, epochs=9
    )
    needs = CFlow(config).needs
    train = given(spotted(32, 0, defect=False), needs)
    test = given(torch.cat([spotted(24, 1, defect=False), spotted(24, 2, defect=True)]), needs)
    truth = [0] * 24 + [1] * 24

    def auroc(config: CFlowConfig, seed: int) -> float:
        return float(roc_auc_score(truth, fitted(config, train, seed=seed).predict(test).scores))

    trained = np.mean([auroc(config, seed) for seed in range(3)])
    untrained = np.mean([auroc(dataclasses.replace(config, lr=1e-12, epochs=1), seed) for seed in range(3)])
    assert trained >= untrained + 0.05
    assert trained >= 0.8
