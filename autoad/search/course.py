"""The course of a search, under its lease: trials, the choice among them, and the champion."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet

from autoad.algorithms import get_algorithm
from autoad.data import Picture, draw_defects
from autoad.database import Database
from autoad.errors import UsageError
from autoad.evaluation import drawn_per_kind
from autoad.features import FeatureStore
from autoad.models.registry import Registry
from autoad.schema import Champion, Choice, SearchResult
from autoad.search.aside import set_aside
from autoad.search.budget import TRIALS_SHARE, Budget
from autoad.search.candidate import Candidate
from autoad.search.champion import Finisher, RefitError
from autoad.search.choice import Limits, choose_trial
from autoad.search.cluster import LocalWorkers, Workers, join_ray, local_ray
from autoad.search.dispatch import Dispatcher
from autoad.search.finalists import Finalists
from autoad.search.jobs import SearchListener, Suggestion
from autoad.search.leaderboard import rank_trials
from autoad.search.lease import Lease
from autoad.search.memory import predict_memory
from autoad.search.place import offer_files
from autoad.search.plan import DETERMINISTIC_EPOCHS, DETERMINISTIC_TRIALS, Plan, SearchRequest, usable_name
from autoad.search.recovery import SCRATCH, outstanding
from autoad.search.selection_scores import SelectionScores
from autoad.search.space import load_spaces
from autoad.search.study import Proposer, study_storage
from autoad.search.trial import TrialTask
from autoad.search.tuning import run_trials
from autoad.search.warm_start import warm_start
from autoad.settings import Settings

_WORTH_A_WORD = 0.1
"""Share of the time that is left when a search that ends early says why."""

_ATTEMPTS = 5
"""Trials that may be fitted again until one keeps to the limits."""

_FINALISTS_SHARE = 0.07
"""Of a search's time, what trials that tie may be judged again for."""

_ENSEMBLE_SHARE = 1 / 3
"""Of the time that is left after the trials, what fitting those of an ensemble twice more may take."""

__all__ = ["carry_out"]


def carry_out(
    plan: Plan,
    summary: SearchResult,
    settings: Settings,
    database: Database,
    lease: Lease,
    listener: SearchListener,
) -> SearchResult:
    """Trials, then the champion, or as far as that gets before it is interrupted.

    Args:
        plan: what to search.
        summary: what is known of it.
        settings: where things are kept.
        database: with the search in it.
        lease: by which this process owns the search; it is closed with the result.
        listener: hears how it goes.

    Raises:
        AutoADError: the search had to stop.
    """
    search_id = summary.search_id
    folder = settings.searches_dir / search_id
    folder.mkdir(parents=True, exist_ok=True)
    plan, noted = set_aside(plan, folder, FeatureStore(settings.features_dir), threads=os.cpu_count() or 1)
    if noted is not None:
        listener.say(noted)
        summary = summary.model_copy(
            update={
                "notes": list(dict.fromkeys([*summary.notes, noted])),
                "dataset": summary.dataset.model_copy(update={"roles": plan.roles.counts()}),
            }
        )
    _store_dataset(plan, folder)
    warm = warm_start(plan, search_id, database, settings, threads=os.cpu_count() or 1)
    for note in warm.notes:
        listener.say(note)
    notes = list(dict.fromkeys([*summary.notes, *warm.notes]))
    first = [*_first_trials(plan), *warm.suggestions]
    selection = _selection(plan, folder, listener)
    interrupted = _run_trials(plan, first, selection, search_id, folder, settings, database, lease, listener)
    lease.check()
    rows = rank_trials(database.trials(search_id), plan.objective)
    champion: Champion | None = None
    choices: list[Choice] = []
    if not interrupted:
        finished, choices = choose_trial(
            rows,
            selection,
            SelectionScores(folder),
            plan.objective,
            plan.labelled_weight,
            plan.limits,
            seed=plan.request.seed,
            ensemble_seconds=_seconds_for_ensemble(plan.request, lease.spent),
            judge_again=Finalists(
                _task(plan, selection, settings),
                folder,
                _seconds_for_finalists(plan.request, lease.spent),
                os.cpu_count() or 1,
                listener.say,
            ).judge_again,
        )
        if not finished and any(row.status == "complete" for row in rows):
            notes.append(f"no finished trial keeps to {plan.limits}")
        try:
            champion = _champion(
                plan, finished, selection, summary, Registry(database, settings), settings, listener, notes
            )
        except KeyboardInterrupt:
            interrupted = True
    status: Literal["interrupted", "failed", "complete"]
    status = "interrupted" if interrupted else "failed" if champion is None else "complete"
    seconds = round(lease.spent, 1)
    # None where another had to take the chosen one's place, which the notes explain.
    choice = next((one for one in choices if champion is not None and one.trials == champion.trials), None)
    result = summary.model_copy(
        update={"status": status, "seconds": seconds, "notes": notes, "champion": champion, "choice": choice}
    )
    lease.close(result.status, result.model_dump(mode="json"))
    return result.model_copy(update={"leaderboard": rows})


