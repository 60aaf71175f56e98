"""What each finished trial said of the selection pictures, kept beside the database for the choice at the end."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoad.files import write_atomically

__all__ = ["SelectionScores"]


class SelectionScores:
    """The scores of a search's trials, a file each.

    Args:
        folder: of the search; made when something is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "selection"

    def keep(self, trial: int, scores: npt.NDArray[np.float32]) -> None:
        """Keep a trial's scores ``[N]``; one whose scores find no room on the disk is only not compared in the end."""
        buffer = io.BytesIO()
        np.save(buffer, scores, allow_pickle=False)
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file(trial), buffer.getvalue())

    def read(self, trials: Iterable[int], count: int) -> dict[int, npt.NDArray[np.float32]]:
        """By trial, its scores ``[count]``; trials of which there are none, or others, are left out."""
        found = {}
        for trial in trials:
            with contextlib.suppress(OSError, ValueError):
                scores = np.load(self._file(trial), allow_pickle=False)
                if scores.shape == (count,):
                    found[trial] = scores
        return found

    def _file(self, trial: int) -> Path:
        return self._folder / f"{trial}.npy"
