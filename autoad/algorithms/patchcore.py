"""PatchCore: the distance to the nearest patch ever seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from autoad.algorithms._bank import Bank, bank_bytes, multiplies_int8
from autoad.algorithms._base import Detector, Effect, Footprint, Inputs, Needs, Prediction, Progress, Shapes
from autoad.algorithms._coreset import COMPARED_CHANNELS, greedy_coreset, principal_axes
from autoad.algorithms._maps import enlarge, smooth_prediction
from autoad.algorithms._memory import SCRATCH, feature_bytes, finishing_bytes
from autoad.algorithms._values import BUNDLED_BACKBONE, check_memory, check_stages, feature_map, fitted, require
from autoad.errors import UsageError

__all__ = ["PatchCore", "PatchCoreConfig", "embed"]

_PICTURES = 8
"""Pictures embedded at a time."""

_SAMPLE = 16
"""Pictures from which the origin and the projection are taken."""


@dataclasses.dataclass(frozen=True)
class PatchCoreConfig:
    """Hyperparameters of :class:`PatchCore`.

    Attributes:
        backbone: timm name; the paper's is ``wide_resnet50_2``.
        image_size: height and width in pixels.
        stages: whose features are concatenated, at the first one's resolution.
        patch_size: width of the neighbourhood, in patches of its own stage, over which features are averaged; odd.
        coreset_sampling_ratio: share of all training patches that the memory bank keeps. A fitted detector can be
            reconfigured to a smaller one.
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


