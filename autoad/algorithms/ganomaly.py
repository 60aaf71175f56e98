"""GANomaly: an adversarially trained encoder-decoder-encoder."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoad.algorithms._base import Detector, Footprint, Inputs, Kind, Needs, Prediction, Progress, Runtime, Shapes
from autoad.algorithms._memory import SCRATCH, training_bytes, weight_bytes
from autoad.algorithms._values import fitted, require
from autoad.algorithms.optimizers import Adam
from autoad.errors import TrialError
from autoad.features.compiled import CompiledNetwork, compile_network

__all__ = ["GANomaly", "GANomalyConfig"]

_MAX_CHANNELS = 512
_NO_PIXELS = "ganomaly must be given the pictures' pixels but got features alone"
_Network = TypeVar("_Network", "_Generator", "_Discriminator")


@dataclasses.dataclass(frozen=True)
class GANomalyConfig:
    """Hyperparameters of :class:`GANomaly`.

    Attributes:
        image_size: side of the square to which pictures are resized, in pixels; a multiple of 16.
        n_features: channels after the first convolution; each halving of the size doubles them, up to 512.
        latent_vec_size: length of the latent vectors.
        extra_layers: further 3x3 convolutions at the encoders' first and the decoder's last size.
        wadv: weight of the adversarial loss.
        wcon: weight of the contextual loss.
        wenc: weight of the encoder loss.
        lr: Adam's learning rate, for generator and discriminator.
        beta1: Adam's first decay rate.
        beta2: Adam's second decay rate.
        batch_size: pictures in a training step, at most.
        epochs: ceiling of training.
    """

    image_size: int = 64
    n_features: int = 64
    latent_vec_size: int = 100
    extra_layers: int = 0
    wadv: float = 1.0
    wcon: float = 50.0
    wenc: float = 1.0
    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    batch_size: int = 32
    epochs: int = 100

    def __post_init__(self) -> None:
        size = self.image_size
        require(type(size) is int and size >= 16 and size % 16 == 0, "image_size", "a positive multiple of 16", size)
        for name in ("n_features", "latent_vec_size", "batch_size", "epochs"):
            value = getattr(self, name)
            require(type(value) is int and value >= 1, name, "a whole number, 1 or more,", value)
        require(self.n_features <= _MAX_CHANNELS, "n_features", f"{_MAX_CHANNELS} or less", self.n_features)
        extra = self.extra_layers
        require(type(extra) is int and extra >= 0, "extra_layers", "a whole number, 0 or more,", extra)
        for name in ("wadv", "wcon", "wenc"):
            require(0 <= getattr(self, name) < math.inf, name, "0 or more", getattr(self, name))
        require(0 < self.lr < math.inf, "lr", "positive", self.lr)
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, "0 or more and below 1", getattr(self, name))


class GANomaly(Detector):
    """GANomaly (Akcay, Atapour-Abarghouei, Breckon: GANomaly: Semi-Supervised Anomaly Detection via Adversarial
    Training, ACCV 2018).

    A generator encodes a picture ``x`` to ``z``, decodes it to ``x'`` and encodes that again, to ``z'``; a
    discriminator with features ``f`` tells pictures from reconstructions. All are DCGAN's. The generator minimises
    ``wadv |f(x) - f(x')|^2 + wcon |x - x'|_1 + wenc |z - z'|^2``, the discriminator the binary cross-entropy. The score
    is the mean of ``|z - z'|`` over the latent vector, the paper's up to a constant factor.

    The authors' code and anomalib rescale scores by the smallest and largest seen so far, which makes a picture's
    score depend on those before it: not done here. Batch normalisation uses the averages over the last epoch, which
    mean something after one epoch already, where the usual decaying ones still remember their start.

    Pixels are scaled to [-1, 1]; pictures of another size are resized to the configured one, until it is compiled.
    """

    name = "ganomaly"
    kind: ClassVar[Kind] = "classification"
    iterative = True
    compiles = True
    paper = "Akcay et al., GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training, 2018"
    Config = GANomalyConfig
    config: GANomalyConfig

    def __init__(self, config: Any = None, *, seed: int = 0, runtime: Runtime | None = None) -> None:
        super().__init__(config, seed=seed, runtime=runtime)
        self._generator: _Generator | None = None
        self._compiled: CompiledNetwork | None = None

    @property
    def needs(self) -> Needs:
        """Pixels alone."""
        return Needs((self.config.image_size, self.config.image_size), images=True)

    def fit(self, train: Inputs) -> Iterator[Progress]:
        """Train generator and discriminator.

        Raises:
            TrialError: a loss is no longer finite.
        """
        config, random = self.config, torch.Generator().manual_seed(self.seed)
        pixels = _pixels(train, config.image_size)
        generator, discriminator = self._build(_Generator), self._build(_Discriminator)
        _initialise(generator, random)
        _initialise(discriminator, random)
        self._generator, self._compiled = generator, None
        step = _Step(generator, discriminator, config)
        for epoch in range(1, config.epochs + 1):
            generator.train()
            _forget_statistics(generator)
            # equal batches: a last one of a single picture would count as much as a full one
            order = torch.randperm(len(pixels), generator=random)
            batches = order.tensor_split(-(-len(pixels) // config.batch_size))
            losses = [step(pixels[batch].to(self.runtime.device), self.runtime) for batch in batches]
            generator.eval()
            loss = float(torch.stack(losses).mean())
            if not math.isfinite(loss):
                raise TrialError(f"ganomaly's loss became {loss} in epoch {epoch}: lower lr (it is {config.lr})")
            yield Progress(epoch, config.epochs, loss)

    @torch.no_grad()
    def measure(self, batch: Inputs, configs: Sequence[GANomalyConfig]) -> Tensor:
        """Scores ``[N]`` of the pictures, one by one, so that not even rounding depends on their company."""
        if self._compiled is not None:
            if batch.images is None:
                raise ValueError(_NO_PIXELS)
            return torch.cat([self._compiled(batch.images[i : i + 1])[0] for i in range(len(batch))])
        generator = fitted(self._generator, self.name)
        return torch.cat([self._score(generator, picture) for picture in batch.batches(1)])

    def finish(self, measured: Tensor, config: GANomalyConfig, *, maps: bool = True) -> Prediction:
        """The scores as they are; there is no map."""
        return Prediction(measured.cpu())

    def _score(self, generator: _Generator, picture: Inputs) -> Tensor:
        with self.runtime.autocast():
            pixels = _pixels(picture, self.config.image_size).to(self.runtime.device)
            z, _, z_again = generator(pixels)
        return _score(z, z_again)

    def compile(self, *, threads: int | None = None, streams: int | None = None) -> None:
        """See the base class."""
        generator, size = fitted(self._generator, self.name), self.config.image_size
        if torch.device(self.runtime.device).type != "cpu":
            return
        self._compiled = compile_network(
            lambda: _Scorer(generator),
            [torch.zeros(1, size, size, 3, dtype=torch.uint8)],
            generator.state_dict(),
            threads=threads,
            streams=streams,
            detector=self.name,
        )
        if self._compiled is not None:
            self._generator = None

    def footprint(self, train: int, scored: int, shapes: Shapes) -> Footprint:
        """See the base class."""
        config = self.config
        with torch.device("meta"):
            generator, discriminator = _Generator(config), _Discriminator(config)
            pixels = torch.empty(min(train, config.batch_size), 3, config.image_size, config.image_size)

        def forward() -> object:
            z, fake, z_again = generator(pixels)
            return z, z_again, discriminator(pixels), discriminator(fake)

        training = training_bytes((generator, discriminator), forward, self.runtime, moments=2)
        picture = 3 * 4 * config.image_size**2
        return Footprint(
            fit=SCRATCH + 3 * train * picture + training,
            predict=SCRATCH + 2 * weight_bytes(generator) + 20 * picture,
            maps=False,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Weights and normalisation statistics of the generator; the discriminator is not needed to score."""
        state = fitted(self._generator, self.name).state_dict()
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Rebuild the generator."""
        generator = self._build(_Generator)
        generator.load_state_dict(tensors)
        self._generator, self._compiled = generator.eval(), None

    def _build(self, network: type[_Network]) -> _Network:
        with torch.random.fork_rng(devices=[]):  # layers draw first weights from the global generator
            built = network(self.config)
        return built.to(self.runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class _Step:
    """One training step of both networks on one batch.

    A picture and its reconstruction pass the discriminator once: the generator's gradient is taken through that pass
    to the reconstruction, the discriminator's to its own weights.
    """

    def __init__(self, generator: _Generator, discriminator: _Discriminator, config: GANomalyConfig) -> None:
        self._generator, self._discriminator, self._config = generator, discriminator, config
        self._generator_weights = list(generator.parameters())
        self._discriminator_weights = list(discriminator.parameters())
        betas = (config.beta1, config.beta2)
        self._generator_optimizer = Adam(self._generator_weights, config.lr, betas)
        self._discriminator_optimizer = Adam(self._discriminator_weights, config.lr, betas)

    def __call__(self, pixels: Tensor, runtime: Runtime) -> Tensor:
        """Train on pictures ``[B, 3, size, size]``; both networks' losses, added."""
        config = self._config
        with runtime.autocast():
            z, fake, z_again = self._generator(pixels)
            real_features, real_logit = self._discriminator(pixels)
            fake_features, fake_logit = self._discriminator(fake)
        adversarial = functional.mse_loss(fake_features.float(), real_features.detach().float())
        contextual = functional.l1_loss(fake.float(), pixels)
        encoder = functional.mse_loss(z_again.float(), z.float())
        generator_loss = config.wadv * adversarial + config.wcon * contextual + config.wenc * encoder
        logits = torch.cat([real_logit, fake_logit]).float()
        truth = torch.cat([torch.ones_like(real_logit), torch.zeros_like(fake_logit)]).float()
        discriminator_loss = functional.binary_cross_entropy_with_logits(logits, truth)
        torch.autograd.backward(generator_loss, inputs=self._generator_weights, retain_graph=True)
        torch.autograd.backward(discriminator_loss, inputs=self._discriminator_weights)
        for optimizer in (self._generator_optimizer, self._discriminator_optimizer):
            optimizer.step()
            optimizer.zero_grad()
        return (generator_loss + discriminator_loss).detach()


def _encoder(config: GANomalyConfig, outputs: int) -> nn.Sequential:
    """Halves the size until it is odd or below 8, then maps what is left to ``outputs`` numbers."""
    widths, size = _pyramid(config)
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for _ in range(config.extra_layers):
        layers += [nn.Conv2d(widths[0], widths[0], 3, 1, 1, bias=False), *_normalised(widths[0], leaky=True)]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), *_normalised(after, leaky=True)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], outputs, size, bias=False))


