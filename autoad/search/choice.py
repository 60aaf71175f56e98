"""What becomes the champion: of the trials that tie with the best, the fastest; or a clearly better ensemble."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from autoad.data import Picture
from autoad.evaluation import Comparison, compare_trials
from autoad.schema import Choice, Objective, TrialRow
from autoad.search.candidate import Candidate
from autoad.search.ensemble import join_scores, top_trials
from autoad.search.finalists import Division
from autoad.search.selection_scores import SelectionScores

__all__ = ["Limits", "choose_trial"]

_AS_FAST = 1.2
"""Times that differ by less are taken for equal: that is how far two measurements of one trial lie apart."""

_AS_GOOD = 0.01
"""Image AUROC by which a faster trial may be worse, though chance alone may explain more: with few pictures it explains
so much that speed would decide between a good algorithm and a useless one."""

_MOST_COMPARED = 200


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the champion may cost, on the machine that searches; None for any.

    A trial is left out by its own latency (from pixels, on one thread) and by the size of what it learnt; the finished
    model is measured again, in a process of its own.

    Attributes:
        latency_ms: median time of one picture, in the end with decoding.
        memory_mb: in the end the largest resident memory of a process that loads the model and scores.
    """

    latency_ms: float | None = None
    memory_mb: float | None = None

    def __str__(self) -> str:
        """As options of the command line."""
        options = (("--max-latency-ms", self.latency_ms), ("--max-memory-mb", self.memory_mb))
        return " and ".join(f"{name} {value:g}" for name, value in options if value is not None)

    def refusal(self, *, latency_ms: float | None, memory_mb: float | None) -> str | None:
        """What exceeds a limit, in words; None if nothing does. What is not known exceeds none."""
        if self.latency_ms is not None and latency_ms is not None and latency_ms > self.latency_ms:
            return f"takes {latency_ms:.1f} ms a picture, which is more than --max-latency-ms {self.latency_ms:g}"
        if self.memory_mb is not None and memory_mb is not None and memory_mb > self.memory_mb:
            return f"takes {memory_mb:.0f} MB, which is more than --max-memory-mb {self.memory_mb:g}"
        return None


def choose_trial(
    rows: Sequence[TrialRow],
    selection: Sequence[Picture],
    kept: SelectionScores,
    objective: Objective,
    weight: float,
    limits: Limits,
    *,
    seed: int,
    ensemble_seconds: float | None = None,
    judge_again: Callable[[Sequence[TrialRow]], Sequence[Division]] | None = None,
) -> tuple[list[Candidate], Choice | None]:
    """Order what may become the champion, the chosen one first.

    A trial that is worse than the best by no more than one standard error of the difference, and by no more than .01,
    ties with it. Of those the fastest is chosen; of those about as fast as it, the best. But an ensemble of the best
    trials of two or three algorithms is chosen where it is better than the best trial by more than one standard error.

    Args:
        rows: of the search, best first.
        selection: pictures that ranked them, as all trials were given them.
        kept: their scores.
        objective: metric that ranked them.
        weight: of labelled defects beside synthetic ones.
        limits: trials beyond them are left out.
        seed: of the bootstrap.
        ensemble_seconds: that fitting an ensemble's trials twice more may take, by what they took; None for any.
        judge_again: given the trials that are worse than the best by no more than one standard error, best first, what
            they say of other divisions of the good pictures; those that all of them have scores of then go on alone.

    Returns:
        The finished trials in the order in which they should be tried as champions, an ensemble before them if it was
        chosen, and why the first is; None where trials were ranked by another metric than image AUROC, and then they
        are as they were.
    """
    finished = [
        row
        for row in rows
        if row.status == "complete" and not limits.refusal(latency_ms=row.latency_ms, memory_mb=row.model_mb)
    ]
    alone = [Candidate((row,)) for row in finished]
    if objective != "image_auroc" or not finished:
        return alone, None
    scores = kept.read((row.trial for row in finished[:_MOST_COMPARED]), len(selection))
    compared = [row for row in finished if row.trial in scores]
    if finished[0].trial not in scores:
        return alone, None
    divisions = [Division(tuple(selection), scores)]
    found = _compare(compared, divisions, weight, seed)
    close = [compared[place] for place in np.argsort(-found.quality, kind="stable") if found.tied[place]]
    if judge_again is not None and len(close) > 1 and (others := judge_again(close)):
        finalists = [row for row in close if all(row.trial in other.scores for other in others)]
        if len(finalists) > 1:
            compared, divisions = finalists, [*divisions, *others]
            found = _compare(compared, divisions, weight, seed)
    joined = _ensemble(compared, divisions, found, limits, ensemble_seconds, weight, seed)
    if joined is not None:
        return [joined[0], *alone], joined[1]
    tied = [place for place in range(len(compared)) if found.tied[place] and found.behind[place] <= _AS_GOOD]
    fastest = min(_cost(compared[place]) for place in tied)
    as_fast = [place for place in tied if _cost(compared[place]) <= _AS_FAST * fastest]
    chosen = max(as_fast, key=lambda place: (found.quality[place], -place))
    row = compared[chosen]
    choice = Choice(
        trial=row.trial,
        labelled_weight=weight,
        best=compared[found.best].trial,
        behind=float(found.behind[chosen]),
        error=float(found.error[chosen]),
        tied=[compared[place].trial for place in tied],
        wins=float(found.wins[chosen]),
        algorithm_wins=float(sum(found.wins[i] for i, one in enumerate(compared) if one.algorithm == row.algorithm)),
        divisions=len(divisions),
    )
    chosen_first = sorted(alone, key=lambda one: one.trial != row.trial)
    return chosen_first, choice