@dataclasses.dataclass(frozen=True)
class _Measured:
    """What ``N`` pictures have to do with a bank.

    Attributes:
        distances: ``[N, h, w]`` from each patch to its nearest entry.
        top: ``[N]`` largest of them.
        around: ``[N, K]`` from the patch with the largest to the entry that it is nearest to, and on to that entry's
            own neighbours in the bank, nearest first.
        image_size: height and width of the pictures.
    """

    distances: Tensor
    top: Tensor
    around: Tensor
    image_size: tuple[int, int]


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
    a smaller ratio: exactly that of a fit at that ratio with the same seed, for the greedy choice never looks ahead.
    """

    name = "patchcore"
    kind = "segmentation"
    paper = "Roth et al., Towards Total Recall in Industrial Anomaly Detection, 2022"
    Config = PatchCoreConfig
    post_fit: ClassVar[Mapping[str, Effect]] = {"num_neighbors": "scores", "sigma": "maps"}
    reducible = ("coreset_sampling_ratio",)

    _total: int | None = None
    _bank: Bank | None = None
    _origin: Tensor

    @property
    def needs(self) -> Needs:
        """Features of the configured stages."""
        return Needs((self.config.image_size,) * 2, self.config.backbone, self.config.stages)

    @torch.no_grad()
    def fit(self, train: Inputs) -> Iterator[Progress]:
        """Fill the memory bank; see the base class.

        Raises:
            TrialMemoryError: the bank would take more than the runtime's memory.
        """
        grid = train.features[self.config.stages[0]].shape[-2:].numel()
        channels = sum(train.features[stage].shape[1] for stage in self.config.stages)
        total = len(train) * grid
        self._total = total
        size = _bank_size(self.config, total)
        width = min(channels, COMPARED_CHANNELS)
        check_memory(
            4 * (size * channels + total * width),
            self.runtime.memory,
            "patchcore's memory bank and the patches it is chosen from",
            "lower image_size or coreset_sampling_ratio, or use a deeper first stage",
        )
        every = torch.linspace(0, len(train) - 1, min(_SAMPLE, len(train))).long()
        sample = embed(train[every], self.config, self.runtime.device).flatten(0, 1)
        self._origin = sample.mean(0)
        axes = principal_axes(sample.sub_(self._origin))
        points = sample.new_empty(total, width)
        norms = sample.new_empty(total)
        for i, patches in self._chunks(train):
            rows = slice(i * grid, i * grid + len(patches))
            norms[rows] = torch.linalg.vector_norm(patches, dim=1).square_()
            points[rows] = patches if axes is None else patches @ axes
        first = int(torch.randint(total, (1,), generator=torch.Generator().manual_seed(self.seed)))
        picks = greedy_coreset(points, norms, size, first)
        del points, norms
        bank = sample.new_empty(len(picks), channels)
        for i, patches in self._chunks(train):
            here = (picks - i * grid).ge(0) & (picks - i * grid).lt(len(patches))
            bank[here] = patches[picks[here] - i * grid]
        self._bank = self._prepare(bank)
        yield Progress(1, 1)

    def reconfigured(self, **changes: Any) -> Self:
        """See the base class.

        Raises:
            UsageError: as there, or the ratio should change although the detector was not fitted here but loaded.
        """
        other = super().reconfigured(**changes)
        if self._bank is not None:
            other._bank = self._bank.first(self._rows(other.config))
        return other

    @torch.no_grad()
    def measure(self, batch: Inputs, configs: Sequence[PatchCoreConfig]) -> dict[int, _Measured]:
        """By size of the bank, distances of the pictures' patches; one search serves all sizes.

        Pictures are taken one after the other: nothing depends on the batch.
        """
        bank = fitted(self._bank, self.name)
        grid = batch.features[self.config.stages[0]].shape[-2:]
        sizes = sorted({self._rows(config) for config in configs})
        neighbors = max(config.num_neighbors for config in configs)
        found: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {size: [] for size in sizes}
        for part in batch.batches(_PICTURES):
            for patches in embed(part, self.config, self.runtime.device).sub_(self._origin):
                for size, distance, nearest in bank.nearest(patches, sizes):
                    top = int(distance.argmax())
                    crowd = bank.entries[bank.around(int(nearest[top]), size, neighbors)]
                    around = torch.linalg.vector_norm(crowd - patches[top], dim=1)
                    found[size].append((distance.view(grid), distance[top], around))
        measured = {}
        for size, rows in found.items():
            distances, tops, arounds = (torch.stack(tensors) for tensors in zip(*rows, strict=True))
            measured[size] = _Measured(distances, tops, arounds, batch.image_size)
        return measured

    @torch.no_grad()
    def finish(self, measured: dict[int, _Measured], config: PatchCoreConfig, *, maps: bool = True) -> Prediction:
        """Re-weight the largest distance (equation 7); enlarge and blur all of them."""
        one = measured[self._rows(config)]
        count = min(config.num_neighbors, one.around.shape[1])
        scores = one.top
        if count > 1:
            scores = scores * (1 - torch.exp(scores - one.around[:, :count].logsumexp(1)))
        if not maps:
            return Prediction(scores.cpu())
        drawn = smooth_prediction(
            len(scores), lambda here: enlarge(one.distances[here], one.image_size, config.sigma), maps=True
        )
        return Prediction(scores.cpu(), drawn.maps)

    def footprint(self, train: int, scored: int, shapes: Shapes) -> Footprint:
        """See the base class."""
        height, width, _ = shapes[self.config.stages[0]]
        channels = sum(shapes[stage][2] for stage in self.config.stages)
        total = train * height * width
        compared = min(channels, COMPARED_CHANNELS)
        size = _bank_size(self.config, total)
        # Of a picture: its features, averaged, enlarged, and joined.
        embedding = 2 * feature_bytes(shapes) + 2 * 4 * height * width * channels
        # The farthest points are copied to be compared; a few columns of numbers go with each point.
        choosing = 4 * (total * compared * 3 // 2 + size * compared) + 24 * total
        bank, blocks = bank_bytes(size, channels, height * width, int8=self._int8)
        searching = blocks + min(scored, _PICTURES) * embedding
        return Footprint(
            fit=SCRATCH + max(choosing, 2 * bank) + min(train, _SAMPLE) * embedding,
            predict=SCRATCH + bank + max(searching, finishing_bytes(scored, self.needs.image_size)),
        )

    def tensors(self) -> dict[str, Tensor]:
        """``bank`` ``[M, C]``, in the order chosen and relative to ``origin`` ``[C]``."""
        return {"bank": fitted(self._bank, self.name).entries.cpu().contiguous(), "origin": self._origin.cpu().clone()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See the base class."""
        self._origin = tensors["origin"].to(self.runtime.device)
        self._bank = self._prepare(tensors["bank"].to(self.runtime.device))

    @property
    def _int8(self) -> bool:
        """Whether the bank is searched in int8 first."""
        return torch.device(self.runtime.device).type == "cpu" and multiplies_int8()

    def _prepare(self, entries: Tensor) -> Bank:
        return Bank(entries, int8=self._int8)

    def _rows(self, config: PatchCoreConfig) -> int:
        """Entries of the bank that ``config`` uses: all of them, or the first ones for a smaller ratio."""
        entries = len(fitted(self._bank, self.name))
        if config.coreset_sampling_ratio == self.config.coreset_sampling_ratio:
            return entries
        if self._total is None:
            raise UsageError(
                "patchcore.coreset_sampling_ratio must stay as it is in a detector that was loaded but got "
                f"{config.coreset_sampling_ratio!r}; fit again"
            )
        return min(_bank_size(config, self._total), entries)

    def _chunks(self, train: Inputs) -> Iterator[tuple[int, Tensor]]:
        """First picture's number and patches, relative to the origin, of a few pictures at a time."""
        for i in range(0, len(train), _PICTURES):
            yield i, embed(train[i : i + _PICTURES], self.config, self.runtime.device).sub_(self._origin).flatten(0, 1)


def embed(batch: Inputs, config: PatchCoreConfig, device: str = "cpu") -> Tensor:
    """Locally aware patch features ``[N, h * w, C]``."""
    window = config.patch_size
    pooled: list[Tensor] = []
    for stage in config.stages:
        maps = feature_map(batch, stage, device)
        # Zeros beyond the border, as in the authors' code, damp the border's patches. Averaging only what is there
        # sets them free to raise false alarms: on circuit boards it took the image AUROC from .90 to .62.
        maps = functional.avg_pool2d(maps, window, 1, window // 2)
        if pooled:
            maps = functional.interpolate(maps, size=pooled[0].shape[-2:], mode="bilinear", align_corners=False)
        pooled.append(maps)
    return torch.cat([maps.permute(0, 2, 3, 1) for maps in pooled], dim=-1).flatten(1, 2)


def _bank_size(config: PatchCoreConfig, total: int) -> int:
    """Entries of the memory bank of ``total`` training patches."""
    return max(1, int(config.coreset_sampling_ratio * total))
