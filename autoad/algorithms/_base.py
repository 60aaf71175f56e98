"""The interface of an anomaly detection algorithm.

A detector never decodes a picture nor runs the frozen backbone: it is handed :class:`Inputs` (pixels, backbone
features, or both, as its :class:`Needs` say), learns from normal ones and scores others. What it learnt is a flat
dictionary of tensors, so that a saved model holds no code.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

__all__ = ["Detector", "Inputs", "Kind", "Needs", "Precision", "Prediction", "Progress", "Runtime"]

Kind = Literal["classification", "segmentation"]
Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Where a detector computes, and how exactly.

    Attributes:
        device: a torch device, ``"cpu"`` or ``"cuda:0"``.
        precision: of the networks that a detector trains and runs (autocast); statistics and distances that
            decide a score are always accumulated in float32 or better.
    """

    device: str = "cpu"
    precision: Precision = "float32"

    def autocast(self) -> torch.autocast:
        """Context in which networks run at ``precision`` (no-op for float32)."""
        return torch.autocast(
            torch.device(self.device).type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"
        )


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a detector wants to be given.

    Attributes:
        image_size: height and width in pixels to which pictures are resized.
        backbone: timm name of the frozen backbone, or None when only pixels are used.
        stages: backbone stages; stage ``s`` is the output at stride ``2 ** (s + 1)``, so stages 1-4 are the four
            blocks of a ResNet, at strides 4, 8, 16 and 32.
        images: whether the pixels themselves are needed.
    """

    image_size: tuple[int, int]
    backbone: str | None = None
    stages: tuple[int, ...] = ()
    images: bool = False


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A set of pictures as a detector sees them; tensors lie on the CPU.

    Attributes:
        image_size: height and width of the resized pictures (and of anomaly maps).
        features: by stage, ``[N, C, h, w]`` float16 or float32; memory is channels-last (``permute(0, 2, 3, 1)`` is
            contiguous) and may be a read-only map of a file, so never write into it.
        images: RGB pixels ``[N, H, W, 3]`` uint8, or None.
    """

    image_size: tuple[int, int]
    features: Mapping[int, Tensor] = dataclasses.field(default_factory=dict)
    images: Tensor | None = None

    def __post_init__(self) -> None:
        lengths = {len(t) for t in self.features.values()} | ({len(self.images)} if self.images is not None else set())
        if len(lengths) != 1:
            raise ValueError(f"features and images must hold the same number of pictures but got {sorted(lengths)}")

    def __len__(self) -> int:
        if self.images is not None:
            return len(self.images)
        return len(next(iter(self.features.values())))

    def __getitem__(self, index: slice | Tensor) -> Inputs:
        """The pictures at ``index`` (a slice, or a 1-D int64 tensor), in that order."""
        return Inputs(
            self.image_size,
            {stage: t[index] for stage, t in self.features.items()},
            None if self.images is None else self.images[index],
        )

    def batches(self, size: int) -> Iterator[Inputs]:
        """Consecutive slices of at most ``size`` pictures."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Raw scores of ``N`` pictures; higher is more anomalous.

    Attributes:
        scores: ``[N]`` float32, finite.
        maps: ``[N, H, W]`` float32 anomaly maps at the input's ``image_size``; None for classification.
    """

    scores: Tensor
    maps: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a fit stands, reported after each epoch (once, ``1 of 1``, by detectors that do not iterate)."""

    epoch: int
    epochs: int
    loss: float | None = None


class Detector(ABC):
    """One anomaly detection algorithm.

    Subclasses set the class attributes, keep everything learnt in tensors, and compute only from the arguments: the
    score of a picture never depends on which others share its batch.

    Attributes:
        name: as on the command line and in search spaces.
        kind: ``"segmentation"`` when there is an anomaly map, else ``"classification"``.
        iterative: whether ``fit`` goes through epochs (and may be stopped after any of them).
        paper: authors, title, year.
        Config: frozen dataclass of hyperparameters with the paper's (else anomalib's) defaults; ``image_size``, in
            pixels, is always among them, ``epochs`` in iterative ones and ``backbone`` in those that use one.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    iterative: ClassVar[bool] = False
    paper: ClassVar[str]
    Config: ClassVar[type[Any]]

    def __init__(self, config: Any = None, *, seed: int = 0, runtime: Runtime | None = None) -> None:
        self.config = self.Config() if config is None else config
        self.seed = seed
        self.runtime = Runtime() if runtime is None else runtime

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What ``fit`` and ``predict`` must be given."""

    @abstractmethod
    def fit(self, train: Inputs) -> Iterator[Progress]:
        """Learn from normal pictures, yielding after each epoch.

        The detector can predict, and be saved, after any yield: a caller who has spent its budget just stops
        iterating. The same seed and inputs give the same detector.

        Raises:
            TrialError: the configuration cannot work on these pictures.
        """

    @abstractmethod
    def predict(self, batch: Inputs) -> Prediction:
        """Score pictures; see :class:`Prediction`."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that was learnt, as contiguous CPU tensors by name."""

    @abstractmethod
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` of a fitted detector with the same config gave."""
