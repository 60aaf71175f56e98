"""What becomes the champion: a clearly better ensemble, the default unless it is beaten, or the fastest of a tie."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from autoad.data import Picture
from autoad.evaluation import Comparison, compare_trials, many_labelled
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
) -> tuple[list[Candidate], list[Choice]]:
    """Order what may become the champion, the chosen one first.

    While labelled defects are few, the default PatchCore is chosen unless the best trial beats it by more than one
    standard error of the difference. Otherwise a trial that is worse than the best by no more than one, and by no more
    than .01, ties with it. Of those the fastest is chosen; of those about as fast as it, the best. But an ensemble of
    the best trials of two or three algorithms comes first where it beats the best trial by more than one standard
    error.

    Args:
        rows: of the search, best first.
        selection: pictures that ranked them, as all trials were given them.
        kept: their scores.
        objective: metric that ranked them.
        weight: of labelled defects beside synthetic ones.
        limits: trials beyond them are left out.
        seed: of the bootstrap.
        ensemble_seconds: that fitting an ensemble's trials twice more may take, by what they took; None for any.
        judge_again: given an ensemble's trials, should one win, and those that are worse than the best by no more than
            one standard error, what they say of other divisions of the good pictures; those that all of them have
            scores of then go on alone.

    Returns:
        Candidates in the order in which they should be tried as champions, an ensemble before all trials if one won,
        and why the first of either was chosen; where trials were ranked by another metric than image AUROC they are as
        they were, and nothing was chosen.
    """
    finished = [
        row
        for row in rows
        if row.status == "complete" and not limits.refusal(latency_ms=row.latency_ms, memory_mb=row.model_mb)
    ]
    alone = [Candidate((row,)) for row in finished]
    if objective != "image_auroc" or not finished:
        return alone, []
    compared = [row.trial for place, row in enumerate(finished) if place < _MOST_COMPARED or _is_default(row)]
    scores = kept.read(compared, len(selection))
    if finished[0].trial not in scores:
        return alone, []
    known = tuple(row for row in finished if row.trial in scores)
    field = _Field(known, (Division(tuple(selection), scores),), weight, seed)
    found = field.compare()
    joined = _ensemble(field, found, limits, ensemble_seconds)
    if judge_again is not None:
        members = () if joined is None else joined[0].rows
        close = [row for row in field.best_first(found, tied=True) if row not in members]
        close.sort(key=lambda row: not _is_default(row))
        others = judge_again([*members, *close]) if len(members) + len(close) > 1 else []
        again = tuple(row for row in (*members, *close) if all(row.trial in other.scores for other in others))
        if others and len(again) > 1:
            field = _Field(again, (*field.divisions, *others), weight, seed)
            found = field.compare()
            joined = _ensemble(field, found, limits, ensemble_seconds)
    choice = _single(field, found)
    order = sorted(alone, key=lambda one: one.trial != choice.trial)
    return ([joined[0], *order], [joined[1], choice]) if joined is not None else (order, [choice])


@dataclasses.dataclass(frozen=True)
class _Field:
    """Trials that are compared by what they say of the same pictures."""

    rows: tuple[TrialRow, ...]
    divisions: tuple[Division, ...]
    weight: float
    seed: int

    def compare(self, beside: npt.NDArray[np.floating] | None = None) -> Comparison:
        """Compare them, and after them scores ``[N]`` of what is no trial; pictures are drawn alike each time."""
        pictures = [picture for division in self.divisions for picture in division.selection]
        scores = [np.concatenate([division.scores[row.trial] for division in self.divisions]) for row in self.rows]
        return compare_trials(
            np.stack(scores if beside is None else [*scores, beside]),
            [picture.label for picture in pictures],
            np.array([picture.synthetic for picture in pictures]),
            self.weight,
            divisions=np.repeat(
                np.arange(len(self.divisions)), [len(division.selection) for division in self.divisions]
            ),
            seed=self.seed,
        )

    def best_first(self, found: Comparison, *, tied: bool = False) -> list[TrialRow]:
        """The trials by their quality; with ``tied`` only those within one standard error of the best."""
        order = np.argsort(-found.quality, kind="stable")
        return [self.rows[place] for place in order if found.tied[place] or not tied]

    def join(self, candidate: Candidate) -> npt.NDArray[np.float64] | None:
        """``[N]`` scores of an ensemble, standardised within each division; None if they cannot be."""
        parts = [
            join_scores(
                [division.scores[trial] for trial in candidate.trials],
                np.array([picture.is_normal for picture in division.selection]),
            )
            for division in self.divisions
        ]
        whole = [part for part in parts if part is not None]
        return np.concatenate(whole) if len(whole) == len(parts) else None


def _single(field: _Field, found: Comparison) -> Choice:
    """The trial to be chosen."""
    rows = field.rows
    tied = [place for place in range(len(rows)) if found.tied[place] and found.behind[place] <= _AS_GOOD]
    default = None
    if not many_labelled(field.weight):
        default = next((place for place, row in enumerate(rows) if found.tied[place] and _is_default(row)), None)
    if default is not None:
        chosen = default
    else:
        fastest = min(_cost(rows[place]) for place in tied)
        as_fast = [place for place in tied if _cost(rows[place]) <= _AS_FAST * fastest]
        chosen = max(as_fast, key=lambda place: (found.quality[place], -place))
    algorithm = rows[chosen].algorithm
    return Choice(
        trial=rows[chosen].trial,
        labelled_weight=field.weight,
        best=rows[found.best].trial,
        behind=float(found.behind[chosen]),
        error=float(found.error[chosen]),
        tied=[rows[place].trial for place in tied],
        wins=float(found.wins[chosen]),
        algorithm_wins=float(sum(found.wins[place] for place, row in enumerate(rows) if row.algorithm == algorithm)),
        divisions=len(field.divisions),
        kept_default=chosen == default and chosen != found.best,
    )


def _is_default(row: TrialRow) -> bool:
    """Whether it is the first trial of PatchCore: what one would take without a search."""
    return row.algorithm == "patchcore" and row.origin == "default"


def _ensemble(
    field: _Field, found: Comparison, limits: Limits, seconds: float | None
) -> tuple[Candidate, Choice] | None:
    """The best of the ensembles that are better than the best trial by more than one standard error."""
    best = field.rows[found.best]
    won: tuple[float, Candidate, Choice] | None = None
    for candidate in top_trials(field.best_first(found)):
        refusal = limits.refusal(latency_ms=candidate.latency_ms, memory_mb=candidate.model_mb)
        joined = field.join(candidate)
        if refusal or joined is None or (seconds is not None and 2 * candidate.fit_seconds > seconds):
            continue
        pair = dataclasses.replace(field, rows=(best,)).compare(joined)
        quality, ahead, error = float(pair.quality[1]), float(pair.behind[0]), float(pair.error[0])
        if ahead <= error or (won is not None and quality <= won[0]):
            continue
        wins = float(field.compare(joined).wins[-1])
        choice = Choice(
            trial=candidate.trial,
            labelled_weight=field.weight,
            best=best.trial,
            behind=-ahead,
            error=error,
            tied=[],
            wins=wins,
            algorithm_wins=wins,
            divisions=len(field.divisions),
            members=list(candidate.trials),
        )
        won = quality, candidate, choice
    return won and won[1:]


def _cost(row: TrialRow) -> float:
    """Milliseconds of a picture; where nothing is timed, MiB of what was learnt."""
    cost = row.model_mb if row.latency_ms is None else row.latency_ms
    return float("inf") if cost is None else cost
