"""Reverse distillation from a one-class embedding."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoad.algorithms._base import Detector, Effect, Footprint, Inputs, Kind, Needs, Prediction, Progress, Shapes
from autoad.algorithms._distillation import (
    STAGES,
    Student,
    combine_stages,
    load_network,
    measure_stages,
    network_tensors,
    seeded,
)
from autoad.algorithms._memory import SCRATCH, feature_bytes, finishing_bytes, training_bytes, weight_bytes
from autoad.algorithms._values import BUNDLED_BACKBONE, feature_map, fitted, require
from autoad.algorithms.optimizers import Adam
from autoad.features.backbones import feature_shapes
from autoad.features.compiled import CompiledNetwork, compile_network

__all__ = ["ReverseDistillation", "ReverseDistillationConfig"]


@dataclasses.dataclass(frozen=True)
class ReverseDistillationConfig:
    """Hyperparameters of :class:`ReverseDistillation`.

    Attributes:
        backbone: timm name of the teacher.
        image_size: height and width of the pictures, in pixels.
        epochs: passes over the training pictures.
        batch_size: pictures a step (the paper's 16; anomalib takes 32, with half the steps an epoch).
        lr: Adam's learning rate.
        beta1: Adam's decay of the gradient's mean.
        beta2: Adam's decay of the squared gradient's mean.
        combine: how the maps of the three stages become one, ``"add"`` or ``"multiply"``. Read at prediction.
        sigma: of the Gaussian that smooths the map, in pixels; 0 for none. Read at prediction.
    """

    backbone: str = BUNDLED_BACKBONE
    image_size: int = 256
    epochs: int = 200
    batch_size: int = 16
    lr: float = 0.005
    beta1: float = 0.5
    beta2: float = 0.99
    combine: Literal["add", "multiply"] = "add"
    sigma: float = 4.0

    def __post_init__(self) -> None:
        for name, least in (("image_size", 32), ("epochs", 1), ("batch_size", 2)):
            value = getattr(self, name)
            require(type(value) is int and value >= least, name, f"a whole number, {least} or more,", value)
        require(0 < self.lr < math.inf, "lr", "positive", self.lr)
        require(0 <= self.beta1 < 1, "beta1", "0 or more and below 1", self.beta1)
        require(0 <= self.beta2 < 1, "beta2", "0 or more and below 1", self.beta2)
        require(self.combine in ("add", "multiply"), "combine", "'add' or 'multiply'", self.combine)
        require(0 <= self.sigma < math.inf, "sigma", "0 or more", self.sigma)


_RESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclasses.dataclass(frozen=True)
class _Architecture:
    """Which residual blocks the student is made of.

    Attributes:
        blocks: how many in the decoder's three stages, deepest first (the order of the authors' code), and in the
            embedding.
        bottleneck: width of the 3x3 convolution as a share of a block's output channels; None for basic blocks.
        signed: whether the teacher's features take both signs, so that no ReLU may end a decoder stage.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: float | None
    signed: bool

    @classmethod
    def of(cls, backbone: str) -> _Architecture:
        """A ResNet's own blocks; two basic blocks a stage for any other backbone."""
        match = re.match(r"(wide_)?resnet(18|34|50|101|152)(_2)?(\.|$)", backbone)
        if match is None:
            return cls((2, 2, 2, 2), None, signed=True)
        depth = int(match[2])
        return cls(_RESNET_BLOCKS[depth], None if depth < 50 else 0.5 if match[1] else 0.25, signed=False)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _halving(inputs: int, outputs: int) -> list[nn.Module]:
    return [_conv(inputs, outputs, 3, 2), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class _Residual(nn.Module):
    """ResNet's basic or bottleneck block whose 3x3 convolution keeps, halves or (transposed, 2x2) doubles the grid."""

    def __init__(
        self, inputs: int, outputs: int, scale: Literal["same", "down", "up"], bottleneck: float | None, relu: bool
    ) -> None:
        super().__init__()

        def resample(a: int, b: int, kernel: int) -> nn.Module:
            if scale == "up":
                return nn.ConvTranspose2d(a, b, 2, 2, bias=False)
            return _conv(a, b, kernel, 2 if scale == "down" else 1)

        if bottleneck is None:
            layers = [resample(inputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            layers += [_conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)]
        else:
            width = max(1, int(outputs * bottleneck))
            layers = [_conv(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            layers += [resample(width, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            layers += [_conv(width, outputs, 1), nn.BatchNorm2d(outputs)]
        self.residual = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if scale != "same" or inputs != outputs:
            self.shortcut = nn.Sequential(resample(inputs, outputs, 1), nn.BatchNorm2d(outputs))
        self.last: nn.Module = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        restored: Tensor = self.last(self.residual(x) + self.shortcut(x))
        return restored


def _stage(
    inputs: int, outputs: int, scale: Literal["down", "up"], blocks: int, bottleneck: float | None, relu: bool
) -> nn.Sequential:
    """A residual stage; ``relu`` says whether its last block ends with one (the others always do)."""
    layers = [_Residual(inputs, outputs, scale, bottleneck, relu or blocks > 1)]
    layers += [_Residual(outputs, outputs, "same", bottleneck, relu or i + 1 < blocks) for i in range(1, blocks)]
    return nn.Sequential(*layers)


def _to_grid(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring ``[B, C, h, w]`` to the teacher's grid where halving and doubling did not meet it (odd sizes)."""
    if x.shape[-2:] == size:
        return x
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


class _Network(nn.Module):
    """Fusion, one-class bottleneck embedding and decoder.

    Args:
        channels: of the teacher's stages 1, 2 and 3.
        architecture: the blocks to build it from.
    """

    def __init__(self, channels: Sequence[int], architecture: _Architecture) -> None:
        super().__init__()
        c1, c2, c3 = channels
        embedding = 2 * c3
        share, relu, blocks = architecture.bottleneck, not architecture.signed, architecture.blocks
        self.fuse1 = nn.Sequential(*_halving(c1, c2), *_halving(c2, c3))
        self.fuse2 = nn.Sequential(*_halving(c2, c3))
        self.mix = nn.Sequential(_conv(3 * c3, c3, 1), nn.BatchNorm2d(c3), nn.ReLU(inplace=True))
        self.embed = _stage(c3, embedding, "down", blocks[3], share, relu=True)
        self.decode3 = _stage(embedding, c3, "up", blocks[0], share, relu)
        self.decode2 = _stage(c3, c2, "up", blocks[1], share, relu)
        self.decode1 = _stage(c2, c1, "up", blocks[2], share, relu)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, f1: Tensor, f2: Tensor, f3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's features as the embedding can restore them, of the same shapes ``[B, C, h, w]``."""
        g1, g2, g3 = ((f.shape[-2], f.shape[-1]) for f in (f1, f2, f3))
        fused = torch.cat([_to_grid(self.fuse1(f1), g3), _to_grid(self.fuse2(f2), g3), f3], dim=1)
        s3 = _to_grid(self.decode3(self.embed(self.mix(fused))), g3)
        s2 = _to_grid(self.decode2(s3), g2)
        return _to_grid(self.decode1(s2), g1), s2, s3


class ReverseDistillation(Detector):
    """Reverse distillation: a student restores the teacher's features from a compact one-class embedding.

    The frozen teacher's stages 1-3 are fused (3x3 convolutions of stride 2 bring each to the deepest grid; joined, a
    1x1 convolution mixes them), squeezed by one more residual stage of stride 2 into the embedding, and a decoder that
    mirrors the teacher restores all three from it. Trained on normal pictures only, it restores normal features; what
    it cannot restore is anomalous. Only cached features are needed, never pixels.

    The loss is, summed over stages, one minus the cosine similarity of teacher and student, each stage flattened to one
    vector a picture. The paper's equation averages the similarity of single positions instead; its authors' code
    flattens, which weighs positions by their norms, and that is the form here. The map of a stage is one minus the
    cosine at each position; maps are upsampled bilinearly to the picture, added (or multiplied) and smoothed. The
    image score is the maximum of the map. Maps are *not* min-max normalised, as some descriptions have it: a picture's
    own range would give every good picture a defect, a batch's would make scores depend on the batch.

    For ResNets the student has the blocks of the authors' code (basic or bottleneck, as many a stage as the teacher).
    For any other backbone it has two basic blocks a stage, of the teacher's channels, and no ReLU at the end of a
    decoder stage because such features take both signs; where grids of odd size do not divide by two, maps are
    resized bilinearly to the teacher's. Batch normalisation's statistics are measured anew after every epoch that is
    looked at, so that a detector stopped after any of them is sound.

    Shapes: features of stages 1-3 ``[N, C, h, w]`` in; scores ``[N]`` and maps ``[N, H, W]`` out.
    """

    name: ClassVar[str] = "reverse_distillation"
    kind: ClassVar[Kind] = "segmentation"
    iterative: ClassVar[bool] = True
    compiles: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Deng and Li: Anomaly Detection via Reverse Distillation from One-Class Embedding (CVPR 2022)"
    )
    Config: ClassVar[type[ReverseDistillationConfig]] = ReverseDistillationConfig
    post_fit: ClassVar[Mapping[str, Effect]] = {"combine": "both", "sigma": "both"}

    config: ReverseDistillationConfig
    _student: Student | None = None
    _compiled: CompiledNetwork | None = None

    @property
    def needs(self) -> Needs:
        """Features of stages 1, 2 and 3."""
        size = self.config.image_size
        return Needs((size, size), self.config.backbone, STAGES)

    def _create(self, channels: Sequence[int]) -> _Network:
        student = _Network(channels, _Architecture.of(self.config.backbone))
        return student.to(self.runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def fit(self, train: Inputs) -> Iterator[Progress]:
        """Train the student; see :meth:`Detector.fit`."""
        config = self.config
        with seeded(self.seed):
            network = self._create([train.features[stage].shape[1] for stage in STAGES])
        self._student, self._compiled = Student(network), None
        optimizer = Adam(network.parameters(), config.lr, (config.beta1, config.beta2))

        def loss_of(network: nn.Module, indices: Tensor) -> Tensor:
            pairs = zip(*self._pairs(network, train[indices]), strict=True)
            return torch.stack([_dissimilarity(teacher, restored) for teacher, restored in pairs]).sum()

        yield from self._student.learn(
            optimizer,
            loss_of,
            pictures=len(train),
            batch_size=config.batch_size,
            epochs=config.epochs,
            seed=self.seed,
        )

    def _pairs(self, student: nn.Module, batch: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        """The teacher's and the student's features by stage, ``[B, C, h, w]`` float32."""
        teacher = [feature_map(batch, stage, self.runtime.device) for stage in STAGES]
        with self.runtime.autocast():
            restored = student(*teacher)
        return teacher, [one.float() for one in restored]

    def _distances(self, student: nn.Module, batch: Inputs) -> list[Tensor]:
        """By stage, one minus the cosine of teacher and student at each position, ``[B, h, w]``."""
        return _distances(*self._pairs(student, batch))

    @torch.inference_mode()
    def measure(
        self, batch: Inputs, configs: Sequence[ReverseDistillationConfig]
    ) -> tuple[list[Tensor], tuple[int, int]]:
        """How badly the student restores the pictures' features, by stage, and the pictures' size."""
        if self._compiled is not None:
            return measure_stages(batch, "cpu", functools.partial(_compiled_distances, self._compiled))
        student = fitted(self._student, self.name).network
        return measure_stages(batch, self.runtime.device, functools.partial(self._distances, student))

    @torch.inference_mode()
    def finish(
        self, measured: tuple[list[Tensor], tuple[int, int]], config: ReverseDistillationConfig, *, maps: bool = True
    ) -> Prediction:
        """Combine the stages and smooth; the score is the map's largest value."""
        return combine_stages(measured, config.sigma, product=config.combine == "multiply", maps=maps)

    def compile(self, *, threads: int | None = None, streams: int | None = None) -> None:
        """See the base class."""
        student = fitted(self._student, self.name)
        if torch.device(self.runtime.device).type != "cpu":
            return
        shapes = feature_shapes(self.config.backbone, self.needs.image_size)
        self._compiled = compile_network(
            lambda: _Scorer(student.network),
            [torch.zeros(1, *shapes[stage]) for stage in STAGES],
            student.network.state_dict(),
            threads=threads,
            streams=streams,
            detector=self.name,
            backbone=self.config.backbone,
        )
        if self._compiled is not None:
            self._student = None

    def footprint(self, train: int, scored: int, shapes: Shapes) -> Footprint:
        """See the base class."""
        with torch.device("meta"):
            student = _Network([shapes[stage][2] for stage in STAGES], _Architecture.of(self.config.backbone))
            pictures = min(max(train, 2), self.config.batch_size)
            teacher = [torch.empty(pictures, channels, h, w) for h, w, channels in (shapes[stage] for stage in STAGES)]
        training = training_bytes((student,), lambda: student(*teacher), self.runtime, moments=2)
        reading = 6 * feature_bytes(shapes)
        return Footprint(
            fit=SCRATCH + training + pictures * reading,
            predict=SCRATCH
            + weight_bytes(student)
            + 2 * reading
            + finishing_bytes(scored, self.needs.image_size, images=6),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The student's parameters and batch statistics."""
        return network_tensors(fitted(self._student, self.name).network, "student")

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Rebuild the student; the channels are read off the shapes of the fusing convolutions."""
        fuse1, fuse2 = tensors["student.fuse1.0.weight"], tensors["student.fuse2.0.weight"]
        network = self._create([fuse1.shape[1], fuse2.shape[1], fuse2.shape[0]])
        load_network(network, tensors, "student")
        self._student, self._compiled = Student(network), None


class _Scorer(nn.Module):
    """From one picture's features, ``[1, h, w, C]`` by stage, to its distances ``[1, h, w]``; this is compiled."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, *features: Tensor) -> list[Tensor]:
        teacher = [stage.permute(0, 3, 1, 2) for stage in features]
        return _distances(teacher, self.student(*teacher))


def _compiled_distances(network: CompiledNetwork, picture: Inputs) -> list[Tensor]:
    return network(*(feature_map(picture, stage, "cpu").permute(0, 2, 3, 1) for stage in STAGES))


def _distances(teacher: Sequence[Tensor], restored: Sequence[Tensor]) -> list[Tensor]:
    """By stage, one minus the cosine of teacher and student at each position."""
    pairs = zip(teacher, restored, strict=True)
    return [1 - (functional.normalize(one) * functional.normalize(other)).sum(1) for one, other in pairs]


def _dissimilarity(teacher: Tensor, student: Tensor) -> Tensor:
    """One minus the cosine of ``[B, C, h, w]`` features taken as one vector a picture; the mean over pictures."""
    dot = (teacher * student).sum((1, 2, 3))
    norms = teacher.square().sum((1, 2, 3)) * student.square().sum((1, 2, 3))
    return (1 - dot / norms.sqrt().clamp_min(1e-8)).mean()
