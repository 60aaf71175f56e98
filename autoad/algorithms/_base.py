"""The interface of an anomaly detection algorithm.

A detector never decodes a picture nor runs the frozen backbone: it is handed :class:`Inputs` (pixels, backbone
features, or both, as its :class:`Needs` say), learns from normal ones and scores others. What it learnt is a flat
dictionary of tensors, so that a saved model holds no code.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from autoad.errors import UsageError

__all__ = [
    "MEMORY_LIMIT",
    "Detector",
    "Effect",
    "Footprint",
    "Inputs",
    "Kind",
    "Needs",
    "Precision",
    "Prediction",
    "Progress",
    "Runtime",
    "Shapes",
]

Effect = Literal["scores", "maps", "both"]
Kind = Literal["classification", "segmentation"]
Precision = Literal["float32", "bfloat16"]

Shapes = Mapping[int, tuple[int, int, int]]
"""By stage, height, width and channels of the features of one picture."""

MEMORY_LIMIT = 4 << 30
"""Bytes beyond which a fit is refused unless its :class:`Runtime` says otherwise."""


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Where a detector computes, and how exactly.

    Attributes:
        device: a torch device, ``"cpu"`` or ``"cuda:0"``.
        precision: of the networks that a detector trains and, unless they are compiled, runs (autocast); statistics
            and distances that decide a score are always accumulated in float32 or better.
        memory: bytes that a detector may take; what is sure to need more is refused before it is allocated.
    """

    device: str = "cpu"
    precision: Precision = "float32"
    memory: int = MEMORY_LIMIT

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


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes that a detector takes at most, beyond its inputs; estimates, right within a factor of two.

    Attributes:
        fit: while it fits, including all it has learnt by then.
        predict: while it predicts, including what it has learnt and the maps that it returns.
        maps: whether it may return maps.
    """

    fit: int
    predict: int
    maps: bool = True


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
        post_fit: fields of Config that prediction alone reads, and what they change: only the image ``"scores"``,
            only the ``"maps"``, or ``"both"``.
        reducible: fields of Config that ``fit`` reads, of which a fitted detector can still take on any smaller value.
        compiles: whether it has networks of its own that :meth:`compile` makes faster.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    iterative: ClassVar[bool] = False
    paper: ClassVar[str]
    Config: ClassVar[type[Any]]
    post_fit: ClassVar[Mapping[str, Effect]] = {}
    reducible: ClassVar[tuple[str, ...]] = ()
    compiles: ClassVar[bool] = False

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
        iterating. The pictures must stay as they are until it has been asked for the first time after that, for what a
        training epoch leaves to be measured on them is measured then. The same seed and inputs give the same detector.

        Raises:
            TrialError: the configuration cannot work on these pictures.
        """

    @torch.no_grad()
    def predict(self, batch: Inputs) -> Prediction:
        """Score pictures; see :class:`Prediction`."""
        return self.finish(self.measure(batch, (self.config,)), self.config)

    @abstractmethod
    def measure(self, batch: Inputs, configs: Sequence[Any]) -> Any:
        """The costly part of scoring (networks, distances), done once for several configurations.

        Args:
            batch: pictures.
            configs: those that :meth:`finish` will be asked for; see :meth:`reconfigured` for what they may be.

        Returns:
            What ``finish`` goes on from, small beside the maps.
        """

    @abstractmethod
    def finish(self, measured: Any, config: Any, *, maps: bool = True) -> Prediction:
        """The cheap rest (weighting, combining, blur) for one configuration.

        Args:
            measured: what :meth:`measure` gave.
            config: one of the configurations that it was given.
            maps: whether maps are wanted; where they are not, ``Prediction.maps`` is None.
        """

    def reconfigured(self, **changes: Any) -> Self:
        """The same fitted detector with other values of ``post_fit`` or ``reducible`` fields, sharing its tensors.

        It is the detector that a fit with these values, on the same pictures and with the same seed, would give.

        Raises:
            UsageError: a field is neither, or a reducible one would grow.
        """
        for name, value in changes.items():
            if name in self.reducible:
                largest = getattr(self.config, name)
                if value > largest:
                    raise UsageError(
                        f"{self.name}.{name} must be at most {largest!r}, with which the detector was fitted, but got "
                        f"{value!r}; fit again"
                    )
            elif name not in self.post_fit:
                known = ", ".join((*self.post_fit, *self.reducible)) or "none"
                raise UsageError(
                    f"{self.name}.{name} must be one of the hyperparameters that can change after the fit ({known}); "
                    "fit again"
                )
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, **changes)
        return other

    def compile(self, *, threads: int | None = None, streams: int | None = None) -> None:  # noqa: B027 - most have none
        """Get networks of the detector's own ready to score as fast as this CPU can; scores change by rounding alone.

        They are compiled for single pictures of the configured size, in float32 whatever they were trained in, and what
        only training and saving take is let go: from then on the detector can predict pictures of that size, and be
        fitted anew, but neither be saved nor pickled. Nothing happens where there is no such network, on a GPU, or
        without OpenVINO.

        Args:
            threads: of the CPU; None for all.
            streams: pictures that are computed side by side; see :func:`autoad.features.create_engine`.
        """

    @abstractmethod
    def footprint(self, train: int, scored: int, shapes: Shapes) -> Footprint:
        """Memory that fitting on ``train`` and scoring ``scored`` pictures at once takes; nothing is allocated.

        Args:
            train: number of pictures to fit on.
            scored: number of pictures in one call of ``predict``.
            shapes: of their features, by stage.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that was learnt, as contiguous CPU tensors by name."""

    @abstractmethod
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` of a fitted detector with the same config gave."""
