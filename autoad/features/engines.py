"""What runs the frozen backbone: OpenVINO, torch on the CPU, or CUDA.

Each engine maps uint8 pictures to float32 feature maps and normalises them itself. **The features of a picture are the
same to the last bit whatever other pictures are in the call.** Matrix kernels round differently for different batch
sizes, so the CPU engines hand the network one picture at a time; OpenVINO spreads them over streams of its own, and is
no slower for it (EfficientNet-Lite0 at 256 px, milliseconds of one core a picture, batch of 1 / 4 / 8: float32
12.1 / 13.3 / 14.0, bfloat16 6.7 / 6.1 / 6.7; ResNet-18: 36 / 37 / 37 and 11.3 / 10.7 / 11.4).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from autoad.errors import UnknownNameError, UsageError
from autoad.features._openvino import compile_backbone, options_for
from autoad.features.backbones import NormalisedBackbone, feature_shapes, stage_indices
from autoad.features.weights import Weights, find_weights

__all__ = ["Engine", "EngineChoice", "available_engines", "choose_engine", "create_engine", "head_precision"]

EngineName = Literal["openvino", "torch", "cuda"]
Precision = Literal["float32", "bfloat16"]

_ENGINES: tuple[EngineName, ...] = ("openvino", "torch", "cuda")
_PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
_CUDA_BATCH = 16


@dataclasses.dataclass(frozen=True)
class EngineChoice:
    """An engine and how exactly it computes; one of them serves a whole study."""

    name: EngineName
    precision: Precision


class Engine(ABC):
    """A frozen backbone, ready to run.

    Attributes:
        name: ``"openvino"``, ``"torch"`` or ``"cuda"``.
        precision: ``"float32"`` or ``"bfloat16"``.
        backbone: timm name.
        stages: of which maps are given.
        image_size: height and width of the pictures, in pixels.
        weights: what was loaded.
    """

    name: EngineName

    def __init__(
        self, backbone: str, stages: Sequence[int], image_size: tuple[int, int], precision: Precision, weights: Weights
    ) -> None:
        self.precision = precision
        self.backbone = backbone
        self.stages = tuple(stages)
        self.image_size = image_size
        self.weights = weights
        self._shapes = {stage: feature_shapes(backbone, image_size)[stage] for stage in self.stages}

    def __call__(self, images: NDArray[np.uint8]) -> dict[int, NDArray[np.float32]]:
        """Features of RGB pictures.

        Args:
            images: ``[N, H, W, 3]`` uint8 of the engine's ``image_size``.

        Returns:
            By stage, ``[N, h, w, C]`` float32, C-contiguous.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (*self.image_size, 3):
            raise UsageError(
                f"pictures must be uint8 [N, {self.image_size[0]}, {self.image_size[1]}, 3] but got {images.dtype} "
                f"{list(images.shape)}"
            )
        features = {stage: np.empty((len(images), *shape), np.float32) for stage, shape in self._shapes.items()}
        self._run(images, features)
        return features

    @abstractmethod
    def _run(self, images: NDArray[np.uint8], features: dict[int, NDArray[np.float32]]) -> None:
        """Fill ``features``."""


def available_engines() -> dict[str, str]:
    """Each engine and what it can do here, or why it cannot be used."""
    states: dict[str, str] = {}
    for name in _ENGINES:
        try:
            _check_available(name)
        except UsageError as error:
            states[name] = str(error)
        else:
            states[name] = f"{_version(name)}, {'float32 and bfloat16' if _has_bfloat16(name) else 'float32'}"
    return states


def choose_engine(engine: str = "auto", precision: str = "auto") -> EngineChoice:
    """The engine and precision for a study on this machine.

    ``"auto"`` takes CUDA where there is a GPU, else OpenVINO where it is installed, else torch; and float32. bfloat16
    takes a quarter to a half off the time of a picture with EfficientNet-Lite0, but features are computed once and
    kept, and it is not harmless: on three industrial datasets it moved image AUROC by up to .059
    (``benchmarks/bfloat16.py``), where .002 was the most that a default may change. Of ResNets only the speed (three to
    four times) and the relative error (.005 instead of .05-.14, with random weights) were measured.

    Raises:
        UsageError: this machine does not have what was asked for.
    """
    if engine == "auto":
        name: EngineName = "cuda" if torch.cuda.is_available() else "openvino" if _openvino_version() else "torch"
    else:
        known = next((one for one in _ENGINES if one == engine), None)
        if known is None:
            raise UnknownNameError("engine", engine, ("auto", *_ENGINES))
        name = known
        _check_available(name)
    chosen = next((one for one in _PRECISIONS if one == precision), None)
    if chosen is None and precision != "auto":
        raise UnknownNameError("precision", precision, ("auto", *_PRECISIONS))
    if chosen == "bfloat16" and not _has_bfloat16(name):
        raise UsageError(f"precision must be 'float32' but got 'bfloat16': this machine has no bfloat16 for {name}")
    return EngineChoice(name, chosen or "float32")


def head_precision(choice: EngineChoice) -> Precision:
    """The precision in which detectors train networks of their own, and score by them until they are saved.

    bfloat16 where the hardware multiplies in it: training is two to three times as fast.
    """
    return "bfloat16" if _has_bfloat16(choice.name) else "float32"


