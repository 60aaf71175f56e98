"""PatchCore: the distance to the nearest patch ever seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from autoad.algorithms._base import Detector, Inputs, Needs, Prediction, Progress
from autoad.algorithms._coreset import greedy_coreset
from autoad.algorithms._maps import gaussian_blur, upsample
from autoad.algorithms._values import BUNDLED_BACKBONE, check_memory, check_stages, feature_map, fitted, require

__all__ = ["PatchCore", "PatchCoreConfig"]

_PICTURES = 8
"""Pictures embedded at a time."""

_SAMPLE = 16
"""Pictures from which the origin and the projection are taken."""

_COMPARED_CHANNELS = 256
"""Up to this many the coreset is chosen by exact distances; more are projected to this many."""

_BLOCK = (1024, 2048)
"""Patches and bank entries compared at a time, so that their similarities stay in cache."""


@dataclasses.dataclass(frozen=True)
class PatchCoreConfig:
    """Hyperparameters of :class:`PatchCore`.

    Attributes:
        backbone: timm name; the paper's is ``wide_resnet50_2``.
        image_size: height and width in pixels.
        stages: whose features are concatenated, at the first one's resolution.
        patch_size: width of the neighbourhood, in patches of its own stage, over which features are averaged; odd.
        coreset_sampling_ratio: share of all training patches that the memory bank keeps.
        num_neighbors: bank neighbours by which the image score is re-weighted; 1 leaves it as it is. Read at
            prediction.
        sigma: of the map's Gaussian blur, in pixels. Read at prediction.
    """

    backbone: str = BUNDLED_BACKBONE
    image_size: int = 256
    stages: tuple[int, ...] = (2, 3)
    patch_size: int = 3
    coreset_sampling_ratio: float = 0.1
    num_neighbors: int = 9
    sigma: float = 4.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", check_stages("patchcore.stages", self.stages))
        require(self.image_size >= 32, "patchcore.image_size", "at least 32 pixels", self.image_size)
        require(
            self.patch_size >= 1 and self.patch_size % 2 == 1, "patchcore.patch_size", "odd, 1 or more", self.patch_size
        )
        ratio = self.coreset_sampling_ratio
        require(0 < ratio <= 1, "patchcore.coreset_sampling_ratio", "above 0 and at most 1", ratio)
        require(self.num_neighbors >= 1, "patchcore.num_neighbors", "at least 1", self.num_neighbors)
        require(self.sigma >= 0, "patchcore.sigma", "0 (no blur) or more", self.sigma)


class PatchCore(Detector):
    """Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.

    Locally averaged features of all training patches, thinned to a coreset, are the memory bank. A patch's score is
    its Euclidean distance to the nearest entry, found exactly; the anomaly map is those distances, enlarged and
    blurred. The image score is the largest patch distance, re-weighted by how crowded the bank is around the entry
    that it was nearest to (equation 7).

    The paper chooses the coreset after a random projection. Here the greedy choice is by true distances up to 256
    channels, and above that by inner products within the 256 leading principal axes completed by the true norms: on
    real features its covering radius lies within 2 per cent of exact greedy's, where that of a random projection to
    128 is a tenth larger. The bank is kept in the order in which it was chosen, so that its first rows are the bank of
    a smaller ratio.
    """

    name = "patchcore"
    kind = "segmentation"
    paper = "Roth et al., Towards Total Recall in Industrial Anomaly Detection, 2022"
    Config = PatchCoreConfig

    _bank: Tensor | None = None
    _origin: Tensor
    _lookup: Tensor

    @property
    def needs(self) -> Needs:
        """Features of the configured stages."""
        return Needs((self.config.image_size,) * 2, self.config.backbone, self.config.stages)

    @torch.no_grad()
    def fit(self, train: Inputs) -> Iterator[Progress]:
        """Fill the memory bank; see the base class.

        Raises:
            TrialError: the bank would take more than 4 GiB.
        """
        grid = train.features[self.config.stages[0]].shape[-2:].numel()
        channels = sum(train.features[stage].shape[1] for stage in self.config.stages)
        total = len(train) * grid
        size = max(1, int(self.config.coreset_sampling_ratio * total))
        width = min(channels, _COMPARED_CHANNELS)
        check_memory(
            4 * (size * channels + total * width),
            "patchcore's memory bank and the patches it is chosen from",
            "lower image_size or coreset_sampling_ratio, or use a deeper first stage",
        )
        every = torch.linspace(0, len(train) - 1, min(_SAMPLE, len(train))).long()
        sample = self._embed(train[every]).flatten(0, 1)
        self._origin = sample.mean(0)
        axes = None
        if channels > width:
            sample -= self._origin
            axes = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -width:].contiguous()
        points = sample.new_empty(total, width)
        norms = sample.new_empty(total)
        for i, patches in self._chunks(train):
            rows = slice(i * grid, i * grid + len(patches))
            norms[rows] = torch.linalg.vector_norm(patches, dim=1).square_()
            points[rows] = patches if axes is None else patches @ axes
        first = int(torch.randint(total, (1,), generator=torch.Generator().manual_seed(self.seed)))
        picks = greedy_coreset(points, norms, size, first)
        bank = sample.new_empty(len(picks), channels)
        for i, patches in self._chunks(train):
            here = (picks - i * grid).ge(0) & (picks - i * grid).lt(len(patches))
            bank[here] = patches[picks[here] - i * grid]
        self._take(bank)
        yield Progress(1, 1)

    @torch.no_grad()
    def predict(self, batch: Inputs) -> Prediction:
        """Score pictures, one after the other: nothing depends on the batch."""
        fitted(self._bank, self.name)
        grid = batch.features[self.config.stages[0]].shape[-2:]
        scores, maps = [], []
        for part in batch.batches(_PICTURES):
            distances = []
            for patches in self._embed(part).sub_(self._origin):
                distance, nearest = self._nearest(patches)
                top = int(distance.argmax())
                scores.append(self._reweight(patches[top], distance[top], nearest[top]))
                distances.append(distance.view(grid))
            large = upsample(torch.stack(distances), batch.image_size)
            maps.append(gaussian_blur(large, self.config.sigma).cpu())
        return Prediction(torch.stack(scores).cpu(), torch.cat(maps))

    def tensors(self) -> dict[str, Tensor]:
        """``bank`` ``[M, C]``, in the order chosen and relative to ``origin`` ``[C]``."""
        return {"bank": fitted(self._bank, self.name).cpu().contiguous(), "origin": self._origin.cpu().clone()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See the base class."""
        self._origin = tensors["origin"].to(self.runtime.device)
        self._take(tensors["bank"].to(self.runtime.device))

    def _take(self, bank: Tensor) -> None:
        # With -|m|^2 / 2 as a last column, the largest <(p, 1), m> is the smallest |p - m|: one product, no epilogue.
        norms = torch.linalg.vector_norm(bank, dim=1, keepdim=True).square_()
        self._lookup = torch.cat([bank, norms.mul_(-0.5)], dim=1)
        self._bank = self._lookup[:, :-1]

    def _chunks(self, train: Inputs) -> Iterator[tuple[int, Tensor]]:
        """First picture's number and patches, relative to the origin, of a few pictures at a time."""
        for i in range(0, len(train), _PICTURES):
            yield i, self._embed(train[i : i + _PICTURES]).sub_(self._origin).flatten(0, 1)

    def _embed(self, batch: Inputs) -> Tensor:
        """Locally aware patch features ``[N, h * w, C]``."""
        window = self.config.patch_size
        pooled: list[Tensor] = []
        for stage in self.config.stages:
            maps = feature_map(batch, stage, self.runtime.device)
            # Zeros beyond the border, as in the authors' code, damp the border's patches. Averaging only what is there
            # sets them free to raise false alarms: on circuit boards it took the image AUROC from .90 to .62.
            maps = functional.avg_pool2d(maps, window, 1, window // 2)
            if pooled:
                maps = functional.interpolate(maps, size=pooled[0].shape[-2:], mode="bilinear", align_corners=False)
            pooled.append(maps)
        return torch.cat([maps.permute(0, 2, 3, 1) for maps in pooled], dim=-1).flatten(1, 2)

    def _nearest(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Distance ``[P]`` to, and row of, the bank's entry nearest to each of ``patches`` ``[P, C]``."""
        best = patches.new_full((len(patches),), -torch.inf)
        nearest = torch.zeros(len(patches), dtype=torch.int64, device=patches.device)
        queries = functional.pad(patches, (0, 1), value=1.0)
        for i in range(0, len(patches), _BLOCK[0]):
            rows = slice(i, i + _BLOCK[0])
            for start in range(0, len(self._lookup), _BLOCK[1]):
                closest = (queries[rows] @ self._lookup[start : start + _BLOCK[1]].T).max(dim=1)
                nearest[rows] = torch.where(closest.values > best[rows], closest.indices + start, nearest[rows])
                torch.maximum(best[rows], closest.values, out=best[rows])
        # By the difference itself: the inner products above lose the digits of a small distance.
        return torch.linalg.vector_norm(patches - self._lookup[nearest, :-1], dim=1), nearest

    def _reweight(self, patch: Tensor, distance: Tensor, nearest: Tensor) -> Tensor:
        """Equation 7: the score of an image whose most anomalous ``patch`` lies at ``distance`` from the bank."""
        bank = fitted(self._bank, self.name)
        count = min(self.config.num_neighbors, len(bank))
        if count == 1:
            return distance
        entry = bank[nearest]
        likely = (self._lookup @ functional.pad(entry, (0, 1), value=1.0)).topk(min(2 * count, len(bank))).indices
        around = torch.linalg.vector_norm(bank[likely] - entry, dim=1).topk(count, largest=False).indices
        to_patch = torch.linalg.vector_norm(bank[likely[around]] - patch, dim=1)
        return distance * (1 - torch.exp(distance - to_patch.logsumexp(0)))