@contextmanager
def _ray(plan: Plan) -> Iterator[Workers]:
    """The cluster that was asked for, or a Ray of our own."""
    cuda, alone = plan.engine.name == "cuda", plan.request.deterministic
    if plan.request.address:
        backbones = {name for space in plan.spaces.values() for name in space.backbones()}
        with join_ray(plan.request.address, backbones=sorted(backbones), cuda=cuda, alone=alone) as joined:
            yield joined
    else:
        local = LocalWorkers.here(cuda=cuda, alone=alone)
        with local_ray(local):
            yield local


def _task(plan: Plan, selection: Sequence[Picture], settings: Settings) -> TrialTask:
    request = plan.request
    limit = request.max_epochs or (DETERMINISTIC_EPOCHS if request.deterministic else None)
    epochs = {
        name: min(space.epochs, limit) if limit else space.epochs
        for name, space in plan.spaces.items()
        if space.epochs is not None
    }
    return TrialTask(
        train=plan.roles.train,
        selection=tuple(selection),
        labelled_weight=plan.labelled_weight,
        features_dir=settings.features_dir,
        engine=plan.engine,
        precision=plan.precision,
        objective=plan.objective,
        epochs=epochs,
        seed=request.seed,
        timed=not request.deterministic,
    )


def _budget(request: SearchRequest, spent: float) -> Budget:
    seconds = None if request.seconds is None else request.seconds * TRIALS_SHARE
    trials = request.trials
    if request.deterministic:
        seconds, trials = None, request.trials or DETERMINISTIC_TRIALS
    return Budget(trials, seconds, 1, request.patience, request.trial_timeout, before=spent)


def _seconds_for_finalists(request: SearchRequest, spent: float) -> float | None:
    """What judging trials again may take; None where the clock must decide nothing."""
    if request.deterministic:
        return None
    return _FINALISTS_SHARE * (spent if request.seconds is None else request.seconds)


def _seconds_for_ensemble(request: SearchRequest, spent: float) -> float | None:
    """What fitting the trials of an ensemble twice more may take; None where nobody asked for a time."""
    if request.deterministic or request.seconds is None:
        return None
    return _ENSEMBLE_SHARE * max(0.0, request.seconds - spent)


def _memory(task: TrialTask, algorithm: str, config: Mapping[str, Any]) -> int:
    """Bytes that a trial is expected to take; one that cannot be will say so itself."""
    try:
        return predict_memory(
            algorithm, config, train=len(task.train), selection=len(task.selection), runtime=task.runtime
        )
    except UsageError:
        return 0


def _first_trials(plan: Plan) -> list[Suggestion]:
    """The default of each algorithm, those that do not train before the others."""
    spaces = sorted(plan.spaces.values(), key=lambda space: get_algorithm(space.algorithm).iterative)
    return [Suggestion("default", space.algorithm, space.defaults()) for space in spaces]


