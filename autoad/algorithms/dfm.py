"""DFM: how well the principal subspace of normal features explains a picture's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from autoad.algorithms._base import Detector, Effect, Footprint, Inputs, Needs, Prediction, Progress, Shapes
from autoad.algorithms._maps import enlarge, smooth_prediction
from autoad.algorithms._memory import SCRATCH, feature_bytes, finishing_bytes
from autoad.algorithms._values import BUNDLED_BACKBONE, check_memory, feature_map, fitted, require
from autoad.errors import TrialError

__all__ = ["DFM", "DFMConfig"]

_PICTURES = 32
"""Pictures read at a time."""

_COLUMNS = 4096
"""Features taken to float64 at a time."""


@dataclasses.dataclass(frozen=True)
class DFMConfig:
    """Hyperparameters of :class:`DFM`.

    Attributes:
        backbone: timm name; the reference's is ``resnet50``.
        image_size: height and width in pixels.
        stage: whose features are modelled.
        pooling_kernel_size: width and stride of average pooling, in feature cells; 1 does not pool.
        pca_level: share of the training variance that the kept components explain.
        score_type: ``"fre"``, feature reconstruction error, or ``"nll"``, negative log-likelihood. Read at prediction.
    """

    backbone: str = BUNDLED_BACKBONE
    image_size: int = 256
    stage: int = 3
    pooling_kernel_size: int = 4
    pca_level: float = 0.97
    score_type: Literal["fre", "nll"] = "fre"

    def __post_init__(self) -> None:
        require(type(self.stage) is int and 0 <= self.stage <= 4, "dfm.stage", "a stage from 0 to 4", self.stage)
        require(self.image_size >= 32, "dfm.image_size", "at least 32 pixels", self.image_size)
        require(self.pooling_kernel_size >= 1, "dfm.pooling_kernel_size", "at least 1", self.pooling_kernel_size)
        require(0 < self.pca_level < 1, "dfm.pca_level", "between 0 and 1", self.pca_level)
        require(self.score_type in ("fre", "nll"), "dfm.score_type", "'fre' or 'nll'", self.score_type)


@dataclasses.dataclass(frozen=True)
class _Measured:
    """What ``N`` pictures have to do with the principal components.

    Attributes:
        errors: ``[N, h', w']`` squared reconstruction errors of the pooled cells.
        densities: ``[N]`` negative log-likelihoods.
        image_size: height and width of the pictures.
    """

    errors: Tensor | None
    densities: Tensor | None
    image_size: tuple[int, int]


class DFM(Detector):
    """Ahuja et al., "Probabilistic Modeling of Deep Features for Out-of-Distribution and Adversarial Detection", 2019.

    A picture's pooled features are one long vector. PCA keeps as many components as explain ``pca_level`` of the
    training variance. Two scores:

    - ``fre``: squared length of what the components leave unexplained. Summed over channels only, it is also a coarse
      anomaly map, so ``fre`` gives maps although the algorithm's kind is classification.
    - ``nll``: negative logarithm of a Gaussian's density within the components, normalising constant included,
      ``0.5 * sum(z**2 / variance + log(2 * pi * variance))``. There is no map.
    """

    name = "dfm"
    kind = "classification"
    paper = (
        "Ahuja et al., Probabilistic Modeling of Deep Features for Out-of-Distribution and Adversarial Detection, 2019"
    )
    Config = DFMConfig
    post_fit: ClassVar[Mapping[str, Effect]] = {"score_type": "both"}

    _components: Tensor | None = None
    _mean: Tensor
    _variances: Tensor

    @property
    def needs(self) -> Needs:
        """Features of the configured stage."""
        return Needs((self.config.image_size,) * 2, self.config.backbone, (self.config.stage,))

    @torch.no_grad()
    def fit(self, train: Inputs) -> Iterator[Progress]:
        """Find the principal components; see the base class.

        Raises:
            TrialError: there is only one training picture.
            TrialMemoryError: the features would take more than the runtime's memory.
        """
        if len(train) < 2:
            raise TrialError(f"dfm must have at least 2 training pictures but got {len(train)}")
        cells = self._pool(train[:1]).numel()
        # The pooled features, and at most as many components as pictures.
        check_memory(
            8 * len(train) * cells,
            self.runtime.memory,
            "dfm's features",
            "raise pooling_kernel_size or stage, or lower image_size",
        )
        features = torch.cat([self._pool(part).flatten(1) for part in train.batches(_PICTURES)])
        self._mean = features.mean(0)
        features -= self._mean
        count, width = features.shape
        # Eigenvectors of whichever is smaller: pictures against pictures, or features against features.
        wide = width > count
        gram = torch.zeros((min(count, width),) * 2, dtype=torch.float64, device=features.device)
        for part in torch.split(features, _COLUMNS, dim=int(wide)):
            part = part.double()
            gram += part @ part.T if wide else part.T @ part
        energies, vectors = torch.linalg.eigh(gram)
        energies, vectors = energies.flip(0).clamp(min=0), vectors.flip(1)
        kept = self._count(energies)
        energies, vectors = energies[:kept], vectors[:, :kept]
        if wide:
            vectors = vectors / energies.sqrt().clamp(min=1e-12)
            parts = [(part.double().T @ vectors).float() for part in torch.split(features, _COLUMNS, dim=1)]
            self._components = torch.cat(parts)
        else:
            self._components = vectors.float().contiguous()
        self._variances = (energies / (count - 1)).clamp(min=1e-12)
        yield Progress(1, 1)

    @torch.no_grad()
    def measure(self, batch: Inputs, configs: Sequence[DFMConfig]) -> _Measured:
        """Both sorts of error, as far as they are asked for."""
        components = fitted(self._components, self.name)
        asked = {config.score_type for config in configs}
        errors, densities = [], []
        for part in batch.batches(_PICTURES):
            pooled = self._pool(part)
            centred = pooled.flatten(1) - self._mean
            reduced = centred @ components
            if "nll" in asked:
                density = reduced.double().square() / self._variances + (2 * math.pi * self._variances).log()
                densities.append(0.5 * density.sum(1).float())
            if "fre" in asked:
                residual = (centred - reduced @ components.T).square_().view(pooled.shape)
                errors.append(residual.sum(dim=-1))
        return _Measured(
            torch.cat(errors) if errors else None, torch.cat(densities) if densities else None, batch.image_size
        )

    @torch.no_grad()
    def finish(self, measured: _Measured, config: DFMConfig, *, maps: bool = True) -> Prediction:
        """Scores by the configured type."""
        if config.score_type == "nll":
            assert measured.densities is not None  # noqa: S101 - it was among those asked for
            return Prediction(measured.densities.cpu())
        errors = measured.errors
        assert errors is not None  # noqa: S101 - it was among those asked for
        scores = errors.flatten(1).sum(1).cpu()
        if not maps:
            return Prediction(scores)
        drawn = smooth_prediction(len(errors), lambda here: enlarge(errors[here], measured.image_size, 0.0), maps=True)
        return Prediction(scores, drawn.maps)

    def footprint(self, train: int, scored: int, shapes: Shapes) -> Footprint:
        """See the base class."""
        height, width, channels = shapes[self.config.stage]
        window = min(self.config.pooling_kernel_size, height, width)
        cells = -(-height // window) * -(-width // window) * channels
        smaller = min(train, cells)
        features, components = 4 * train * cells, 4 * smaller * cells
        # A Gram matrix with what its eigenvectors take, and some columns in float64.
        solving = 5 * 8 * smaller**2 + 8 * _COLUMNS * train
        reading = 2 * feature_bytes(shapes)
        return Footprint(
            fit=SCRATCH
            + max(2 * features + min(train, _PICTURES) * reading, features + solving, features + 2 * components),
            predict=SCRATCH
            + components
            + min(scored, _PICTURES) * (reading + 3 * 4 * cells)
            + finishing_bytes(scored, self.needs.image_size),
        )

    def tensors(self) -> dict[str, Tensor]:
        """``components`` ``[D, K]`` and ``mean`` ``[D]`` float32, ``variances`` ``[K]`` float64."""
        learnt = {
            "components": fitted(self._components, self.name),
            "mean": self._mean,
            "variances": self._variances,
        }
        return {name: tensor.cpu().contiguous() for name, tensor in learnt.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See the base class."""
        for name, tensor in tensors.items():
            setattr(self, f"_{name}", tensor.to(self.runtime.device))

    def _count(self, energies: Tensor) -> int:
        """Components, by descending ``energies``, that explain the level: at least one, none of rounding errors."""
        explained = energies.cumsum(0) / energies.sum().clamp(min=1e-300)
        enough = int((explained < self.config.pca_level).sum()) + 1
        rank = int((energies > 1e-10 * energies[0]).sum())
        return max(1, min(enough, rank))

    def _pool(self, batch: Inputs) -> Tensor:
        """Average-pooled features ``[N, h', w', C]``; cells that the border cuts are averages of what they hold."""
        maps = feature_map(batch, self.config.stage, self.runtime.device)
        window = min(self.config.pooling_kernel_size, *maps.shape[-2:])
        if window > 1:
            maps = functional.avg_pool2d(maps, window, ceil_mode=True, count_include_pad=False)
        return maps.permute(0, 2, 3, 1).contiguous()
