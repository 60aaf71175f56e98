"""PaDiM: one Gaussian for each place of the picture."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
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
"""Places whose Gaussians are computed at a time; those of one cell of the deepest stage, if they are more."""

_FEWEST = 20
"""Training pictures from which one can be told to be an outlier."""

_MOST_OUTLYING = 0.5
"""Share of the pictures that may be left out at a cell of the deepest stage, by any of its places."""

_SPREAD = 0.05
"""Deviation of the logarithms of distances that is assumed at least: many channels make all distances alike."""

_LEAST = 1e-9


@dataclasses.dataclass(frozen=True)
class PaDiMConfig:
    """Hyperparameters of :class:`PaDiM`.

    Attributes:
        backbone: timm name; the paper's are ``resnet18``, ``wide_resnet50_2`` and ``efficientnet_b5``.
        image_size: height and width in pixels.
        stages: whose features are joined, at the first one's resolution.
        n_features: channels drawn at random from all of them; all, when there are not as many.
        regularization: added to the variance of each channel.
        outlier_deviations: robust standard deviations from which a training picture is left out of the Gaussian of a
            place; 0 leaves none out, as the paper does.
        sigma: of the map's Gaussian blur, in pixels. Read at prediction.
    """

    backbone: str = BUNDLED_BACKBONE
    image_size: int = 256
    stages: tuple[int, ...] = (1, 2, 3)
    n_features: int = 100
    regularization: float = 0.01
    outlier_deviations: float = 6.0
    sigma: float = 4.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", check_stages("padim.stages", self.stages))
        require(self.image_size >= 32, "padim.image_size", "at least 32 pixels", self.image_size)
        require(self.n_features >= 1, "padim.n_features", "at least 1", self.n_features)
        require(self.regularization > 0, "padim.regularization", "above 0", self.regularization)
        require(self.outlier_deviations >= 0, "padim.outlier_deviations", "0 (none) or more", self.outlier_deviations)
        require(self.sigma >= 0, "padim.sigma", "0 (no blur) or more", self.sigma)


@dataclasses.dataclass(frozen=True)
class _Groups:
    """The places of the first stage's grid, by what they see of one stage and of the deeper ones.

    Attributes:
        cells: ``[G]`` cell of the stage's grid in which each group lies.
        parents: ``[G]`` group of the next deeper stage of which it is part, ascending; in the deepest its own number.
        places: ``[L]`` group of each place.
    """

    cells: Tensor
    parents: Tensor
    places: Tensor


@functools.lru_cache(maxsize=32)
def _group(grid: tuple[int, int], grids: tuple[tuple[int, int], ...]) -> tuple[_Groups, ...]:
    """Groups of the places of ``grid`` for stages whose grids have these heights and widths, deepest first."""
    height, width = grid
    index = torch.arange(height * width)
    places, found = torch.zeros_like(index), list[_Groups]()
    for rows, columns in grids:
        # Nearest neighbour: each place looks up the cell of the deeper grid in which it lies.
        cells = index // width * rows // height * columns + index % width * columns // width
        pairs, places = torch.unique(places * (rows * columns) + cells, return_inverse=True)
        cells = pairs % (rows * columns)
        parents = pairs // (rows * columns) if found else torch.arange(len(pairs))
        found.append(_Groups(cells, parents, places))
    return tuple(found)


class PaDiM(Detector):
    """Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization", 2021.

    At every place of the first stage's grid the features of all stages (deeper ones repeated) form one vector, of which
    some channels, drawn by the seed, are kept. Their mean and covariance over the training pictures, plus
    ``regularization`` on the diagonal, are a Gaussian for that place. The map is the Mahalanobis distance to it,
    enlarged and blurred; the image score is the map's maximum. Pictures must be aligned for this to work well.

    A Gaussian is the product of that of the deepest stage's channels, of the next stage's given those, and so on, and
    its squared distance is the sum of theirs. A factor is the same at all places that lie in the same cells of its own
    and the deeper stages, so it is computed, kept and evaluated once for all of them: the distance is the same, and
    with strides 4, 8 and 16 it takes a fifth of the numbers that a matrix for each place would be.

    A defect among the training pictures would widen the Gaussian in its own direction, at its own places, and hide all
    like it. So a picture that lies far from the others at a place is left out there, and the Gaussian estimated again
    (reweighting, as in Rousseeuw and Leroy, "Robust Regression and Outlier Detection", 1987). What is far is judged by
    the distance that it would have if it had not been among them: its logarithm, beside those of the others.
    """

    name = "padim"
    kind = "segmentation"
    paper = "Defard et al., PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization, 2021"
    Config = PaDiMConfig
    post_fit: ClassVar[Mapping[str, Effect]] = {"sigma": "both"}

    _channels: dict[int, Tensor] | None = None
    _means: dict[int, Tensor]
    _whiteners: dict[int, Tensor]

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
        shapes = _shapes(train)
        channels = self._draw(shapes)
        groups = self._groups(channels, shapes)
        blocks = _blocks(channels, groups)
        check_memory(
            4 * sum(math.prod(block) for block in blocks.values()),
            self.runtime.memory,
            "padim's covariances",
            "lower n_features or image_size, or leave out the first stage",
        )
        device = self.runtime.device
        self._means = {stage: torch.empty(shape[:2], device=device) for stage, shape in blocks.items()}
        self._whiteners = {stage: torch.empty(shape, device=device) for stage, shape in blocks.items()}
        self._channels = channels
        deepest = len(groups[0].cells)
        step = max(1, _PLACES * deepest // len(groups[0].places))
        for start in range(0, deepest, step):
            cells = torch.arange(start, min(start + step, deepest))
            outlying = self._fit_cells(train, groups, cells)
            again = cells[outlying.any(1)]
            if len(again) > 0:
                self._fit_cells(train, groups, again, outlying[outlying.any(1)])
        yield Progress(1, 1)

    @torch.no_grad()
    def measure(self, batch: Inputs, configs: Sequence[PaDiMConfig]) -> tuple[Tensor, tuple[int, int]]:
        """Mahalanobis distances ``[N, h, w]``, and the pictures' size.

        Pictures are taken one after the other: nothing depends on the batch.
        """
        shapes = _shapes(batch)
        groups = self._groups(fitted(self._channels, self.name), shapes)
        distances = [self._distances(batch[i : i + 1], groups) for i in range(len(batch))]
        return torch.stack(distances).view(len(batch), *shapes[self.config.stages[0]][:2]), batch.image_size

    @torch.no_grad()
    def finish(self, measured: tuple[Tensor, tuple[int, int]], config: PaDiMConfig, *, maps: bool = True) -> Prediction:
        """Enlarge and blur the distances; the score is the largest."""
        distances, size = measured
        return smooth_prediction(len(distances), lambda here: enlarge(distances[here], size, config.sigma), maps=maps)

    def footprint(self, train: int, scored: int, shapes: Shapes) -> Footprint:
        """See the base class."""
        channels = self._draw(shapes)
        groups = self._groups(channels, shapes)
        blocks = _blocks(channels, groups)
        gaussians = 4 * sum(math.prod(block) + math.prod(block[:2]) for block in blocks.values())
        deepest, places = len(groups[0].cells), len(groups[0].places)
        features = sum(len(chosen) for chosen in channels.values())
        # Of some places at a time: the features, taken over, joined and whitened, and what they are whitened by.
        at_once = max(1, _PLACES * deepest // places) * places // deepest
        block = 8 * at_once * (2 * train * features + 3 * len(next(reversed(channels.values()))) * features)
        scoring = 3 * 4 * places * features + 4 * scored * places
        return Footprint(
            fit=SCRATCH + gaussians + block,
            predict=SCRATCH + gaussians + scoring + finishing_bytes(scored, self.needs.image_size),
        )

    def tensors(self) -> dict[str, Tensor]:
        """What was learnt, by stage.

        Returns:
            Of each stage with ``F`` chosen channels ``[F]``, of which the deeper ones have ``D`` in all: ``mean_STAGE``
            ``[G, F]`` and ``whitener_STAGE`` ``[G, F, D + F]`` for its ``G`` groups of places.
        """
        learnt = {"channels": fitted(self._channels, self.name), "mean": self._means, "whitener": self._whiteners}
        return {
            f"{name}_{stage}": tensor.cpu().contiguous()
            for name, by_stage in learnt.items()
            for stage, tensor in by_stage.items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See the base class."""
        # A stage of which no channel was drawn has no tensors.
        stages = [stage for stage in reversed(self.config.stages) if f"channels_{stage}" in tensors]
        if not stages:
            raise KeyError(f"channels_{self.config.stages[0]}")
        self._channels = {stage: tensors[f"channels_{stage}"] for stage in stages}
        self._means = {stage: tensors[f"mean_{stage}"].to(self.runtime.device) for stage in stages}
        self._whiteners = {stage: tensors[f"whitener_{stage}"].to(self.runtime.device) for stage in stages}

    def _draw(self, shapes: Shapes) -> dict[int, Tensor]:
        """Numbers, within their stage, of the channels that the seed chooses, deepest stage first."""
        widths = [shapes[stage][2] for stage in self.config.stages]
        order = torch.randperm(sum(widths), generator=torch.Generator().manual_seed(self.seed))
        mask = torch.zeros(len(order), dtype=torch.bool)
        mask[order[: self.config.n_features]] = True
        chosen = {
            stage: one.nonzero()[:, 0] for stage, one in zip(self.config.stages, torch.split(mask, widths), strict=True)
        }
        return {stage: chosen[stage] for stage in reversed(self.config.stages) if len(chosen[stage]) > 0}

    def _groups(self, channels: Mapping[int, Tensor], shapes: Shapes) -> tuple[_Groups, ...]:
        return _group(shapes[self.config.stages[0]][:2], tuple(shapes[stage][:2] for stage in channels))

    def _fit_cells(
        self, train: Inputs, groups: Sequence[_Groups], cells: Tensor, outlying: Tensor | None = None
    ) -> Tensor:
        """Estimate the factors of all stages for some groups of the deepest one.

        Args:
            train: the training pictures.
            groups: of all stages, deepest first.
            cells: ``[C]`` groups of the deepest stage, ascending.
            outlying: ``[C, N]`` pictures that are left out; None for none, and then outliers are looked for.

        Returns:
            ``[C, N]`` pictures that lie far from the others at a place of that group; none where most do somewhere.
        """
        device = self.runtime.device
        # The deeper stages' features without their correlations. Regression on them takes no inverse, and float64 keeps
        # the regulariser from drowning in the rounding errors of large variances.
        white = torch.empty(len(cells), len(train), 0, dtype=torch.float64, device=device)
        squares = white.new_zeros(len(cells), len(train))
        weights = None if outlying is None else (~outlying).to(white.dtype)[:, :, None]
        robust = outlying is None and self.config.outlier_deviations > 0 and len(train) >= _FEWEST
        within, origin = cells, torch.arange(len(cells))
        for (stage, channels), group in zip(fitted(self._channels, self.name).items(), groups, strict=True):
            chosen = torch.isin(group.parents, within).nonzero()[:, 0]
            parents = torch.searchsorted(within, group.parents[chosen])
            within, origin = chosen, origin[parents]
            white = white[parents.to(device)]
            values = _values(train, stage, group.cells[chosen], channels)
            features = values.to(device, torch.float64).transpose(0, 1)
            shares = None if weights is None else weights[origin.to(device)]
            count = features.shape[1] if shares is None else shares.sum(1, keepdim=True)
            mean = (features if shares is None else features * shares).sum(1, keepdim=True) / count
            features = features - mean
            rows = self._whiten(features if shares is None else features * shares, white, count)
            self._means[stage][chosen] = mean[:, 0].to(torch.float32)
            self._whiteners[stage][chosen] = rows.to(torch.float32)
            last = stage == self.config.stages[0]
            if last and not robust:
                break
            link, own = rows[:, :, : white.shape[2]], rows[:, :, white.shape[2] :]
            whitened = torch.baddbmm(torch.bmm(white, link.mT), features, own.mT)
            squares = squares[parents.to(device)] + whitened.square().sum(2)
            if not last:
                white = torch.cat([white, whitened], dim=2)
        found = torch.zeros(len(cells), len(train), dtype=torch.bool)
        if robust:
            places, pictures = _outliers(squares, self.config.outlier_deviations).cpu().nonzero(as_tuple=True)
            found[origin[places], pictures] = True
            found[found.float().mean(1) > _MOST_OUTLYING] = False  # most are no exceptions: each place has its own
        return found

    def _whiten(self, features: Tensor, white: Tensor, pictures: int | Tensor) -> Tensor:
        """What takes correlations out of features, and with the deeper stages'.

        Args:
            features: ``[G, N, F]`` of the training pictures, of mean zero; zero for those that are left out.
            white: ``[G, N, D]`` of the deeper stages, whitened.
            pictures: how many are not left out, in all groups or ``[G, 1, 1]`` in each.

        Returns:
            ``[G, F, D + F]``, the inverse Cholesky factor of the covariance given ``white``: times minus the regression
            on that, and itself.
        """
        own, link = (torch.bmm(features.mT, other).div_(pictures - 1) for other in (features, white))
        own.diagonal(dim1=1, dim2=2).add_(self.config.regularization)
        factor, failed = torch.linalg.cholesky_ex(torch.baddbmm(own, link, link.mT, alpha=-1))
        if failed.any():
            raise TrialError(
                f"padim.regularization must be large enough for these features but got {self.config.regularization!r}: "
                "their covariance is singular"
            )
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        return torch.cat([torch.bmm(inverse, link).neg_(), inverse], dim=2)

    def _distances(self, picture: Inputs, groups: Sequence[_Groups]) -> Tensor:
        """Mahalanobis distances ``[L]`` of one picture's places."""
        device = self.runtime.device
        white = torch.empty(len(groups[0].cells), 0, device=device)
        for (stage, channels), group in zip(fitted(self._channels, self.name).items(), groups, strict=True):
            values = _values(picture, stage, group.cells, channels)[0].to(device, torch.float32) - self._means[stage]
            white = white[group.parents]
            # A row turned round, not a column: by its strides MKL takes it for a vector, which is five times as fast.
            joined = torch.cat([white, values], dim=1)[:, None].mT
            white = torch.cat([white, torch.bmm(self._whiteners[stage], joined)[:, :, 0]], dim=1)
        distances: Tensor = torch.linalg.vector_norm(white, dim=1)
        return distances[groups[-1].places]


