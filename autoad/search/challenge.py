"""The new champion against the version that serves, on the new dataset's test pictures.

Only pictures count that neither has seen: those that the serving version was fitted, selected or calibrated on would
speak for it. They are known from the record that its search left (``roles.json``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autoad.data import Picture
from autoad.errors import ArtifactError
from autoad.evaluation import paired_difference
from autoad.models import Model
from autoad.models.registry import Registry
from autoad.schema import Difference, PromotionVerdict
from autoad.search.final_scores import read_final_scores
from autoad.settings import Settings

__all__ = ["challenge"]


def challenge(
    registry: Registry,
    settings: Settings,
    name: str,
    version: int,
    *,
    search: str,
    test: Sequence[Picture],
    seed: int,
    threads: int | None = None,
) -> PromotionVerdict:
    """Whether a search's champion is better than the version that serves, by more than chance.

    Args:
        registry: with both.
        settings: where searches have left their records.
        name: of the model.
        version: that the search has made.
        search: id of the search.
        test: its dataset's test role.
        seed: of the bootstrap.
        threads: CPU threads; None for all.

    Returns:
        ``pending`` if it is to be promoted, ``kept`` if not, with figures where there are any.

    Raises:
        ArtifactError: one of the two cannot be loaded here.
    """
    serving = registry.model(name).route.champion
    if serving is None:
        return PromotionVerdict(state="pending", reason=f"no version of {name!r} serves yet")
    if serving == version:
        return PromotionVerdict(state="pending", reason="it serves already")
    seen = _seen_by(registry, settings, name, serving)
    pictures = [picture for picture in test if seen is None or picture.sha256 not in seen]
    about = _explain(serving, left_out=None if seen is None else len(test) - len(pictures))
    labels = np.array([not picture.is_normal for picture in pictures], dtype=bool)
    if labels.all() or not labels.any():
        reason = f"to be compared there must be good and defective test pictures, but there are {_amounts(labels)}"
        return _kept(f"{reason}; {about}", serving, len(pictures))
    new = _scores(registry, settings, name, version, search, pictures, threads)
    old = _score(registry.open(name, serving), pictures, threads)
    compared = paired_difference(new, old, labels, seed=seed)
    if compared is None:
        raise AssertionError("there are pictures of both classes")
    value, low, high = compared
    better = low > 0
    return PromotionVerdict(
        state="pending" if better else "kept",
        reason=f"{'better' if better else 'not better by more than chance'}: {value:+.4f} image AUROC (95 % interval "
        f"{low:+.4f} to {high:+.4f}) against version {serving} on {_amounts(labels)} test pictures; {about}",
        compared_with=serving,
        pictures=len(pictures),
        difference=Difference(image_auroc=value, low=low, high=high),
    )


def _seen_by(registry: Registry, settings: Settings, name: str, version: int) -> frozenset[str] | None:
    """The sha256 of pictures that a version was fitted, selected or calibrated on; None if that is not known."""
    source = registry.resolve(f"{name}/{version}").search
    if source is None:
        return None
    try:
        roles = json.loads((settings.searches_dir / source / "roles.json").read_text())["role_of"]
    except (OSError, ValueError, KeyError):
        return None
    return frozenset(sha256 for sha256, role in roles.items() if role != "test")


def _scores(
    registry: Registry,
    settings: Settings,
    name: str,
    version: int,
    search: str,
    pictures: Sequence[Picture],
    threads: int | None,
) -> list[float]:
    """The new version's scores, from what the search has kept of its test if that is still there."""
    try:
        kept = read_final_scores(settings.searches_dir / search / "scores.parquet")
        known = {row.sha256: row.score for row in kept if (row.model, row.role) == ("champion", "test")}
        return [known[picture.sha256] for picture in pictures]
    except (ArtifactError, KeyError):
        return _score(registry.open(name, version), pictures, threads)


def _score(folder: Path, pictures: Sequence[Picture], threads: int | None) -> list[float]:
    model = Model.load(folder, threads=threads)
    return [answer.score for answer in model.score_many(picture.read() for picture in pictures)]


def _kept(reason: str, serving: int, pictures: int) -> PromotionVerdict:
    return PromotionVerdict(state="kept", reason=reason, compared_with=serving, pictures=pictures)


def _explain(serving: int, *, left_out: int | None) -> str:
    if left_out is None:
        return f"which of them version {serving} was made with could not be known"
    return f"{left_out} that version {serving} was made with were left out"


def _amounts(labels: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> str:
    return f"{int((~labels).sum())} good and {int(labels.sum())} defective"