def _selection(plan: Plan, folder: Path, listener: SearchListener) -> tuple[Picture, ...]:
    """The selection pictures, and synthetic defects on its normals while labelled ones do not decide alone."""
    selection = plan.roles.selection
    if plan.labelled_weight == 1:
        return selection
    normals = [picture for picture in selection if picture.is_normal]
    defects = len(selection) - len(normals)
    if defects:
        listener.say(
            f"labelled defects to select by: {defects}; drawing synthetic ones beside them, which count for "
            f"{1 - plan.labelled_weight:.0%} (evidence: both)"
        )
    else:
        listener.say("no labelled defect to select by: drawing synthetic ones (evidence: synthetic)")
    count = drawn_per_kind(plan.labelled_weight)
    return (*selection, *draw_defects(normals, folder / "synthetic", per_kind=count, seed=plan.request.seed))


def _run_trials(
    plan: Plan,
    first: Sequence[Suggestion],
    selection: Sequence[Picture],
    search_id: str,
    folder: Path,
    settings: Settings,
    database: Database,
    lease: Lease,
    listener: SearchListener,
) -> bool:
    """Run the trials that the budget allows, ``first`` before the sampler is asked; whether that was interrupted."""
    request = plan.request
    task = _task(plan, selection, settings)
    rows = database.trials(search_id)
    budget = _budget(request, lease.spent)
    proposer = Proposer.open(
        study_storage(settings), search_id, plan.spaces, seed=request.seed, liar=not request.deterministic
    )
    proposer.reconcile(rows, plan.objective)
    normal = sum(picture.is_normal for picture in selection)
    dispatcher = Dispatcher(
        proposer,
        plan.spaces,
        budget,
        lease.write_trial,
        listener,
        objective=plan.objective,
        epochs=task.epochs,
        pictures=(normal, len(selection) - normal),
        queue=outstanding(first, rows, plan.spaces),
        known=rows,
        timed=not request.deterministic,
        # A GPU's memory is another, and what is free at the moment must not decide where results are to repeat.
        memory=None if plan.engine.name == "cuda" or request.deterministic else functools.partial(_memory, task),
    )
    if dispatcher.finished:
        return False
    with _ray(plan) as workers:
        budget.workers = workers.count
        place = offer_files((*task.train, *task.selection), settings) if request.address else None
        listener.begin(budget)
        try:
            interrupted = run_trials(dispatcher, task, workers, place, folder / SCRATCH, SelectionScores(folder))
        finally:
            listener.end()
    if dispatcher.refusal is not None and (budget.seconds is None or budget.left > _WORTH_A_WORD * budget.seconds):
        listener.say(f"no further trial began: {dispatcher.refusal}")
    return interrupted


def _champion(
    plan: Plan,
    finished: Sequence[Candidate],
    selection: Sequence[Picture],
    summary: SearchResult,
    registry: Registry,
    settings: Settings,
    listener: SearchListener,
    notes: list[str],
) -> Champion | None:
    """The chosen one's finished model; one that cannot be fitted again, or costs too much, makes way for the next.

    Returns:
        None if no trial was completed, or none of the first could be finished.
    """

    def note(text: str) -> None:
        notes.append(text)
        listener.say(text)

    finisher = Finisher(
        _task(plan, selection, settings),
        plan.roles,
        plan.dataset,
        name=plan.request.model or usable_name(summary.name),
        search=summary.search_id,
        evidence=plan.evidence,
        threshold=plan.threshold,
        rate=plan.rate,
        limits=plan.limits,
        registry=registry,
        scratch_dir=settings.models_dir,
        scores_file=settings.searches_dir / summary.search_id / "scores.parquet",
        default_config=load_spaces(["patchcore"])["patchcore"].defaults(),
        threads=os.cpu_count() or 1,
        say=listener.say,
        note=note,
    )
    for candidate in finished if plan.limits == Limits() else finished[:_ATTEMPTS]:
        try:
            return finisher.finish(candidate)
        except RefitError as error:
            note(str(error))
    return None


def _store_dataset(plan: Plan, folder: Path) -> None:
    """Keep what was searched and which role each picture had."""
    pyarrow.parquet.write_table(plan.dataset.to_arrow(), folder / "dataset.parquet")
    (folder / "roles.json").write_text(json.dumps(plan.roles.to_dict(), indent=1, sort_keys=True))
