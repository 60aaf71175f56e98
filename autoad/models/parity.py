"""The parity set: pictures that an artifact carries, with what the saved model said of them.

Right after calibration the saved model scores some selection and calibration pictures, never test pictures. Their
bytes, scores and maps go into the artifact, so that whoever deploys it can find out, without the dataset, whether it
scores there what was evaluated (:mod:`autoad.serve.gate`).
"""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from autoad.data import Picture
from autoad.errors import ArtifactError
from autoad.files import write_atomically
from autoad.models.model import Model

__all__ = ["MAP_STEP", "PARITY_FILE", "ParityPicture", "choose_parity", "read_parity", "write_parity"]

PARITY_FILE = "parity.parquet"
MAP_STEP = 4
"""Maps are kept at every so many pixels: exact values, a sixteenth of the bytes."""

_MOST_PICTURES = 64
_MOST_BYTES = 64 * 2**20
_FEWEST_PICTURES = 16
_ROLES = ("selection", "calibration")

_SCHEMA = pa.schema(
    [
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("role", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("data", pa.binary(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("is_anomalous", pa.bool_(), nullable=False),
        pa.field("map_width", pa.int32(), nullable=False),
        pa.field("map", pa.list_(pa.float32())),
    ]
)


@dataclasses.dataclass(frozen=True)
class ParityPicture:
    """One picture and what the saved model said of it.

    Attributes:
        sha256: of the picture's bytes.
        role: ``selection`` or ``calibration``.
        label: ``good`` or the defect's name.
        data: the encoded picture.
        score: raw.
        is_anomalous: the verdict.
        anomaly_map: ``[ceil(H / 4), ceil(W / 4)]`` float32, every fourth pixel of the map; None without a map.
    """

    sha256: str
    role: Literal["selection", "calibration"]
    label: str
    data: bytes
    score: float
    is_anomalous: bool
    anomaly_map: NDArray[np.float32] | None


def choose_parity(selection: Sequence[Picture], calibration: Sequence[Picture]) -> list[tuple[str, Picture, bytes]]:
    """Role, picture and bytes of those that an artifact carries.

    At most 64 pictures, half of them calibration pictures where there are so many, spread evenly over the order of
    sha256; at most 64 MiB, but 16 pictures however large. The roles take turns, so both are there whatever the bytes
    allow. Synthetic defects are not pictures of anybody's: they stay out.
    """
    real = sorted((picture for picture in selection if not picture.synthetic), key=lambda picture: picture.sha256)
    good = sorted(calibration, key=lambda picture: picture.sha256)
    share = max(_MOST_PICTURES // 2, _MOST_PICTURES - len(good))
    selected = _evenly(real, share)
    calibrated = _evenly(good, _MOST_PICTURES - len(selected))
    turns = itertools.zip_longest(selected, calibrated)
    taken: list[tuple[str, Picture, bytes]] = []
    size = 0
    for role, picture in ((role, one) for turn in turns for role, one in zip(_ROLES, turn, strict=True)):
        if picture is None:
            continue
        data = picture.read()
        size += len(data)
        if size > _MOST_BYTES and len(taken) >= _FEWEST_PICTURES:
            break
        taken.append((role, picture, data))
    return taken


def write_parity(folder: Path, model: Model, pictures: Sequence[tuple[str, Picture, bytes]]) -> None:
    """Score pictures by the calibrated model that lies in ``folder`` and keep what it says there.

    Args:
        folder: of the artifact.
        model: loaded from it.
        pictures: as of :func:`choose_parity`.
    """
    rows = []
    for (role, picture, data), score in zip(pictures, model.score_many(data for _, _, data in pictures), strict=True):
        sampled = None if score.anomaly_map is None else score.anomaly_map[::MAP_STEP, ::MAP_STEP]
        rows.append(
            {
                "sha256": picture.sha256,
                "role": role,
                "label": picture.label,
                "data": data,
                "score": score.score,
                "is_anomalous": score.is_anomalous,
                "map_width": 0 if sampled is None else sampled.shape[1],
                "map": None if sampled is None else np.ascontiguousarray(sampled).ravel(),
            }
        )
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), buffer, compression="zstd")
    write_atomically(folder / PARITY_FILE, buffer.getvalue())


def read_parity(folder: Path) -> list[ParityPicture]:
    """The parity set of an artifact.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    file = folder / PARITY_FILE
    try:
        rows = pyarrow.parquet.read_table(file, schema=_SCHEMA).to_pylist()
        return [
            ParityPicture(
                sha256=row["sha256"],
                role=row["role"],
                label=row["label"],
                data=row["data"],
                score=row["score"],
                is_anomalous=row["is_anomalous"],
                anomaly_map=None
                if row["map"] is None
                else np.asarray(row["map"], dtype=np.float32).reshape(-1, row["map_width"]),
            )
            for row in rows
        ]
    except (OSError, pa.ArrowException, ValueError) as error:
        raise ArtifactError(
            f"{str(file)!r} must be the parity set that a search writes but cannot be read ({type(error).__name__}); "
            "copy the model again from where it was saved, or search again"
        ) from error


def _evenly(pictures: Sequence[Picture], count: int) -> list[Picture]:
    if len(pictures) <= count:
        return list(pictures)
    return [pictures[int(index)] for index in np.linspace(0, len(pictures) - 1, count)]