def _decoder(config: GANomalyConfig) -> nn.Sequential:
    """An encoder's mirror image, to pixels in [-1, 1]."""
    widths, size = _pyramid(config)
    widths = widths[::-1]
    latent = config.latent_vec_size
    layers = [nn.ConvTranspose2d(latent, widths[0], size, bias=False), *_normalised(widths[0], leaky=False)]
    for before, after in itertools.pairwise(widths):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), *_normalised(after, leaky=False)]
    for _ in range(config.extra_layers):
        layers += [nn.Conv2d(widths[-1], widths[-1], 3, 1, 1, bias=False), *_normalised(widths[-1], leaky=False)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1, bias=False), nn.Tanh())


class _Generator(nn.Module):
    """Encoder, decoder, encoder."""

    def __init__(self, config: GANomalyConfig) -> None:
        super().__init__()
        self.encoder = _encoder(config, config.latent_vec_size)
        self.decoder = _decoder(config)
        self.encoder_again = _encoder(config, config.latent_vec_size)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latent vectors ``[B, latent]``, reconstruction, and its latent vectors."""
        z = self.encoder(pixels)
        fake = self.decoder(z)
        return z.flatten(1), fake, self.encoder_again(fake).flatten(1)


class _Discriminator(nn.Module):
    """An encoder to one number, whose last but one layer gives the features that are matched."""

    def __init__(self, config: GANomalyConfig) -> None:
        super().__init__()
        encoder = _encoder(config, 1)
        self.features = encoder[:-1]
        self.classifier = encoder[-1]

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logit (of being a picture, not a reconstruction) ``[B]``."""
        features = self.features(pixels)
        return features, self.classifier(features).flatten()