def _outliers(squares: Tensor, deviations: float) -> Tensor:
    """``[G, N]`` which pictures lie far from the others, by the squares ``[G, N]`` of their Mahalanobis distances."""
    count = squares.shape[1]
    # Without the picture itself the covariance has a rank of one less (Sherman and Morrison).
    alone = squares / (1 - squares * count / (count - 1) ** 2).clamp_min(_LEAST)
    distances = alone.clamp_min(_LEAST).log().div_(2)
    middle = distances.median(1, keepdim=True).values
    spread = 1.4826 * (distances - middle).abs().median(1, keepdim=True).values
    return distances > middle + deviations * spread.clamp_min(_SPREAD)


def _shapes(batch: Inputs) -> dict[int, tuple[int, int, int]]:
    shapes = {stage: maps.shape[1:] for stage, maps in batch.features.items()}
    return {stage: (height, width, channels) for stage, (channels, height, width) in shapes.items()}


def _blocks(channels: Mapping[int, Tensor], groups: Sequence[_Groups]) -> dict[int, tuple[int, int, int]]:
    """Shape ``[G, F, D + F]`` of each stage's whitener."""
    joined = itertools.accumulate(len(chosen) for chosen in channels.values())
    return {
        stage: (len(group.cells), len(chosen), width)
        for (stage, chosen), group, width in zip(channels.items(), groups, joined, strict=True)
    }


def _values(batch: Inputs, stage: int, cells: Tensor, channels: Tensor) -> Tensor:
    """Some channels at some cells of a stage's grid, ``[N, cells, channels]``."""
    maps = batch.features[stage].permute(0, 2, 3, 1).flatten(1, 2)
    return maps[:, cells].index_select(2, channels)
