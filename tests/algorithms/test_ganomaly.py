from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from autoad.algorithms import Inputs, Runtime
from autoad.algorithms.ganomaly import GANomaly, GANomalyConfig, _Discriminator, _Generator, _initialise, _pixels, _Step
from autoad.errors import TrialError, UsageError

SMALL = GANomalyConfig(image_size=32, n_features=8, latent_vec_size=12, batch_size=4, epochs=2)


def waves(count: int, seed: int, *, defect: bool = False, size: tuple[int, int] = (32, 32)) -> Inputs:
    """Upright waves under noise; the defect is a patch turned by a right angle."""
    draw = np.random.default_rng(seed)
    height, width = size
    made = []
    for _ in range(count):
        wave = np.sin(6 * math.pi * np.arange(width) / width + draw.uniform(0, 2 * math.pi))
        picture = 128 + 60 * wave[None, :, None] + draw.normal(0, 8, (height, width, 3))
        if defect:
            top, left = draw.integers(0, height - 12), draw.integers(0, width - 12)
            patch = picture[top : top + 12, left : left + 12]
            picture[top : top + 12, left : left + 12] = patch.transpose(1, 0, 2).copy()
        made.append(picture)
    return Inputs(size, {}, torch.from_numpy(np.stack(made).clip(0, 255).astype(np.uint8)))


def fitted(config: GANomalyConfig = SMALL, train: Inputs | None = None, **kwargs: Any) -> GANomaly:
    detector = GANomaly(config, **kwargs)
    for _ in detector.fit(waves(8, 0) if train is None else train):
        pass
    return detector


def networks(config: GANomalyConfig = SMALL) -> tuple[_Generator, _Discriminator]:
    draw = torch.Generator().manual_seed(0)
    built = _Generator(config), _Discriminator(config)
    for network in built:
        _initialise(network, draw)
    return built


@pytest.mark.parametrize("size", [16, 32, 48, 64, 80, 96, 144])
def test_every_size_goes_round_with_capped_channels(size: int) -> None:
    config = GANomalyConfig(image_size=size, n_features=96, latent_vec_size=12, extra_layers=1)
    generator, discriminator = networks(config)
    pixels = torch.zeros(2, 3, size, size)
    z, fake, z_again = generator(pixels)
    features, logit = discriminator(fake)
    assert z.shape == z_again.shape == (2, 12)
    assert fake.shape == pixels.shape
    assert logit.shape == (2,)
    widths = [layer.out_channels for layer in generator.encoder if isinstance(layer, nn.Conv2d)][:-1]
    assert widths == [96, 96, 192, 384, 512, 512][: len(widths)]
    assert features.shape[1] == widths[-1]
    assert features.shape[2] == size / 2 ** (len(widths) - 1)


def test_a_step_follows_the_papers_losses() -> None:
    config = dataclasses.replace(SMALL, wadv=2.0, wcon=7.0, wenc=3.0, lr=0.01)
    pixels = _pixels(waves(4, 3), 32)
    generator, discriminator = networks(config)
    total = _Step(generator, discriminator, config)(pixels, Runtime())

    expected_generator, expected_discriminator = networks(config)
    z, fake, z_again = expected_generator(pixels)
    real, truth = expected_discriminator(pixels)
    made, doubt = expected_discriminator(fake)
    loss = 2 * (real - made).square().mean() + 7 * (pixels - fake).abs().mean() + 3 * (z - z_again).square().mean()
    cross_entropy = -torch.cat([truth.sigmoid().log(), (1 - doubt.sigmoid()).log()]).mean()
    assert total.item() == pytest.approx((loss + cross_entropy).item(), rel=1e-4)
    for updated, network, objective in (
        (generator, expected_generator, loss),
        (discriminator, expected_discriminator, cross_entropy),
    ):
        weights = list(network.parameters())
        gradients = torch.autograd.grad(objective, weights, retain_graph=True)
        clear = 0
        for after, before, gradient in zip(updated.parameters(), weights, gradients, strict=True):
            # Adam's first step is lr against the gradient's sign
            chosen = gradient.abs() > 1e-4
            clear += int(chosen.sum())
            moved = (after - before).detach()[chosen]
            torch.testing.assert_close(moved, -0.01 * gradient[chosen].sign(), rtol=1e-2, atol=1e-5)
        assert clear > 50