def create_engine(
    backbone: str,
    stages: Sequence[int],
    image_size: tuple[int, int],
    *,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    streams: int | None = None,
) -> Engine:
    """A backbone with its pretrained weights, compiled for pictures of one size.

    Args:
        backbone: timm name.
        stages: of which maps are wanted.
        image_size: height and width in pixels.
        engine: see :func:`choose_engine`.
        precision: see :func:`choose_engine`.
        threads: of the CPU; None for all.
        streams: how many pictures OpenVINO computes side by side, each with its share of the threads: as many as
            threads is best for throughput, one for the latency of a single picture; None for four threads a stream.

    Raises:
        UsageError: the machine has no such engine, or the backbone no such stage or size.
        WeightsError: the weights cannot be reached.
    """
    choice = choose_engine(engine, precision)
    stage_indices(backbone, stages)
    count = threads or os.cpu_count() or 1
    if choice.name == "openvino":
        return _OpenVINOEngine(backbone, stages, image_size, choice.precision, count, streams)
    if choice.name == "cuda":
        return _CUDAEngine(backbone, stages, image_size, choice.precision)
    return _TorchEngine(backbone, stages, image_size, choice.precision, count)


class _OpenVINOEngine(Engine):
    """The backbone compiled by OpenVINO for the CPU."""

    name: EngineName = "openvino"

    def __init__(
        self,
        backbone: str,
        stages: Sequence[int],
        image_size: tuple[int, int],
        precision: Precision,
        threads: int,
        streams: int | None,
    ) -> None:
        weights = find_weights(backbone)
        super().__init__(backbone, stages, image_size, precision, weights)
        import openvino

        options = options_for(precision, threads, streams)
        self._queue = openvino.AsyncInferQueue(compile_backbone(weights, self.stages, image_size, precision, options))
        self._lock = threading.Lock()

    def _run(self, images: NDArray[np.uint8], features: dict[int, NDArray[np.float32]]) -> None:
        outputs = [features[stage] for stage in self.stages]

        def keep(request: Any, index: int) -> None:
            for number, output in enumerate(outputs):
                output[index] = request.get_output_tensor(number).data.reshape(output.shape[1:])

        with self._lock:  # the queue has one callback
            self._queue.set_callback(keep)
            for index in range(len(images)):
                self._queue.start_async({0: np.ascontiguousarray(images[index : index + 1])}, index)
            self._queue.wait_all()


class _TorchEngine(Engine):
    """The backbone in eager torch on the CPU, channels last, where there is no OpenVINO."""

    name: EngineName = "torch"

    def __init__(
        self,
        backbone: str,
        stages: Sequence[int],
        image_size: tuple[int, int],
        precision: Precision,
        threads: int,
    ) -> None:
        weights = find_weights(backbone)
        super().__init__(backbone, stages, image_size, precision, weights)
        self._network = NormalisedBackbone(backbone, stages, weights).to(memory_format=torch.channels_last).eval()
        self._threads = threads

    def _run(self, images: NDArray[np.uint8], features: dict[int, NDArray[np.float32]]) -> None:
        half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bfloat16")
        with torch.inference_mode(), half, _torch_threads(self._threads):
            for index in range(len(images)):
                maps = self._network(torch.from_numpy(images[index : index + 1].copy()))
                for stage, one in zip(self.stages, maps, strict=True):
                    features[stage][index] = one.float().numpy().reshape(self._shapes[stage])


class _CUDAEngine(Engine):
    """The backbone on a GPU, channels last.

    The network always sees batches of the same size, the last one padded, so that every picture is computed by the same
    kernels. **This code has never run on a GPU.**
    """

    name: EngineName = "cuda"

    def __init__(self, backbone: str, stages: Sequence[int], image_size: tuple[int, int], precision: Precision) -> None:
        weights = find_weights(backbone)
        super().__init__(backbone, stages, image_size, precision, weights)
        network = NormalisedBackbone(backbone, stages, weights)
        self._network = network.to("cuda", memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def _run(self, images: NDArray[np.uint8], features: dict[int, NDArray[np.float32]]) -> None:
        half = torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.precision == "bfloat16")
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        padded = torch.zeros(_CUDA_BATCH, *self.image_size, 3, dtype=torch.uint8)
        with torch.inference_mode(), half, exact:
            for start in range(0, len(images), _CUDA_BATCH):
                part = images[start : start + _CUDA_BATCH]
                padded[: len(part)] = torch.from_numpy(part.copy())
                maps = self._network(padded.to("cuda"))
                for stage, one in zip(self.stages, maps, strict=True):
                    found = one[: len(part)].float().cpu().numpy()
                    features[stage][start : start + len(part)] = found.reshape(-1, *self._shapes[stage])


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_available(name: EngineName) -> None:
    if name == "openvino" and not _openvino_version():
        raise UsageError("engine 'openvino' is not installed: pip install openvino")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("engine 'cuda' needs a GPU and this machine has none that torch can use")


def _version(name: EngineName) -> str:
    return _openvino_version() if name == "openvino" else f"torch {torch.__version__}"


@functools.lru_cache(maxsize=1)
def _openvino_version() -> str:
    """OpenVINO's version; empty where it cannot be imported."""
    try:
        import openvino
    except ImportError:
        return ""
    return f"OpenVINO {openvino.__version__.partition('-')[0]}"


@functools.lru_cache(maxsize=3)
def _has_bfloat16(name: EngineName) -> bool:
    """Whether the hardware multiplies bfloat16 natively."""
    if name == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if _openvino_version():
        import openvino

        return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return bool(torch.cpu._is_avx512_bf16_supported())
