"""All that a report is made of, read from where a search left it; what cannot be read is named, not fatal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet

from autoad.data import Dataset, Picture
from autoad.database import Database
from autoad.errors import ArtifactError, UsageError
from autoad.models import Manifest, read_manifest
from autoad.schema import SearchResult, TrialRow
from autoad.search.final_scores import FinalScore, read_final_scores
from autoad.search.public import public_result, without_paths
from autoad.settings import Settings

__all__ = ["Material", "gather"]


@dataclasses.dataclass(frozen=True)
class Material:
    """What is known of a search.

    Attributes:
        result: the search as it stands.
        request: what was asked for, by field of :class:`autoad.search.SearchRequest`; empty where it is not known.
        study: Optuna's record of the trials.
        scores: answers of the champion and of the default to calibration and test pictures.
        pictures: the dataset's pictures by sha256.
        model: folder of the champion.
        manifest: of the champion's model.
        missing: a sentence for each of these that could not be read.
        is_public: whether it is for readers who are not to see where anything lies on this machine.
    """

    result: SearchResult
    request: dict[str, Any]
    study: optuna.Study | None
    scores: tuple[FinalScore, ...]
    pictures: dict[str, Picture]
    model: Path | None
    manifest: Manifest | None
    missing: tuple[str, ...]
    is_public: bool = False

    def for_others(self, dataset: str) -> Material:
        """The same without the paths of this machine; ``dataset`` is how the dataset is called then."""
        return dataclasses.replace(
            self,
            result=public_result(self.result, dataset),
            request=self.request | ({"data": dataset} if self.request else {}),
            missing=tuple(without_paths(sentence) for sentence in self.missing),
            is_public=True,
        )

    @property
    def complete(self) -> list[TrialRow]:
        """The finished trials with a value of the objective, best first."""
        return [row for row in self.result.leaderboard if row.status == "complete" and self.objective(row) is not None]

    def objective(self, row: TrialRow) -> float | None:
        """What the trial reached on the selection pictures."""
        return row.value(self.result.objective)

    def scores_of(self, model: str, role: str) -> list[FinalScore]:
        """Answers of one model to the pictures of one role."""
        return [score for score in self.scores if score.model == model and score.role == role]


def gather(result: SearchResult, settings: Settings) -> Material:
    """Read what a search left in the database and in its folder."""
    folder = settings.searches_dir / result.search_id
    missing: list[str] = []
    request: dict[str, Any] = {}
    database = Database(settings)
    try:
        request = database.find_search(result.search_id).request
    except UsageError:
        missing.append("The database has no record of what was asked for.")
    finally:
        database.close()
    study = _load_study(result.search_id, settings.data_dir / "optuna.db")
    if study is None:
        missing.append(
            "The sampler's record of this search (optuna.db) is gone, and with it the part on hyperparameters."
        )
    scores: Sequence[FinalScore] = ()
    manifest, model = None, None
    if result.champion is not None:
        model = Path(result.champion.model)
        try:
            scores = read_final_scores(folder / "scores.parquet")
        except ArtifactError as error:
            missing.append(f"No figure shows single pictures: {error}.")
        try:
            manifest = read_manifest(model)
        except ArtifactError as error:
            missing.append(f"The champion's model cannot be read: {error}.")
    pictures: dict[str, Picture] = {}
    try:
        dataset = Dataset.from_arrow(pyarrow.parquet.read_table(folder / "dataset.parquet"))
        pictures = {picture.sha256: picture for picture in dataset.pictures}
    except (OSError, pa.ArrowException, KeyError):
        missing.append("The list of the dataset's pictures (dataset.parquet) cannot be read.")
    return Material(result, request, study, tuple(scores), pictures, model, manifest, tuple(missing))


def _load_study(name: str, file: Path) -> optuna.Study | None:
    if not file.is_file():  # opening would make an empty one
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.load_study(study_name=name, storage=f"sqlite:///{file.absolute()}")
    except (KeyError, RuntimeError, optuna.exceptions.StorageInternalError):  # not in it; of another version; damaged
        return None