def test_the_score_is_the_mean_difference_of_the_latent_vectors() -> None:
    detector, batch = fitted(), waves(3, 1)
    generator = detector._generator
    assert generator is not None
    assert not generator.training
    pixels = torch.from_numpy(batch.images.numpy().transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
    with torch.no_grad():
        z = generator.encoder(pixels)
        z_again = generator.encoder_again(generator.decoder(z))
    expected = np.abs(z.numpy() - z_again.numpy()).reshape(3, 12).mean(1)
    prediction = detector.predict(batch)
    assert prediction.maps is None
    np.testing.assert_allclose(prediction.scores.numpy(), expected, rtol=1e-4)


def test_a_score_never_depends_on_the_batch_nor_on_those_before() -> None:
    detector, batch = fitted(), waves(5, 2)
    whole = detector.predict(batch).scores
    detector.predict(Inputs((32, 32), {}, torch.full((3, 32, 32, 3), 255, dtype=torch.uint8)))
    assert torch.equal(torch.cat([detector.predict(one).scores for one in batch.batches(1)]), whole)


def test_normalisation_is_the_average_of_the_last_epoch() -> None:
    train = waves(8, 0)
    detector = fitted(dataclasses.replace(SMALL, lr=1e-12, batch_size=8), train)
    generator = detector._generator
    assert generator is not None
    with torch.no_grad():
        first = functional.leaky_relu(generator.encoder[0](_pixels(train, 32)), 0.2)
        maps = generator.encoder[2](first).transpose(0, 1).flatten(1)
    norm = generator.encoder[3]
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, maps.mean(1), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(norm.running_var, maps.var(1), rtol=1e-3, atol=1e-5)


def test_same_seed_same_detector_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (fitted(seed=seed).tensors() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["encoder.0.weight"], other["encoder.0.weight"])


def test_tensors_survive_a_file_and_do_not_follow_later_training() -> None:
    detector, batch = GANomaly(SMALL), waves(3, 4)
    steps = detector.fit(waves(8, 0))
    assert next(steps).epoch == 1
    first, tensors = detector.predict(batch).scores, detector.tensors()
    last = next(steps)
    assert (last.epoch, last.epochs) == (2, 2)
    state = torch.get_rng_state()
    copy = GANomaly(SMALL)
    copy.load_tensors(load(save(tensors)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(copy.predict(batch).scores, first)
    assert not torch.equal(detector.predict(batch).scores, first)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_pictures_of_any_size(count: int) -> None:
    train = waves(count, 0, size=(41, 57))
    scores = fitted(train=train).predict(train).scores
    assert scores.shape == (count,)
    assert scores.isfinite().all()


def test_pictures_are_resized_and_scaled() -> None:
    half = torch.cat([torch.zeros(1, 40, 60, 3), torch.full((1, 40, 60, 3), 255.0)], 1).to(torch.uint8)
    pixels = _pixels(Inputs((80, 60), {}, half), 32)
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels[:, :, :15], -torch.ones(1, 3, 15, 32))
    torch.testing.assert_close(pixels[:, :, 17:], torch.ones(1, 3, 15, 32))


def test_constant_pictures() -> None:
    plain = Inputs((32, 32), {}, torch.full((4, 32, 32, 3), 90, dtype=torch.uint8))
    detector = fitted(train=plain)
    assert detector.predict(plain).scores.isfinite().all()
    assert detector.predict(waves(2, 0)).scores.isfinite().all()


def test_bfloat16_learns_like_float32() -> None:
    train = waves(8, 0)
    half = GANomaly(SMALL, runtime=Runtime(precision="bfloat16"))
    assert next(half.fit(train)).loss == pytest.approx(next(GANomaly(SMALL).fit(train)).loss, rel=0.02)
    assert half.predict(train).scores.dtype == torch.float32


def test_a_loss_that_explodes_names_the_learning_rate() -> None:
    with pytest.raises(TrialError, match=r"loss became (nan|inf) in epoch \d+: lower lr"):
        fitted(dataclasses.replace(SMALL, lr=1e30, epochs=10))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 40),
        ("n_features", 1000),
        ("latent_vec_size", 0),
        ("extra_layers", -1),
        ("wadv", -1.0),
        ("wcon", math.inf),
        ("wenc", math.nan),
        ("lr", 0.0),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("batch_size", 0),
        ("epochs", 0),
    ],
)
def test_wrong_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"{field} must be .* but got "):
        GANomalyConfig(**{field: value})


def test_learns_what_untrained_networks_do_not_know() -> None:
    config = GANomalyConfig(image_size=32, n_features=16, latent_vec_size=16, batch_size=16, epochs=15)
    train, good, bad = waves(96, 0), waves(40, 1), waves(40, 2, defect=True)

    def auroc(config: GANomalyConfig, seed: int) -> float:
        detector = fitted(config, train, seed=seed)
        scores: list[Tensor] = [detector.predict(part).scores for part in (good, bad)]
        return float(roc_auc_score([0] * 40 + [1] * 40, torch.cat(scores)))

    trained = np.mean([auroc(config, seed) for seed in range(3)])
    untrained = np.mean([auroc(dataclasses.replace(config, lr=1e-12, epochs=1), seed) for seed in range(3)])
    assert trained >= untrained + 0.05
    assert trained >= 0.8
