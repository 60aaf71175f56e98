"""Comparing trials: by which evidence, and how surely.

**Evidence.** With no labelled defect a trial is judged by synthetic ones, all kinds alike. With many it is judged by
the labelled ones alone. Between, by both, weighted by how exact each is: the variance of an AUROC of ``k`` defects and
``n`` normals (Hanley, McNeil: The meaning and use of the area under a receiver operating characteristic (ROC) curve,
1982) falls with ``k``, while that of the synthetic AUROC, as an estimate of the true one, has a floor: the two differ
however many defects are drawn.

**Certainty.** Selection pictures are drawn again with replacement (stratified bootstrap), the same for all trials, so
that what makes a picture hard for all of them cancels out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoad.data import GOOD

__all__ = ["Comparison", "compare_trials", "drawn_per_kind", "labelled_weight", "many_labelled"]

_Array = npt.NDArray[np.float64]

_TYPICAL = 0.85
"""AUROC at which the two variances are compared."""

_DISCREPANCY = 0.15
"""Standard deviation by which the AUROC of synthetic defects misses that of real ones."""

_EQUAL = 1e-9
"""AUROCs that differ by less do so by rounding."""

_MANY = 0.8
"""Weight from which labelled defects are many."""

_DECIDED = 0.95
"""Weight from which labelled defects decide alone: what the synthetic ones could still say is not worth drawing them.

Not before: with 20 labelled defects and as many normals, a choice by both was better by .015 among hundreds of trials,
of which some look good by chance, and worse by .003 among few."""


def labelled_weight(defects: int, normals: int) -> float:
    """How much labelled defects count beside synthetic ones, from 0 to 1.

    Args:
        defects: labelled ones in the selection role.
        normals: good pictures there.
    """
    if not defects or not normals:
        return 0.0
    weight = _DISCREPANCY**2 / (_DISCREPANCY**2 + _auroc_variance(_TYPICAL, defects, normals))
    return 1.0 if weight >= _DECIDED else weight


def many_labelled(weight: float) -> bool:
    """Whether labelled defects of this weight are believed when they prefer a tuned trial to the default PatchCore.

    By fewer, and by synthetic ones, some of many trials only look good (regret benchmark).
    """
    return weight >= _MANY


def drawn_per_kind(weight: float) -> int:
    """How many synthetic defects of each kind are worth their time beside labelled ones of a weight.

    24 while they decide much: at an image AUROC of .9 a kind's is then known to about .06 and the mean over eight kinds
    to about .02, from fewer than 200 pictures, which are seconds of a backbone's time. 8 where labelled ones are many:
    choices among many trials were worse by .005 at most. None where those decide alone.
    """
    return 0 if weight == 1 else 8 if many_labelled(weight) else 24


def _auroc_variance(auroc: float, defects: int, normals: int) -> float:
    two_defects, two_normals = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    spread = (defects - 1) * (two_defects - auroc**2) + (normals - 1) * (two_normals - auroc**2)
    return (auroc * (1 - auroc) + spread) / (defects * normals)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How trials compare on the selection role.

    Attributes:
        quality: ``[T]`` image AUROC, blended as the evidence says; higher is better.
        best: the row of the highest.
        behind: ``[T]`` by how much each is worse than the best.
        error: ``[T]`` standard error of that difference.
        wins: ``[T]`` share of the bootstrap draws in which each is the best; equals share a draw.
    """

    quality: _Array
    best: int
    behind: _Array
    error: _Array
    wins: _Array

    @property
    def tied(self) -> npt.NDArray[np.bool_]:
        """``[T]`` whether a trial is worse than the best by no more than one standard error of the difference.

        The one-standard-error rule of Breiman, Friedman, Olshen, Stone: Classification and Regression Trees, 1984,
        with the error of the paired difference.
        """
        return self.behind <= self.error


def compare_trials(
    scores: npt.NDArray[np.floating],
    labels: Sequence[str],
    synthetic: npt.NDArray[np.bool_],
    weight: float,
    *,
    divisions: npt.NDArray[np.integer] | None = None,
    repeats: int = 500,
    seed: int = 0,
) -> Comparison:
    """Compare trials by their scores of the selection pictures.

    Where trials were fitted on several divisions of the good pictures, AUROCs are those within a division, and their
    mean counts.

    Args:
        scores: ``[T, N]`` raw scores, higher is more anomalous.
        labels: ``[N]`` of each picture: ``"good"``, a type of defect, or a kind of synthetic ones.
        synthetic: ``[N]`` which of them are synthetic.
        weight: of the labelled defects beside the synthetic ones (:func:`labelled_weight`).
        divisions: ``[N]`` number of the division that each score is of; the labelled defects are the same in all, in
            one order. None for one division.
        repeats: bootstrap draws.
        seed: of the draws.

    Raises:
        ValueError: normals are missing, or defects that count, or divisions have other numbers of labelled ones.
    """
    names = np.asarray(labels, dtype=np.str_)
    normal = (names == GOOD) & ~synthetic
    real = ~normal & ~synthetic
    kinds = sorted(set(names[synthetic].tolist())) if weight < 1 else []
    numbers = np.zeros(len(names), dtype=int) if divisions is None else np.asarray(divisions)
    rng = np.random.default_rng(seed)
    of_real: _Array | None = None
    total = np.zeros((len(scores), repeats + 1))
    within = [numbers == number for number in sorted(set(numbers.tolist()))]
    for here in within:
        groups = [(real & here, weight)] if weight else []
        groups += [(synthetic & here & (names == kind), (1 - weight) / len(kinds)) for kind in kinds]
        if not (normal & here).any() or not groups or not all(group.any() for group, _ in groups):
            raise ValueError("to compare trials there must be good and defective pictures")
        of_normals = _draw(int((normal & here).sum()), repeats, rng)
        for group, share in groups:
            of_defects = _draw(int(group.sum()), repeats, rng)
            if group[real].any():  # a labelled defect that is drawn counts in every division
                of_real = of_defects if of_real is None else of_real
                if of_real.shape != of_defects.shape:
                    raise ValueError("the labelled defects must be the same in all divisions")
                of_defects = of_real
            total += share / len(within) * _aurocs(scores[:, group], scores[:, normal & here], of_defects, of_normals)
    best = int(np.argmax(total[:, 0]))
    first = total[:, 1:] >= total[:, 1:].max(axis=0) - _EQUAL
    lead = total[best] - total
    return Comparison(
        quality=total[:, 0],
        best=best,
        behind=lead[:, 0],
        error=lead[:, 1:].std(axis=1),
        wins=(first / first.sum(axis=0)).mean(axis=1),
    )


def _draw(count: int, repeats: int, rng: np.random.Generator) -> _Array:
    """``[1 + repeats, count]`` share of each picture: as they are, then as they were drawn."""
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=repeats)
    return np.concatenate([np.ones((1, count)), drawn]) / count


def _aurocs(
    defective: npt.NDArray[np.floating], normal: npt.NDArray[np.floating], of_defects: _Array, of_normals: _Array
) -> _Array:
    """``[T, draws]``: the chance that a defective picture scores above a normal one, ties counted half."""
    found = []
    for high, low in zip(defective, normal, strict=True):
        above = (high[:, None] > low) + 0.5 * (high[:, None] == low)
        found.append(((of_defects @ above) * of_normals).sum(axis=1))
    return np.stack(found)
