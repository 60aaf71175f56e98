"""Student-teacher feature pyramid matching."""

from __future__ import annotations

import dataclasses
import functools
import math
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
from autoad.algorithms.optimizers import SGD
from autoad.features.backbones import create_backbone, feature_shapes
from autoad.features.compiled import CompiledNetwork, compile_network

__all__ = ["STFPM", "STFPMConfig"]


@dataclasses.dataclass(frozen=True)
class STFPMConfig:
    """Hyperparameters of :class:`STFPM`.

    Attributes:
        backbone: timm name of the teacher, and the student's architecture.
        image_size: height and width of the pictures, in pixels.
        epochs: passes over the training pictures.
        batch_size: pictures a step; see :class:`STFPM` for why not the paper's 32.
        lr: learning rate of stochastic gradient descent.
        momentum: of stochastic gradient descent.
        weight_decay: of stochastic gradient descent.
        combine: how the maps of the three stages become one, ``"product"`` or ``"sum"``. Read at prediction.
        sigma: of the Gaussian that smooths the map, in pixels; 0, the paper's, for none. Read at prediction.
    """

    backbone: str = BUNDLED_BACKBONE
    image_size: int = 256
    epochs: int = 100
    batch_size: int = 4
    lr: float = 0.4
    momentum: float = 0.9
    weight_decay: float = 1e-3
    combine: Literal["product", "sum"] = "product"
    sigma: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("image_size", 32), ("epochs", 1), ("batch_size", 2)):
            value = getattr(self, name)
            require(type(value) is int and value >= least, name, f"a whole number, {least} or more,", value)
        require(0 < self.lr < math.inf, "lr", "positive", self.lr)
        require(0 <= self.momentum < 1, "momentum", "0 or more and below 1", self.momentum)
        require(0 <= self.weight_decay < math.inf, "weight_decay", "0 or more", self.weight_decay)
        require(self.combine in ("product", "sum"), "combine", "'product' or 'sum'", self.combine)
        require(0 <= self.sigma < math.inf, "sigma", "0 or more", self.sigma)


