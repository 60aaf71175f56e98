"""DFKDE: the density of a picture's global features."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from autoad.algorithms._base import Detector, Effect, Footprint, Inputs, Needs, Prediction, Progress, Shapes
from autoad.algorithms._memory import SCRATCH, feature_bytes
from autoad.algorithms._values import BUNDLED_BACKBONE, check_stages, feature_map, fitted, require
from autoad.errors import TrialError

__all__ = ["DFKDE", "DFKDEConfig"]

_PICTURES = 32
"""Pictures read at a time."""

_SINGULAR = 1e-10
"""Smallest variance kept along an axis, as a share of the largest."""


@dataclasses.dataclass(frozen=True)
class DFKDEConfig:
    """Hyperparameters of :class:`DFKDE`.

    Attributes:
        backbone: timm name; the reference's is ``resnet18``.
        image_size: height and width in pixels.
        stages: whose globally averaged features are joined.
        n_pca_components: principal components kept; fewer where the training pictures span fewer.
        feature_scaling_method: ``"scale"`` divides reduced features by the longest one in training, ``"norm"`` each by
            its own length. Densities are ranked alike with and without ``"scale"``.
        bandwidth: factor on Scott's bandwidth. Read at prediction.
    """

    backbone: str = BUNDLED_BACKBONE
    image_size: int = 256
    stages: tuple[int, ...] = (4,)
    n_pca_components: int = 16
    feature_scaling_method: Literal["scale", "norm"] = "scale"
    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", check_stages("dfkde.stages", self.stages))
        require(self.image_size >= 32, "dfkde.image_size", "at least 32 pixels", self.image_size)
        require(self.n_pca_components >= 1, "dfkde.n_pca_components", "at least 1", self.n_pca_components)
        method = self.feature_scaling_method
        require(method in ("scale", "norm"), "dfkde.feature_scaling_method", "'scale' or 'norm'", method)
        require(self.bandwidth > 0, "dfkde.bandwidth", "above 0", self.bandwidth)


class DFKDE(Detector):
    """Deep features and kernel density estimation (anomalib's classifier; Akcay et al., "Anomalib", ICIP 2022).

    Features are averaged over the picture, reduced by PCA, scaled, and their density under the training pictures is
    estimated with Gaussian kernels of the training covariance and Scott's bandwidth ``n ** (-1 / (d + 4))``. The score
    is the negative logarithm of that density, so that pictures far from all training ones, whose density is zero in
    any floating-point format, still differ. There is no map.
    """

    name = "dfkde"
    kind = "classification"
    paper = "Akcay et al., Anomalib: A Deep Learning Library for Anomaly Detection, 2022"
    Config = DFKDEConfig
    post_fit: ClassVar[Mapping[str, Effect]] = {"bandwidth": "scores"}

    _points: Tensor | None = None
    _mean: Tensor
    _axes: Tensor
    _longest: Tensor
    _whitener: Tensor
    _log_volume: Tensor

    @property
    def needs(self) -> Needs:
        """Features of the configured stages."""
        return Needs((self.config.image_size,) * 2, self.config.backbone, self.config.stages)

    @torch.no_grad()
    def fit(self, train: Inputs) -> Iterator[Progress]:
        """Estimate the density; see the base class.

        Raises:
            TrialError: there is only one training picture.
        """
        if len(train) < 2:
            raise TrialError(f"dfkde must have at least 2 training pictures but got {len(train)}")
        features = self._pool(train)
        self._mean = features.mean(0)
        _, spread, axes = torch.linalg.svd(features - self._mean, full_matrices=False)
        # Axes without variance carry rounding errors, which whitening would blow up.
        rank = max(1, int((spread > 1e-6 * spread[0]).sum()))
        self._axes = axes[: min(self.config.n_pca_components, rank, len(train) - 1)].T.contiguous()
        reduced = (features - self._mean) @ self._axes
        self._longest = torch.linalg.vector_norm(reduced, dim=1).max().clamp(min=1e-12)
        points = self._scale(reduced)
        count, dims = points.shape
        # Of Scott's bandwidth itself: the configured factor on it only scales distances, and is left to prediction.
        factor = count ** (-1 / (dims + 4))
        variances, directions = torch.linalg.eigh(torch.cov(points.T).reshape(dims, dims) * factor**2)
        variances = variances.clamp(min=max(_SINGULAR * float(variances[-1]), _SINGULAR))
        self._whitener = directions / variances.sqrt()
        self._log_volume = math.log(count) + 0.5 * (dims * math.log(2 * math.pi) + variances.log().sum())
        self._points = points @ self._whitener
        yield Progress(1, 1)

    @torch.no_grad()
    def measure(self, batch: Inputs, configs: Sequence[DFKDEConfig]) -> Tensor:
        """Squared distances ``[N, n]`` to the training pictures in units of Scott's bandwidth, float64."""
        points = fitted(self._points, self.name)
        white = self._scale((self._pool(batch) - self._mean) @ self._axes) @ self._whitener
        return torch.cdist(white, points, compute_mode="donot_use_mm_for_euclid_dist").square()

    @torch.no_grad()
    def finish(self, measured: Tensor, config: DFKDEConfig, *, maps: bool = True) -> Prediction:
        """Negative log density of each picture; there is no map."""
        exponents = torch.logsumexp(-0.5 * measured / config.bandwidth**2, dim=1)
        log_density = exponents - self._log_volume - self._axes.shape[1] * math.log(config.bandwidth)
        return Prediction(-log_density.float().cpu())

    def footprint(self, train: int, scored: int, shapes: Shapes) -> Footprint:
        """See the base class."""
        # Features in float32, and in float64 to be averaged; then nothing is large but the pictures' vectors.
        channels = sum(shapes[stage][2] for stage in self.config.stages)
        reading = 5 * feature_bytes(shapes) // 2
        vectors = 4 * 8 * train * channels
        return Footprint(
            fit=SCRATCH + min(train, _PICTURES) * reading + vectors,
            predict=SCRATCH + min(scored, _PICTURES) * reading + 8 * (scored + channels) * train,
            maps=False,
        )

    def tensors(self) -> dict[str, Tensor]:
        """The reduction, the scale, and the whitened training points; float64."""
        learnt = {
            "points": fitted(self._points, self.name),
            "mean": self._mean,
            "axes": self._axes,
            "longest": self._longest,
            "whitener": self._whitener,
            "log_volume": self._log_volume,
        }
        return {name: tensor.cpu().contiguous() for name, tensor in learnt.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See the base class."""
        for name in ("points", "mean", "axes", "longest", "whitener", "log_volume"):
            setattr(self, f"_{name}", tensors[name].to(self.runtime.device))

    def _pool(self, batch: Inputs) -> Tensor:
        """Globally averaged features ``[N, C]``, float64: whitening divides by small variances."""
        parts = []
        for part in batch.batches(_PICTURES):
            maps = [feature_map(part, stage, self.runtime.device) for stage in self.config.stages]
            parts.append(torch.cat([m.mean(dim=(2, 3), dtype=torch.float64) for m in maps], dim=1))
        return torch.cat(parts)

    def _scale(self, reduced: Tensor) -> Tensor:
        if self.config.feature_scaling_method == "scale":
            return reduced / self._longest
        lengths: Tensor = torch.linalg.vector_norm(reduced, dim=1, keepdim=True)
        return reduced / lengths.clamp(min=1e-12)
