"""Decoded pictures and backbone features, computed once per node and shared by all trials.

Below the store's folder lie tables (:mod:`autoad.features.table`), one for each thing that decides a value besides
the picture: ``images/HxW-vN`` and ``BACKBONE-WEIGHTS/HxW-ENGINE-PRECISION-vN``. Rows are named by the sha256 of the
picture's file, columns are the stages. A label, a fold, a role or a file's name therefore recomputes nothing.

One pass of the network writes stages 1-4 of the pyramid at once, for later trials ask for other stages, as long as a
map that nobody has asked for yet takes at most a megabyte a picture. That bounds wide networks: in float16 at 256 px
EfficientNet-Lite0 takes .38 MB a picture, ResNet-18 1.0 MB, but wide ResNet-50 3.9 MB, over half of it in stage 1.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoad.data import Picture
from autoad.data.decoding import load_image
from autoad.errors import FileStoreError, UnreadableImageError, WeightsError
from autoad.features.backbones import feature_shapes, stage_indices
from autoad.features.engines import Engine, EngineChoice, create_engine
from autoad.features.room import Room
from autoad.features.shard import Chunk
from autoad.features.table import ShardTable
from autoad.features.weights import Weights, find_weights
from autoad.settings import get_settings

__all__ = ["PREPROCESSING_VERSION", "FeatureStore", "as_tensors"]

PREPROCESSING_VERSION = 2
"""Part of every key; goes up when decoding, resizing or normalising changes, or the shards' files do."""

_PIXELS = "pixels"
_PYRAMID = (1, 2, 3, 4)
_BYTES_KEPT_UNASKED = 2**20
_CHUNK = 16
_DECODERS = 2
_LARGEST = float(np.finfo(np.float16).max)


