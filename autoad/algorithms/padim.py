"""PaDiM: one Gaussian for each place of the picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from autoad.algorithms._base import Detector, Effect, Footprint, Inputs, Needs, Prediction, Progress, Shapes
from autoad.algorithms._maps import enlarge, smooth_prediction
from autoad.algorithms._memory import SCRATCH, finishing_bytes
from autoad.algorithms._values import BUNDLED_BACKBONE, check_memory, check_stages, fitted, require
from autoad.errors import TrialError

__all__ = ["PaDiM", "PaDiMConfig"]

_PLACES = 256
"""Places whose Gaussians are computed or used at a time."""

_PICTURES = 16
"""Pictures scored at a time."""


@dataclasses.dataclass(frozen=True)
class PaDiMConfig:
    """Hyperparameters of :class:`PaDiM`.

    Attributes:
        backbone: timm name; the paper's are ``resnet18``, ``wide_resnet50_2`` and ``efficientnet_b5``.
        image_size: height and width in pixels.
        stages: whose features are joined, at the first one's resolution.
        n_features: channels drawn at random from all of them; all, when there are not as many.
        regularization: added to the variance of each channel.
        sigma: of the map's Gaussian blur, in pixels. Read at prediction.
    """

    backbone: str = BUNDLED_BACKBONE
    image_size: int = 256
    stages: tuple[int, ...] = (1, 2, 3)
    n_features: int = 100
    regularization: float = 0.01
    sigma: float = 4.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", check_stages("padim.stages", self.stages))
        require(self.image_size >= 32, "padim.image_size", "at least 32 pixels", self.image_size)
        require(self.n_features >= 1, "padim.n_features", "at least 1", self.n_features)
        require(self.regularization > 0, "padim.regularization", "above 0", self.regularization)
        require(self.sigma >= 0, "padim.sigma", "0 (no blur) or more", self.sigma)


class PaDiM(Detector):
    """Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization", 2021.

    At every place of the first stage's grid the features of all stages (deeper ones repeated) form one vector, of which
    some channels, drawn by the seed, are kept. Their mean and covariance over the training pictures, plus
    ``regularization`` on the diagonal, are a Gaussian for that place. The map is the Mahalanobis distance to it,
    enlarged and blurred; the image score is the map's maximum. Pictures must be aligned for this to work well.
    """

    name = "padim"
    kind = "segmentation"
    paper = "Defard et al., PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization, 2021"
    Config = PaDiMConfig
    post_fit: ClassVar[Mapping[str, Effect]] = {"sigma": "both"}

    _whitener: Tensor | None = None
    _mean: Tensor
    _channels: Tensor

    @property
    def needs(self) -> Needs:
        """Features of the configured stages."""
        return Needs((self.config.image_size,) * 2, self.config.backbone, self.config.stages)

    @torch.no_grad()
    def fit(self, train: Inputs) -> Iterator[Progress]:
        """Estimate the Gaussians; see the base class.

        Raises:
            TrialError: there is only one training picture.
            TrialMemoryError: the Gaussians would take more than the runtime's memory.
        """
        if len(train) < 2:
            raise TrialError(f"padim must have at least 2 training pictures but got {len(train)}")
        places = train.features[self.config.stages[0]].shape[-2:].numel()
        total = sum(train.features[stage].shape[1] for stage in self.config.stages)
        width = min(self.config.n_features, total)
        check_memory(
            4 * places * width**2,
            self.runtime.memory,
            "padim's covariances",
            "lower n_features or image_size, or leave out the first stage",
        )
        order = torch.randperm(total, generator=torch.Generator().manual_seed(self.seed))
        self._channels = order[:width].sort().values
        device = self.runtime.device
        self._mean = torch.empty(places, width, device=device)
        self._whitener = torch.empty(places, width, width, device=device)
        for start in range(0, places, _PLACES):
            here = slice(start, min(start + _PLACES, places))
            self._mean[here], self._whitener[here] = self._gaussians(self._gather(train, here))
        yield Progress(1, 1)

    @torch.no_grad()
    def measure(self, batch: Inputs, configs: Sequence[PaDiMConfig]) -> tuple[Tensor, tuple[int, int]]:
        """Mahalanobis distances ``[N, h, w]``, and the pictures' size."""
        whitener = fitted(self._whitener, self.name)
        grid = batch.features[self.config.stages[0]].shape[-2:]
        measured = []
        for part in batch.batches(_PICTURES):
            distances = torch.empty(len(part), len(whitener), device=whitener.device)
            for start in range(0, len(whitener), _PLACES):
                here = slice(start, start + _PLACES)
                centred = self._gather(part, here) - self._mean[here, None]
                white = torch.bmm(centred, whitener[here].mT)
                distances[:, here] = torch.linalg.vector_norm(white, dim=2).T
            measured.append(distances.view(-1, *grid))
        return torch.cat(measured), batch.image_size

    @torch.no_grad()
    def finish(self, measured: tuple[Tensor, tuple[int, int]], config: PaDiMConfig, *, maps: bool = True) -> Prediction:
        """Enlarge and blur the distances; the score is the largest."""
        distances, size = measured
        return smooth_prediction(len(distances), lambda here: enlarge(distances[here], size, config.sigma), maps=maps)

    def footprint(self, train: int, scored: int, shapes: Shapes) -> Footprint:
        """See the base class."""
        height, width, _ = shapes[self.config.stages[0]]
        places = height * width
        features = min(self.config.n_features, sum(shapes[stage][2] for stage in self.config.stages))
        gaussians = 4 * places * (features + features**2)
        # Of some places at a time: the features, gathered and centred, and a covariance, its factor and that's inverse.
        block = min(places, _PLACES) * (3 * 4 * train * features + 36 * features**2)
        scoring = 3 * 4 * min(places, _PLACES) * min(scored, _PICTURES) * features
        return Footprint(
            fit=SCRATCH + gaussians + block,
            predict=SCRATCH + gaussians + scoring + finishing_bytes(scored, self.needs.image_size),
        )

    def tensors(self) -> dict[str, Tensor]:
        """``channels`` ``[F]``, ``mean`` ``[L, F]`` and ``whitener`` ``[L, F * (F + 1) / 2]``, its lower triangle."""
        whitener = fitted(self._whitener, self.name)
        rows, columns = torch.tril_indices(*whitener.shape[1:], device=whitener.device)
        packed = whitener[:, rows, columns]
        return {"channels": self._channels.clone(), "mean": self._mean.cpu().clone(), "whitener": packed.cpu()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See the base class."""
        self._channels = tensors["channels"]
        self._mean = tensors["mean"].to(self.runtime.device)
        places, width = self._mean.shape
        rows, columns = torch.tril_indices(width, width, device=self.runtime.device)
        self._whitener = torch.zeros(places, width, width, device=self.runtime.device)
        self._whitener[:, rows, columns] = tensors["whitener"].to(self.runtime.device)

    def _gather(self, batch: Inputs, places: slice) -> Tensor:
        """Chosen channels at consecutive ``places`` of the first stage's grid, ``[places, N, F]`` float32."""
        height, width = batch.features[self.config.stages[0]].shape[-2:]
        index = torch.arange(height * width)[places]
        chosen, first = [], 0
        for stage in self.config.stages:
            maps = batch.features[stage].permute(0, 2, 3, 1)
            channels = self._channels[(self._channels >= first) & (self._channels < first + maps.shape[-1])] - first
            first += maps.shape[-1]
            # Nearest neighbour: each place looks up the cell of the deeper grid in which it lies.
            rows = index // width * maps.shape[1] // height
            columns = index % width * maps.shape[2] // width
            cells = rows * maps.shape[2] + columns
            band = maps.flatten(1, 2)[:, cells.min() : cells.max() + 1].index_select(2, channels)
            values = band.to(self.runtime.device, torch.float32).transpose(0, 1)
            chosen.append(values[cells - cells.min()])
        return torch.cat(chosen, dim=2)

    def _gaussians(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``[L, F]`` and inverse Cholesky factor ``[L, F, F]`` of the covariance of ``[L, N, F]``."""
        mean = features.mean(1)
        centred = features.sub_(mean[:, None])
        covariance = torch.bmm(centred.mT, centred)
        # Float32 holds seven digits: beside variances this large, the regulariser would drown in rounding errors.
        if covariance.amax() / len(centred[0]) * 1e-5 > self.config.regularization:
            covariance = torch.bmm(centred.double().mT, centred.double())
        covariance = covariance.double().div_(features.shape[1] - 1)
        covariance.diagonal(dim1=1, dim2=2).add_(self.config.regularization)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed.any():
            raise TrialError(
                f"padim.regularization must be large enough for these features but got {self.config.regularization!r}: "
                "their covariance is singular"
            )
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
        return mean, torch.linalg.solve_triangular(factor, identity, upper=False)
