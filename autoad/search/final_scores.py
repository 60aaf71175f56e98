"""What the finished models say of each calibration and test picture: the evidence behind every figure of a report."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_type_hints

import pyarrow as pa
import pyarrow.parquet

from autoad.errors import ArtifactError
from autoad.files import write_atomically

__all__ = ["FinalScore", "read_final_scores", "write_final_scores"]

_SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("role", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("is_anomalous", pa.bool_(), nullable=False),
    ]
)


@dataclasses.dataclass(frozen=True)
class FinalScore:
    """One model's answer to one picture.

    Attributes:
        model: ``champion`` or ``default_patchcore`` (the same answers where the default won).
        role: ``calibration`` (good pictures that set the threshold) or ``test``.
        path: the picture's file when it was scored.
        sha256: of its bytes.
        label: ``good`` or the name of the defect.
        score: raw score; higher is more anomalous.
        is_anomalous: whether it lies above that model's threshold.
    """

    model: Literal["champion", "default_patchcore"]
    role: Literal["calibration", "test"]
    path: str
    sha256: str
    label: str
    score: float
    is_anomalous: bool


def write_final_scores(file: Path, scores: Sequence[FinalScore]) -> None:
    """Write the scores as a Parquet table, one row a model and picture."""
    table = pa.Table.from_pylist([dataclasses.asdict(score) for score in scores], schema=_SCHEMA)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    write_atomically(file, buffer.getvalue())


def read_final_scores(file: Path) -> list[FinalScore]:
    """The scores in ``file``, in the order in which they were written.

    Raises:
        ArtifactError: the file is missing, damaged or of another version.
    """
    try:
        rows = pyarrow.parquet.read_table(file, columns=list(get_type_hints(FinalScore))).to_pylist()
        return [FinalScore(**row) for row in rows]
    except (OSError, pa.ArrowException, TypeError) as error:
        raise ArtifactError(
            f"{str(file)!r} must be the table of final scores that a search writes but cannot be read "
            f"({type(error).__name__}); search again to get one"
        ) from error
