"""Scoring files with a model: by its folder, its address, or the search that made it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoad.data import decode_image
from autoad.data.heatmaps import heatmap_files, save_heatmap
from autoad.database import Database, Search
from autoad.errors import ArtifactError, UnknownNameError, UnreadableImageError, UsageError
from autoad.models import MODELS, Model, draw_heatmap
from autoad.models.registry import Registry
from autoad.schema import ScoredPicture, SearchResult

__all__ = ["find_model", "score_pictures"]


def find_model(name: str) -> Path:
    """The folder of a model on this machine.

    Args:
        name: its folder; the address of a version (``bottle/3``, ``bottle@champion``, ``models:/bottle/3``); a model's
            name, for its champion or else its newest version; or the name or id of a search, for what that made. What
            comes first counts.

    Raises:
        UsageError: there is none of these.
        ArtifactError: the search has no champion, or the version's files are missing or damaged.
    """
    folder = Path(name)
    if (folder / "manifest.json").is_file():
        return folder
    database = Database()
    try:
        registry = Registry(database)
        try:
            version = registry.resolve(name)
        except UsageError as error:
            if name.startswith(MODELS):
                raise
            unresolved = error
        else:
            return registry.open(version.name, version.version)
        try:
            search = database.find_search(name)
        except UsageError as error:
            if folder.is_dir():
                return folder
            raise UsageError(
                f"{name!r} must be the folder of a saved model, a model or a version of one, or a search, but it is no "
                f"folder; {str(unresolved).rstrip('.')}; and {error}"
            ) from error
        return _of_search(search, registry)
    finally:
        database.close()


def _of_search(search: Search, registry: Registry) -> Path:
    champion = SearchResult.model_validate(search.summary | {"status": search.status}).champion
    if champion is None:
        raise ArtifactError(f"the search {search.name!r} has no champion (it is {search.status})")
    if champion.name is None or champion.version is None:
        return Path(champion.model)
    try:
        return registry.open(champion.name, champion.version)
    except UnknownNameError as error:
        raise ArtifactError(
            f"the search {search.name!r} made {champion.address}, which has been deleted; score with another version"
        ) from error


def score_pictures(
    model_name: str, pictures: Sequence[Path], heatmaps: Path | None
) -> tuple[list[ScoredPicture], list[str]]:
    """Score picture files.

    Args:
        model_name: as :func:`find_model` takes it.
        pictures: files.
        heatmaps: folder for heatmap files; None for none.

    Returns:
        The scored pictures in order, and a line for each file that could not be read.

    Raises:
        UsageError: no such model, or the heatmaps cannot be written.
        ArtifactError: the model is damaged or cannot run here.
    """
    folder = find_model(model_name)
    model = Model.load(folder)
    scored, unreadable = [], []
    targets = heatmap_files(pictures, heatmaps) if heatmaps is not None else {}
    for path in pictures:
        try:
            data = path.read_bytes()
            result = model.score(data)
        except OSError as error:
            unreadable.append(f"{path}: cannot be read ({error.strerror})")
            continue
        except UnreadableImageError as error:
            unreadable.append(f"{path}: {error}")
            continue
        heatmap = None
        if path in targets and result.anomaly_map is not None:
            heatmap = _write_heatmap(model, data, result.anomaly_map, targets[path])
        scored.append(
            ScoredPicture(
                picture=str(path),
                model=str(folder),
                score=result.score,
                normalized_score=result.normalized_score,
                is_anomalous=result.is_anomalous,
                regions=result.regions,
                heatmap=heatmap,
            )
        )
    return scored, unreadable


def _write_heatmap(model: Model, data: bytes, anomaly_map: npt.NDArray[np.float32], target: Path) -> str:
    calibration = model.manifest.calibration
    if calibration is None:
        raise ArtifactError(f"the model {model.name!r} was never calibrated")
    return save_heatmap(draw_heatmap(decode_image(data), anomaly_map, calibration), target)
