"""Pictures of what the champion found, missed and flagged by mistake."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from autoad.data import Picture, decode_image, load_mask
from autoad.errors import AutoADError, UnreadableImageError
from autoad.models import Calibration, Model, draw_heatmap
from autoad.report._html import data_address, reduced
from autoad.report.material import Material
from autoad.search.final_scores import FinalScore
from autoad.search.public import without_paths

__all__ = ["Card", "Group", "gallery"]

_MOST = 12
_LONGEST_SIDE = 320
_OUTLINE = np.array([0, 229, 255], dtype=np.uint8)


@dataclasses.dataclass(frozen=True)
class Card:
    """One picture.

    Attributes:
        name: of the file.
        picture: data address of the picture, reduced.
        heatmap: data address of the same under the anomaly map; None without a map.
        has_outline: whether the heatmap (or the picture, where there is none) shows the outline of the labelled mask.
    """

    name: str
    label: str
    score: float
    picture: str
    heatmap: str | None
    has_outline: bool


@dataclasses.dataclass(frozen=True)
class Group:
    """Cards of one sort.

    Attributes:
        total: how many such pictures the test has; ``cards`` holds at most a dozen.
        unreadable: how many of those chosen are gone or changed since.
    """

    name: str
    title: str
    explanation: str
    total: int
    cards: list[Card]
    unreadable: int


def gallery(material: Material) -> tuple[list[Group], str | None]:
    """Found defects (of every type in turns), missed ones (lowest score first) and false alarms (highest first).

    The chosen pictures are scored once more for their maps; everything else comes from the stored scores.

    Returns:
        The groups, and why there are no heatmaps if the model cannot be run here.
    """
    tested = material.scores_of("champion", "test")
    if not tested or material.model is None:
        return [], None
    model, problem = None, None
    try:
        model = Model.load(material.model)
    except AutoADError as error:
        reason = without_paths(str(error)) if material.is_public else error
        problem = f"The heatmaps are missing, for the model cannot be run here: {reason}."
    found = [score for score in tested if score.label != "good" and score.is_anomalous]
    missed = [score for score in tested if score.label != "good" and not score.is_anomalous]
    alarms = [score for score in tested if score.label == "good" and score.is_anomalous]
    groups = [
        ("missed", "Missed defects", "Defective, but below the threshold; the lowest scores first.", _by_score(missed)),
        ("alarms", "False alarms", "Good, but above the threshold; the highest scores first.", _by_score(alarms)[::-1]),
        ("found", "Found defects", "Defective and above the threshold; each type of defect in turns.", _turns(found)),
    ]
    shown = []
    for name, title, explanation, scores in groups:
        cards = [card for score in scores[:_MOST] if (card := _card(score, material.pictures, model)) is not None]
        unreadable = min(len(scores), _MOST) - len(cards)
        shown.append(Group(name, title, explanation, len(scores), cards, unreadable))
    return shown, problem


def _by_score(scores: Sequence[FinalScore]) -> list[FinalScore]:
    return sorted(scores, key=lambda score: (score.score, score.sha256))


def _turns(scores: Sequence[FinalScore]) -> list[FinalScore]:
    """One picture of each label, then a second of each, and so on, the nearest to the threshold last."""
    by_label: dict[str, list[FinalScore]] = defaultdict(list)
    for score in reversed(_by_score(scores)):
        by_label[score.label].append(score)
    places = {score.sha256: place for its in by_label.values() for place, score in enumerate(its)}
    return sorted(scores, key=lambda score: (places[score.sha256], score.label))


def _card(score: FinalScore, pictures: dict[str, Picture], model: Model | None) -> Card | None:
    """The card of one picture; None if its file is gone or holds other bytes than were scored."""
    try:
        data = Path(score.path).read_bytes()
        if hashlib.sha256(data).hexdigest() != score.sha256:
            return None
        image = decode_image(data)
    except (OSError, UnreadableImageError):
        return None
    small = reduced(image, _LONGEST_SIDE)
    picture = pictures.get(score.sha256)
    mask = _mask(picture, small.shape[:2])
    drawn, overlay = small, None
    if model is not None:
        anomaly_map = model.predict([image])[0][1]
        if anomaly_map is not None:
            drawn = np.asarray(draw_heatmap(small, anomaly_map, _calibration(model)))
    outlined = drawn if mask is None else _outlined(drawn, mask)
    if drawn is not small or mask is not None:
        overlay = data_address(outlined)
    return Card(
        name=Path(score.path).name,
        label=score.label,
        score=score.score,
        picture=data_address(small),
        heatmap=overlay,
        has_outline=mask is not None,
    )


def _calibration(model: Model) -> Calibration:
    assert model.manifest.calibration is not None  # noqa: S101 - a champion is calibrated before it is published
    return model.manifest.calibration


def _mask(picture: Picture | None, size: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
    if picture is None or picture.mask is None:
        return None
    try:
        mask = load_mask(picture, size)
    except (OSError, AutoADError):
        return None
    return mask if mask is not None and mask.any() else None


def _outlined(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """A bright line around the mask with a dark one around that, to be seen on any ground."""
    near = ndimage.binary_dilation(mask, iterations=2)
    line = near & ~mask
    rim = ndimage.binary_dilation(near) & ~near
    drawn = image.copy()
    drawn[rim] = 0
    drawn[line] = _OUTLINE
    return drawn