def _pyramid(config: GANomalyConfig) -> tuple[list[int], int]:
    """Channels after each halving of the size, and the size that is left."""
    size, width, widths = config.image_size, config.n_features, []
    while size % 2 == 0 and size > 7:
        widths.append(width)
        size, width = size // 2, min(2 * width, _MAX_CHANNELS)
    return widths, size


def _normalised(channels: int, *, leaky: bool) -> list[nn.Module]:
    # momentum None: statistics are plain averages since they were last forgotten
    activation = nn.LeakyReLU(0.2, inplace=True) if leaky else nn.ReLU(inplace=True)
    return [nn.BatchNorm2d(channels, momentum=None), activation]


def _forget_statistics(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()


@torch.no_grad()
def _initialise(network: nn.Module, random: torch.Generator) -> None:
    """DCGAN's normal weights."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.weight.normal_(0.0, 0.02, generator=random)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.normal_(1.0, 0.02, generator=random)


class _Scorer(nn.Module):
    """From one picture ``[1, size, size, 3]`` to its score ``[1]``; this is compiled."""

    def __init__(self, generator: _Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, images: Tensor) -> Tensor:
        z, _, z_again = self.generator(_scale(images))
        return _score(z, z_again)


def _score(z: Tensor, z_again: Tensor) -> Tensor:
    """Mean distance of latent vectors ``[B, latent]``."""
    score: Tensor = (z.float() - z_again.float()).abs().mean(1)
    return score


def _scale(images: Tensor) -> Tensor:
    """``[N, H, W, 3]`` uint8 as ``[N, 3, H, W]`` in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _pixels(pictures: Inputs, size: int) -> Tensor:
    """Pictures ``[N, 3, size, size]`` in [-1, 1], channels last in memory."""
    if pictures.images is None:
        raise ValueError(_NO_PIXELS)
    pixels = _scale(pictures.images)
    if pixels.shape[-2:] != (size, size):
        pixels = functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return pixels.contiguous(memory_format=torch.channels_last)