class STFPM(Detector):
    """Student-teacher feature pyramid matching.

    A student of the teacher's architecture, from random weights, learns from the pixels of normal pictures to give the
    teacher's features at stages 1-3. Where it does not, the picture differs from what it has learnt. Features are
    L2-normalised over channels; the distance at a position is half the squared distance of teacher and student. The
    loss is its mean over positions and pictures, summed over stages. The map is the product (or sum) over stages of
    the distances, upsampled bilinearly to the picture; the image score is the maximum of the map.

    Optimiser and number of epochs are the reference's (SGD, lr 0.4, momentum 0.9, weight decay 1e-3, 100 epochs);
    no backbone tried needs clipping with them. Two things differ, for the sake of fits that are stopped early. The
    batch is smaller than the paper's 32: on a CPU a step costs in proportion to its pictures, so small batches make
    more steps in a given time. And batch normalisation's statistics are measured anew after an epoch that is looked at,
    where a moving average lags behind weights that change this fast.

    Shapes: pixels ``[N, H, W, 3]`` and features of stages 1-3 ``[N, C, h, w]`` in; scores ``[N]`` and maps
    ``[N, H, W]`` out.
    """

    name: ClassVar[str] = "stfpm"
    kind: ClassVar[Kind] = "segmentation"
    iterative: ClassVar[bool] = True
    compiles: ClassVar[bool] = True
    paper: ClassVar[str] = "Wang et al.: Student-Teacher Feature Pyramid Matching for Anomaly Detection (BMVC 2021)"
    Config: ClassVar[type[STFPMConfig]] = STFPMConfig
    post_fit: ClassVar[Mapping[str, Effect]] = {"combine": "both", "sigma": "both"}

    config: STFPMConfig
    _student: Student | None = None
    _saved: Mapping[str, Tensor] | None = None
    _compiled: CompiledNetwork | None = None
    _mean: Tensor
    _std: Tensor

    @property
    def needs(self) -> Needs:
        """Pixels, and features of stages 1, 2 and 3."""
        size = self.config.image_size
        return Needs((size, size), self.config.backbone, STAGES, images=True)

    def _create(self) -> nn.Module:
        from autoad.algorithms._students import train_faster  # it imports timm

        student = create_backbone(self.config.backbone, STAGES, pretrained=False)
        train_faster(student)
        return student.to(self.runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _trained(self) -> Student:
        """The student; one that was loaded is built when it is first asked for, because that takes timm.

        By one thread; :meth:`compile` leaves nothing to be built.
        """
        if self._saved is not None:
            network = self._create()
            load_network(network, self._saved, "student")
            self._student, self._saved = Student(network), None
        student: Student = fitted(self._student, self.name)
        return student

    def fit(self, train: Inputs) -> Iterator[Progress]:
        """Train the student; see :meth:`Detector.fit`."""
        import timm  # scoring can do without

        config = self.config
        with seeded(self.seed):
            network = self._create()
        pretrained = timm.get_pretrained_cfg(config.backbone)  # features are given, weights need not be there
        self._mean = torch.tensor(pretrained.mean, device=self.runtime.device)
        self._std = torch.tensor(pretrained.std, device=self.runtime.device)
        self._student, self._saved, self._compiled = Student(network), None, None
        optimizer = SGD(network.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay)

        def loss_of(network: nn.Module, indices: Tensor) -> Tensor:
            return torch.stack([distance.mean() for distance in self._distances(network, train[indices])]).sum()

        yield from self._student.learn(
            optimizer,
            loss_of,
            pictures=len(train),
            batch_size=config.batch_size,
            epochs=config.epochs,
            seed=self.seed,
        )

    def _distances(self, student: nn.Module, batch: Inputs) -> list[Tensor]:
        """By stage, half the squared distance of teacher and student at each position, ``[B, h, w]`` float32."""
        device = self.runtime.device
        assert batch.images is not None  # noqa: S101 - promised by needs
        pixels = _normalise(batch.images.to(device), self._mean, self._std)
        with self.runtime.autocast():
            outputs = student(pixels.permute(0, 3, 1, 2))
        return _distances([feature_map(batch, stage, device) for stage in STAGES], outputs)

    @torch.inference_mode()
    def measure(self, batch: Inputs, configs: Sequence[STFPMConfig]) -> tuple[list[Tensor], tuple[int, int]]:
        """How far the student's features are from the teacher's, by stage, and the pictures' size."""
        if self._compiled is not None:
            return measure_stages(batch, "cpu", functools.partial(_compiled_distances, self._compiled))
        student = self._trained().network
        return measure_stages(batch, self.runtime.device, functools.partial(self._distances, student))

    @torch.inference_mode()
    def finish(
        self, measured: tuple[list[Tensor], tuple[int, int]], config: STFPMConfig, *, maps: bool = True
    ) -> Prediction:
        """Combine the stages and smooth; the score is the map's largest value."""
        return combine_stages(measured, config.sigma, product=config.combine == "product", maps=maps)

    def compile(self, *, threads: int | None = None, streams: int | None = None) -> None:
        """See the base class."""
        if torch.device(self.runtime.device).type != "cpu":
            self._trained()
            return
        height, width = self.needs.image_size
        shapes = feature_shapes(self.config.backbone, (height, width))
        self._compiled = compile_network(
            lambda: _Scorer(self._trained().network, self._mean, self._std),
            [
                torch.zeros(1, height, width, 3, dtype=torch.uint8),
                *(torch.zeros(1, *shapes[stage]) for stage in STAGES),
            ],
            self.tensors(),
            threads=threads,
            streams=streams,
            detector=self.name,
            backbone=self.config.backbone,
        )
        if self._compiled is None:
            self._trained()
        else:
            self._student = self._saved = None

    def footprint(self, train: int, scored: int, shapes: Shapes) -> Footprint:
        """See the base class."""
        from autoad.algorithms._students import train_faster

        config = self.config
        with torch.device("meta"):
            student = create_backbone(config.backbone, STAGES, pretrained=False)
            train_faster(student)
            pictures = min(max(train, 2), config.batch_size)
            pixels = torch.empty(pictures, 3, config.image_size, config.image_size)
        training = training_bytes((student,), lambda: student(pixels), self.runtime, moments=1)
        teacher = 4 * feature_bytes(shapes)
        one = 28 * 3 * 4 * config.image_size**2
        return Footprint(
            fit=SCRATCH + training + pictures * teacher,
            predict=SCRATCH
            + weight_bytes(student)
            + teacher
            + one
            + finishing_bytes(scored, self.needs.image_size, images=6),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The student, and the mean and standard deviation with which its pixels are normalised."""
        if self._saved is not None:
            return dict(self._saved)
        student = network_tensors(self._trained().network, "student")
        return {**student, "mean": self._mean.cpu(), "std": self._std.cpu()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the student."""
        self._student, self._saved, self._compiled = None, dict(tensors), None
        self._mean, self._std = (tensors[name].to(self.runtime.device) for name in ("mean", "std"))


class _Scorer(nn.Module):
    """From one picture ``[1, H, W, 3]`` and its features, ``[1, h, w, C]`` by stage, to its distances ``[1, h, w]``.

    This is compiled.
    """

    def __init__(self, student: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.student, self.mean, self.std = student, mean, std

    def forward(self, images: Tensor, *features: Tensor) -> list[Tensor]:
        pixels = (images.float() * (1 / (255 * self.std)) - self.mean / self.std).permute(0, 3, 1, 2)
        return _distances([stage.permute(0, 3, 1, 2) for stage in features], self.student(pixels))


def _compiled_distances(network: CompiledNetwork, picture: Inputs) -> list[Tensor]:
    assert picture.images is not None  # noqa: S101 - promised by needs
    features = (feature_map(picture, stage, "cpu").permute(0, 2, 3, 1) for stage in STAGES)
    return network(picture.images, *features)


def _distances(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> list[Tensor]:
    """By stage, half the squared distance of both features' unit vectors at each position."""
    pairs = zip(teacher, student, strict=True)
    return [
        0.5 * (functional.normalize(one, dim=1) - functional.normalize(other.float(), dim=1)).square().sum(1)
        for one, other in pairs
    ]


def _normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``[N, H, W, 3]`` uint8 as float32, less the mean and divided by the deviation of values from 0 to 1.

    Row by row: three numbers are too few for the loops over the last dimension to be fast.
    """
    height, width = pixels.shape[1:3]
    rows = pixels.reshape(len(pixels), height, 3 * width).to(torch.float32, copy=True)
    rows.mul_((1 / (255 * std)).repeat(width)).sub_((mean / std).repeat(width))
    return rows.view(pixels.shape)