class FeatureStore:
    """The store of one node.

    Safe to use from several processes at once: what is missing is computed by one of them while the others wait. What
    has not been used longest is removed when the limit or the disk demands it; what is damaged is computed again.

    Args:
        root: its folder; made when it is first written to.
        limit: bytes that it may take; None for the setting ``features_limit``. One request may take more.
    """

    def __init__(self, root: Path, limit: int | None = None) -> None:
        self._root = root
        self._room = Room(root, get_settings().features_limit if limit is None else limit)
        self._tables: dict[tuple[str, ...], ShardTable] = {}
        self._engine: tuple[object, Engine] | None = None

    def images(self, pictures: Sequence[Picture], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Pixels of pictures resized to ``size`` (height, width).

        Returns:
            ``[N, H, W, 3]`` uint8 RGB, read-only, in the order of ``pictures``.

        Raises:
            StorageFullError: the disk has no room for what must be computed.
            UnreadableImageError: a picture cannot be decoded, or is not the file that it was.
            UsageError: the store cannot be written.
        """
        if not pictures:
            return np.empty((0, *size, 3), np.uint8)
        by_key = {picture.sha256: picture for picture in pictures}

        def compute(missing: list[str], _: list[str]) -> Iterator[Chunk]:
            for pixels in _decode([by_key[key] for key in missing], size, _DECODERS):
                yield {_PIXELS: pixels}

        return self._images(size).take([picture.sha256 for picture in pictures], [_PIXELS], compute)[_PIXELS]

    def features(
        self,
        pictures: Sequence[Picture],
        *,
        backbone: str,
        stages: Sequence[int],
        image_size: tuple[int, int],
        engine: EngineChoice,
        threads: int = 1,
    ) -> dict[int, NDArray[np.float16]]:
        """Features of pictures.

        Args:
            pictures: may repeat.
            backbone: timm name.
            stages: of which maps are wanted.
            image_size: height and width to which pictures are resized.
            engine: runs the backbone over pictures that the store does not hold.
            threads: CPU threads of that, beside as many that decode.

        Returns:
            By stage, ``[N, h, w, C]`` float16, read-only, in the order of ``pictures``. Values beyond float16's range
            are the largest that it has.

        Raises:
            StorageFullError: the disk has no room for what must be computed.
            UnreadableImageError: a picture cannot be decoded, or is not the file that it was.
            UsageError: no such backbone, stage or engine, or the store cannot be written.
            WeightsError: the backbone's weights cannot be reached, or give values that are not numbers.
        """
        stage_indices(backbone, stages)
        weights = find_weights(backbone)
        shapes = feature_shapes(backbone, image_size)
        if not pictures:
            return {stage: np.empty((0, *shapes[stage]), np.float16) for stage in stages}
        by_key = {picture.sha256: picture for picture in pictures}

        def compute(missing: list[str], lacking: list[str]) -> Iterator[Chunk]:
            lacked = tuple(sorted(map(_stage, lacking)))
            chunks = self._pixels([by_key[key] for key in missing], image_size, threads)
            # While the engine is opened the first pictures are decoded; while it computes, the chunk before is stored.
            with ThreadPoolExecutor(max_workers=1) as ahead, contextlib.closing(chunks):
                opened = ahead.submit(self._open_engine, weights, lacked, image_size, engine, threads)
                computed: Future[dict[int, NDArray[np.float32]]] | None = None
                for pixels in chunks:
                    run, before = opened.result(), computed
                    computed = ahead.submit(run, pixels)
                    if before is not None:
                        yield _to_columns(before.result(), backbone)
                if computed is not None:
                    yield _to_columns(computed.result(), backbone)

        table = self._table(
            f"{backbone}-{weights.identity}",
            f"{_name(image_size)}-{engine.name}-{engine.precision}-v{PREPROCESSING_VERSION}",
        )
        small = [stage for stage in _PYRAMID if stage in shapes and 2 * math.prod(shapes[stage]) <= _BYTES_KEPT_UNASKED]
        found = table.take(
            [picture.sha256 for picture in pictures], [*map(_column, stages)], compute, welcome=[*map(_column, small)]
        )
        return {stage: found[_column(stage)] for stage in stages}

    def _table(self, *names: str) -> ShardTable:
        if not self._tables:
            self._room.sweep()
        return self._tables.setdefault(names, ShardTable(self._root.joinpath(*names), self._room))

    def _images(self, size: tuple[int, int]) -> ShardTable:
        return self._table("images", f"{_name(size)}-v{PREPROCESSING_VERSION}")

    def _open_engine(
        self, weights: Weights, stages: tuple[int, ...], image_size: tuple[int, int], choice: EngineChoice, threads: int
    ) -> Engine:
        """The engine used last, if it will do: train and selection pictures are asked for one after the other."""
        key = (weights, stages, image_size, choice, threads)
        if self._engine is None or self._engine[0] != key:
            self._engine = None  # free its memory first
            engine = create_engine(
                weights.backbone,
                stages,
                image_size,
                engine=choice.name,
                precision=choice.precision,
                threads=threads,
                streams=threads,
            )
            self._engine = (key, engine)
        return self._engine[1]

    def _pixels(
        self, pictures: Sequence[Picture], size: tuple[int, int], threads: int
    ) -> Generator[NDArray[np.uint8], None, None]:
        """Pixels of the pictures, a chunk at a time; the store's own where it has them."""
        table = self._images(size)
        for start in range(0, len(pictures), _CHUNK):
            found = table.find([picture.sha256 for picture in pictures[start : start + _CHUNK]], [_PIXELS])
            if found is None:
                yield from _decode(pictures[start:], size, threads)
                return
            yield found[_PIXELS]


def as_tensors(features: Mapping[int, NDArray[Any]]) -> dict[int, Tensor]:
    """``[N, h, w, C]`` arrays as ``[N, C, h, w]`` tensors, channels last, over the same memory.

    The memory may be a read-only map of a file: writing into such a tensor ends the process.
    """
    return {stage: torch.from_numpy(_alias(array)).permute(0, 3, 1, 2) for stage, array in features.items()}


class _Memory:
    """An array's memory, offered to NumPy as writable, because torch warns of memory that is not."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        interface = array.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def _alias(array: NDArray[Any]) -> NDArray[Any]:
    if array.flags.writeable:
        return array
    return np.asarray(_Memory(array)) if array.size else np.empty_like(array)


def _decode(pictures: Sequence[Picture], size: tuple[int, int], threads: int) -> Iterator[NDArray[np.uint8]]:
    """Chunks of pixels ``[n, H, W, 3]``, decoded ahead of the caller, but never more than two chunks."""
    pool = ThreadPoolExecutor(max_workers=threads)
    left = iter(pictures)
    waiting = deque(pool.submit(_load, picture, size) for picture in itertools.islice(left, 2 * _CHUNK))
    try:
        while waiting:
            chunk = []
            for _ in range(min(_CHUNK, len(waiting))):
                chunk.append(waiting.popleft().result())
                waiting.extend(pool.submit(_load, picture, size) for picture in itertools.islice(left, 1))
            yield np.stack(chunk)
    finally:
        pool.shutdown(cancel_futures=True)


def _load(picture: Picture, size: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        return load_image(picture.read(), size)
    except (OSError, FileStoreError, UnreadableImageError) as error:
        raise UnreadableImageError(f"picture {picture.path} {error}") from error


def _to_columns(features: Mapping[int, NDArray[np.float32]], backbone: str) -> Chunk:
    return {_column(stage): _to_float16(torch.from_numpy(maps), backbone).numpy() for stage, maps in features.items()}


def _to_float16(maps: Tensor, backbone: str) -> Tensor:
    low, high = map(float, torch.aminmax(maps))
    if math.isnan(low):
        raise WeightsError(f"the weights of backbone {backbone!r} give features that are not numbers; get others")
    if low < -_LARGEST or high > _LARGEST:
        maps = maps.clamp(-_LARGEST, _LARGEST)
    return maps.half()


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _column(stage: int) -> str:
    return f"stage{stage}"


def _stage(column: str) -> int:
    return int(column.removeprefix("stage"))
