"""Comparing configurations that one fit serves.

Some hyperparameters are read only when a detector predicts (the blur of a map, the neighbours of a memory bank), and a
memory bank holds every smaller one. Such values need no trial of their own: after the fit, the costly part of scoring
runs once, and each combination of values adds only what is cheap.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from autoad.algorithms import Detector, Inputs, Prediction, upsample
from autoad.data import Picture, load_mask
from autoad.errors import TrialError
from autoad.evaluation import compute_metrics, image_metrics
from autoad.schema import Metrics, Objective

__all__ = ["EVALUATION_SIZE", "Judge", "Verdict", "evaluation_maps", "objective_value"]

EVALUATION_SIZE = (256, 256)
"""Height and width at which maps are compared with masks, whatever size a detector works at."""

_PIXEL_OBJECTIVES = ("pixel_auroc", "aupro")


def evaluation_maps(prediction: Prediction) -> npt.NDArray[np.float32] | None:
    """The prediction's maps at :data:`EVALUATION_SIZE`; None if there are none."""
    if prediction.maps is None:
        return None
    maps = prediction.maps.float().cpu()
    if tuple(maps.shape[-2:]) != EVALUATION_SIZE:
        maps = upsample(maps, EVALUATION_SIZE)
    return maps.numpy()


def objective_value(validation: Metrics, by_kind: dict[str, float], objective: Objective, weight: float) -> float:
    """What the sampler maximises.

    For image AUROC the mean over kinds of synthetic defects takes the place of what labelled ones lack in weight, so
    that no kind decides by its number of pictures.

    Raises:
        TrialError: the objective cannot be computed for this trial.
    """
    drawn = statistics.fmean(by_kind.values()) if objective == "image_auroc" and by_kind else None
    if drawn is not None and not weight:
        return drawn
    value: float | None = getattr(validation, objective)
    if value is None:
        raise TrialError(f"the objective {objective} could not be computed (no map, or no masks to compare it with)")
    return value if drawn is None else weight * value + (1 - weight) * drawn


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How well a fitted detector does on the selection role, with the best of the values that were swept.

    Attributes:
        detector: reconfigured to them.
        swept: the chosen value of each swept parameter.
        variants: how many combinations were compared.
        exact: whether the pixel metrics are exact.
        scores: ``[N]`` raw scores of the selection pictures.
    """

    detector: Detector
    swept: dict[str, Any]
    variants: int
    objective: float
    validation: Metrics
    by_kind: dict[str, float]
    exact: bool
    scores: npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class _Variant:
    """One combination of swept values, and the configuration that it makes."""

    values: dict[str, Any]
    config: Any


@dataclasses.dataclass(frozen=True)
class _Measured:
    """A variant and its metrics; ``maps`` are at :data:`EVALUATION_SIZE`."""

    variant: _Variant
    objective: float
    validation: Metrics
    by_kind: dict[str, float]
    scores: npt.NDArray[np.float32]
    maps: npt.NDArray[np.float32] | None

    @property
    def rank(self) -> tuple[float, float]:
        """Greater is better: the objective, then AUPRO."""
        aupro = self.validation.aupro
        return self.objective, -1.0 if aupro is None else aupro


class Judge:
    """Measures detectors on the selection pictures.

    Args:
        selection: the pictures; their masks are read once.
        objective: what the best variant is chosen by.
        weight: of labelled defects beside synthetic ones, from 0 to 1; metrics are of the former where they count.
    """

    def __init__(self, selection: Sequence[Picture], objective: Objective, *, weight: float) -> None:
        self._objective = objective
        self._weight = weight
        self._kinds = np.array([picture.label if picture.synthetic else "" for picture in selection])
        self._normal = np.array([picture.is_normal for picture in selection])
        measured = [row for row, picture in enumerate(selection) if not (weight and picture.synthetic)]
        self._measured = slice(None) if len(measured) == len(selection) else measured  # a list of rows copies the maps
        self._labels = ~self._normal[measured]
        self._masks = [load_mask(selection[row], EVALUATION_SIZE) for row in measured]
        self._has_masks = any(mask is not None and mask.any() for mask in self._masks)

    def judge(
        self, detector: Detector, selection: Inputs, sweep: Mapping[str, Sequence[Any]], *, exact_above: float
    ) -> Verdict:
        """Compare all combinations of swept values; the best by the objective, then by AUPRO, then the earliest.

        Metrics of maps are computed only for what can still win: where the objective is one of image scores, for the
        combinations that share its best value, once for each different map.

        Args:
            detector: fitted, with the greatest value of each swept parameter that it is ``reducible`` in.
            selection: what it is given of the selection pictures.
            sweep: by parameter, the values to compare: the detector's own first, then those ever farther from it.
            exact_above: objective from which pixel metrics are computed exactly.

        Raises:
            TrialError: a score is not finite, or the objective cannot be computed.
        """
        variants = _combine(detector.config, sweep)
        measured = detector.measure(selection, [variant.config for variant in variants])
        effects = dict(detector.post_fit) | dict.fromkeys(detector.reducible, "both")

        def distinct(chosen: list[_Variant], what: str) -> dict[tuple[Any, ...], list[_Variant]]:
            """Variants whose ``what`` (scores or maps) are the same."""
            groups: dict[tuple[Any, ...], list[_Variant]] = {}
            for variant in chosen:
                key = tuple(value for name, value in variant.values.items() if effects[name] in (what, "both"))
                groups.setdefault(key, []).append(variant)
            return groups

        candidates = variants
        if len(variants) > 1 and self._objective not in _PIXEL_OBJECTIVES:
            by_scores = [
                (self._measure(group[0], detector.finish(measured, group[0].config, maps=False)).objective, group)
                for group in distinct(variants, "scores").values()
            ]
            best = max(objective for objective, _ in by_scores)
            winners = {id(variant) for objective, group in by_scores if objective == best for variant in group}
            candidates = [variant for variant in variants if id(variant) in winners]
        leaders = [group[0] for group in distinct(candidates, "maps").values()]
        chosen: _Measured | None = None
        for variant in leaders if self._has_masks else leaders[:1]:
            found = self._measure(variant, detector.finish(measured, variant.config))
            if chosen is None or found.rank > chosen.rank:
                chosen = found
        assert chosen is not None  # noqa: S101 - there is at least the detector's own configuration
        validation = chosen.validation
        exact = chosen.objective >= exact_above and validation.aupro is not None
        if exact:
            validation = self.metrics(chosen.scores, chosen.maps, exact=True)
        return Verdict(
            detector=detector.reconfigured(**chosen.variant.values) if chosen.variant.values else detector,
            swept=chosen.variant.values,
            variants=len(variants),
            objective=objective_value(validation, chosen.by_kind, self._objective, self._weight),
            validation=validation,
            by_kind=chosen.by_kind,
            exact=exact,
            scores=chosen.scores,
        )

    def _measure(self, variant: _Variant, prediction: Prediction) -> _Measured:
        scores, maps = prediction.scores.numpy(), evaluation_maps(prediction)
        if not np.isfinite(scores).all():
            raise TrialError("the detector gave scores that are not finite")
        validation = self.metrics(scores, maps, exact=False)
        by_kind = self._by_kind(scores)
        objective = objective_value(validation, by_kind, self._objective, self._weight)
        return _Measured(variant, objective, validation, by_kind, scores, maps)

    def metrics(self, scores: npt.NDArray[np.float32], maps: npt.NDArray[np.float32] | None, *, exact: bool) -> Metrics:
        """Metrics of the selection pictures' scores ``[N]`` and maps ``[N, 256, 256]``.

        Args:
            scores: raw.
            maps: None for algorithms without maps.
            exact: whether pixel metrics are exact, or from a histogram.
        """
        rows = self._measured
        return compute_metrics(
            scores[rows], self._labels, None if maps is None else maps[rows], self._masks, exact=exact
        )

    def _by_kind(self, scores: npt.NDArray[np.float32]) -> dict[str, float]:
        """Image AUROC of each kind of synthetic defect against all normals."""
        result = {}
        for kind in sorted(set(self._kinds.tolist()) - {""}):
            chosen = (self._kinds == kind) | self._normal
            value = image_metrics(scores[chosen], ~self._normal[chosen]).image_auroc
            if value is not None:
                result[kind] = value
        return result


def _combine(config: Any, sweep: Mapping[str, Sequence[Any]]) -> list[_Variant]:
    """All combinations, the one with the first value of each first and then by how many steps they are away from it."""
    steps = itertools.product(*(range(len(values)) for values in sweep.values()))
    variants = []
    for combination in sorted(steps, key=lambda places: (sum(places), places)):
        values = {name: sweep[name][place] for name, place in zip(sweep, combination, strict=True)}
        variants.append(_Variant(values, dataclasses.replace(config, **values)))
    return variants