def _ensemble(
    rows: Sequence[TrialRow],
    divisions: Sequence[Division],
    found: Comparison,
    limits: Limits,
    seconds: float | None,
    weight: float,
    seed: int,
) -> tuple[Candidate, Choice] | None:
    """The ensemble that is better than the best trial by more than one standard error, if there is one."""
    best_first = [rows[place] for place in np.argsort(-found.quality, kind="stable")]
    considered: list[Candidate] = []
    scores: list[npt.NDArray[np.floating]] = []
    for candidate in top_trials(best_first):
        parts = [
            join_scores(
                [division.scores[trial] for trial in candidate.trials],
                np.array([picture.is_normal for picture in division.selection]),
            )
            for division in divisions
        ]
        whole = [part for part in parts if part is not None]
        costly = limits.refusal(latency_ms=candidate.latency_ms, memory_mb=candidate.model_mb) is not None
        if seconds is not None:
            costly |= 2 * candidate.fit_seconds > seconds
        if not costly and len(whole) == len(parts):
            considered.append(candidate)
            scores.append(np.concatenate(whole))
    if not considered:
        return None
    both = _compare(rows, divisions, weight, seed, beside=scores)
    place = both.best - len(rows)
    if place < 0 or both.behind[found.best] <= both.error[found.best]:
        return None
    candidate = considered[place]
    choice = Choice(
        trial=candidate.trial,
        labelled_weight=weight,
        best=rows[found.best].trial,
        behind=-float(both.behind[found.best]),
        error=float(both.error[found.best]),
        tied=[],
        wins=float(both.wins[both.best]),
        algorithm_wins=float(both.wins[both.best]),
        divisions=len(divisions),
        members=list(candidate.trials),
    )
    return candidate, choice


def _compare(
    rows: Sequence[TrialRow],
    divisions: Sequence[Division],
    weight: float,
    seed: int,
    *,
    beside: Sequence[npt.NDArray[np.floating]] = (),
) -> Comparison:
    """Compare trials, and scores of what is no trial after them."""
    pictures = [picture for division in divisions for picture in division.selection]
    of_rows = [np.concatenate([division.scores[row.trial] for division in divisions]) for row in rows]
    return compare_trials(
        np.stack([*of_rows, *beside]),
        [picture.label for picture in pictures],
        np.array([picture.synthetic for picture in pictures]),
        weight,
        divisions=np.repeat(np.arange(len(divisions)), [len(division.selection) for division in divisions]),
        seed=seed,
    )


def _cost(row: TrialRow) -> float:
    """Milliseconds of a picture; where nothing is timed, MiB of what was learnt."""
    cost = row.model_mb if row.latency_ms is None else row.latency_ms
    return float("inf") if cost is None else cost
