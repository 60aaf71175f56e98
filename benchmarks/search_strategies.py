"""Which of a search's strategies help: simulated searches over recorded trials.

``record`` runs real trials of all eight algorithms on a folder in MVTec layout (the roles are those of a search; only
training and selection pictures are touched) and writes numbers to a JSON lines file, going on where it stopped.
``replay`` fits a surrogate to each file and runs whole searches on it through the product's own dispatcher, two
simulated workers and a simulated clock, with each strategy left out in turn; it goes on where it stopped, too. ``show``
prints the tables.

    python benchmarks/search_strategies.py record --data FOLDER --output benchmarks/recordings/NAME.jsonl
    python benchmarks/search_strategies.py quality benchmarks/recordings/*.jsonl
    python benchmarks/search_strategies.py replay --results strategies.jsonl benchmarks/recordings/*.jsonl
    python benchmarks/search_strategies.py show --results strategies.jsonl --plot benchmarks/search_strategies.svg
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import itertools
import json
import math
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from _common import table
from _recording import Recording, reachable_spaces, read_recording, record
from _results import FULL, Results, read_results, result_key, show
from _simulation import Outcome, simulate
from _surrogate import Surrogate

import autoad.search.course
import autoad.search.run
from autoad.schema import TrialRow
from autoad.search.dispatch import Dispatcher
from autoad.search.jobs import Strategy, Suggestion
from autoad.search.leaderboard import rank_trials
from autoad.search.plan import SearchRequest
from autoad.search.trackers import FanOut
from autoad.search.warm_start import Earlier, choose_configurations, distance

MINUTES = (10, 20)
MACHINE = 4.0
"""All recorded seconds are taken times this, so that a simulated search ends with as many trials as a real one did."""


VARIANTS: dict[str, dict[str, Any]] = {
    FULL: {},
    "without costs": {"strategy": Strategy(costs=False)},
    "without shares": {"strategy": Strategy(shares=False)},
    "without ladders": {"strategy": Strategy(ladders=False)},
    "none of them": {"strategy": Strategy(ladders=False, shares=False, costs=False)},
    "random": {"strategy": Strategy(ladders=False, shares=False, costs=False), "proposer": "random"},
    "full, samplers apart": {"proposer": "apart"},
    "full, warm from other datasets": {"learns_from": "others"},
    "full, warm from the same dataset": {"learns_from": "same"},
}

TUNING: dict[str, dict[str, Any]] = {
    "temperature 2": {"constants": {"shares._TEMPERATURE": 2.0}},
    "floor 0.1": {"constants": {"shares._SMALLEST_SHARE": 0.1}},
    "trial share 0.03": {"constants": {"budget._TRIAL_SHARE": 0.03}},
    "trial share 0.03, floor 0.1": {"constants": {"budget._TRIAL_SHARE": 0.03, "shares._SMALLEST_SHARE": 0.1}},
    "trial share 0.03, temperature 2": {"constants": {"budget._TRIAL_SHARE": 0.03, "shares._TEMPERATURE": 2.0}},
    "ladders from 9 epochs": {"constants": {"ladders._START": 9}},
}
"""Other values of the product's constants; ``--tune`` compares them with the full search as it is."""


@functools.lru_cache(maxsize=1)
def _load(files: tuple[Path, ...]) -> dict[str, tuple[Recording, Surrogate]]:
    torch.set_num_threads(1)
    recordings = [read_recording(file) for file in files]
    return {
        recording.name: (recording, Surrogate(recording, recordings, reachable_spaces(), machine=MACHINE))
        for recording in recordings
    }


@contextmanager
def _constants(changed: Mapping[str, Any]) -> Iterator[None]:
    """Other values of the product's constants, named by module and name, for a while."""
    places = {
        name: (importlib.import_module(f"autoad.search.{name.split('.')[0]}"), name.split(".")[1]) for name in changed
    }
    before = {name: getattr(module, attribute) for name, (module, attribute) in places.items()}
    for name, (module, attribute) in places.items():
        setattr(module, attribute, changed[name])
    try:
        yield
    finally:
        for name, (module, attribute) in places.items():
            setattr(module, attribute, before[name])


def search(
    files: tuple[Path, ...],
    name: str,
    minutes: int,
    seed: int,
    *,
    strategy: Strategy = Strategy(),  # noqa: B008 - it is frozen
    proposer: str = "quick",
    warm: Sequence[Suggestion] = (),
    constants: Mapping[str, Any] | None = None,
) -> Outcome:
    """A simulated search of the dataset ``name``."""
    recording, surrogate = _load(files)[name]
    with _constants(constants or {}):
        return simulate(
            surrogate,
            reachable_spaces(),
            strategy,
            seconds=60.0 * minutes,
            seed=seed,
            pictures=tuple(recording.header["selection"]),
            warm=warm,
            proposer=proposer,
        )


def _warm(files: tuple[Path, ...], name: str, earlier: Mapping[str, list[dict[str, Any]]]) -> list[Suggestion]:
    """What full searches hand on to the search of ``name``, however far their pictures are."""
    prints = {other: recording.header["fingerprint"] for other, (recording, _) in _load(files).items()}
    searches = [
        Earlier(other, distance(prints[name], prints[other]), [TrialRow.model_validate(row) for row in rows])
        for other, rows in earlier.items()
    ]
    searches.sort(key=lambda one: one.distance)
    return [suggestion for suggestion, _ in choose_configurations(searches, reachable_spaces(), "image_auroc")]


@dataclasses.dataclass(frozen=True)
class _Job:
    """A search to simulate; ``earlier`` has, by dataset, the best rows of full searches to learn from."""

    files: tuple[Path, ...]
    dataset: str
    minutes: int
    seed: int
    variant: str
    earlier: dict[str, list[dict[str, Any]]] | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        return self.dataset, self.minutes, self.seed, self.variant


def _run(job: _Job) -> dict[str, Any]:
    options = dict((VARIANTS | TUNING)[job.variant])
    if options.pop("learns_from", None):
        options["warm"] = _warm(job.files, job.dataset, job.earlier or {})
    outcome = search(job.files, job.dataset, job.minutes, job.seed, **options)
    best: dict[str, TrialRow] = {}
    for row in rank_trials(outcome.rows, "image_auroc"):
        if row.status == "complete":
            best.setdefault(row.algorithm, row)
    return {
        "dataset": job.dataset,
        "minutes": job.minutes,
        "seed": job.seed,
        "variant": job.variant,
        "curve": [[round(moment, 1), round(value, 5)] for moment, value in outcome.curve],
        "status": Counter(row.status for row in outcome.rows),
        "trials": outcome.by_algorithm(),
        "refused": outcome.refused,
        "idle": round(outcome.idle, 4),
        "best": [row.model_dump(mode="json", exclude_defaults=True) for row in best.values()],
    }


def _jobs(
    files: tuple[Path, ...], seeds: int, variants: Mapping[str, Any], known: Mapping[tuple[Any, ...], dict[str, Any]]
) -> list[_Job]:
    """What is missing and can be run: what learns from full searches waits for them."""
    names = [file.stem for file in files]
    jobs = []
    for seed, minutes, name, variant in itertools.product(range(seeds), MINUTES, names, variants):
        if (name, minutes, seed, variant) in known:
            continue
        full = known.get((name, minutes, seed, FULL))
        if variant == "without costs" and (full is None or full["refused"] == 0):
            continue  # see _same_without_costs
        source = variants[variant].get("learns_from")
        sources = {"others": [other for other in names if other != name], "same": [name]}.get(source, [])
        keys = {other: (other, minutes, (seed + 1) % seeds, FULL) for other in sources}
        if all(key in known for key in keys.values()):
            jobs.append(
                _Job(files, name, minutes, seed, variant, {other: known[key]["best"] for other, key in keys.items()})
            )
    return jobs


def _same_without_costs(known: Mapping[tuple[Any, ...], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Searches without the cost rule where the full one refused nothing: then they are the same, trial by trial."""
    for (name, minutes, seed, variant), result in known.items():
        if variant == FULL and result["refused"] == 0 and (name, minutes, seed, "without costs") not in known:
            yield result | {"variant": "without costs"}


def replay(files: Sequence[Path], results: Path, *, seeds: int, seconds: float, tune: bool) -> None:
    """Run what is missing of all simulated searches, until the time is up."""
    variants = {FULL: {}} | TUNING if tune else VARIANTS
    found = read_results(results) if results.exists() else []
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool, results.open("a") as file:
        while True:
            known = {result_key(result): result for result in found}
            if not tune:
                for result in _same_without_costs(known):
                    found.append(result)
                    file.write(json.dumps(result) + "\n")
                known = {result_key(result): result for result in found}
            jobs = _jobs(tuple(files), seeds, variants, known)
            if not jobs:
                break
            for result in pool.imap_unordered(_run, jobs):
                found.append(result)
                file.write(json.dumps(result) + "\n")
                file.flush()
                if time.monotonic() - started > seconds:
                    pool.terminate()
                    print(f"{len(found)} searches are done")
                    return
    print(f"all {len(found)} searches are done")


def confirm(data: Path, results: Path, variant: str, *, seconds: float, seed: int) -> None:
    """Run a real search with some strategies left out, in the data folder of the settings, and write its curve down."""
    strategy = VARIANTS[variant].get("strategy", Strategy())
    autoad.search.course.Dispatcher = functools.partial(Dispatcher, strategy=strategy)  # type: ignore[assignment, misc]
    name = f"{variant.replace(' ', '-')}-{seed}-{time.time_ns()}"
    found = autoad.search.run.run_search(
        SearchRequest(data=data, seconds=seconds, seed=seed, name=name, warm_start=False), FanOut()
    )
    ended = sorted((row.ended_after or 0.0, row.validation.image_auroc or 0.0) for row in found.leaderboard
                   if row.status == "complete")  # fmt: skip
    best = list(itertools.accumulate((value for _, value in ended), max))
    result = {
        "dataset": data.name,
        "seconds": seconds,
        "seed": seed,
        "variant": variant,
        "best": best[-1],
        "curve": [[moment, value] for (moment, _), value in zip(ended, best, strict=True)],
        "status": Counter(row.status for row in found.leaderboard),
        "trials": Counter(row.algorithm for row in found.leaderboard if row.status in {"complete", "pruned"}),
    }
    with results.open("a") as file:
        file.write(json.dumps(result) + "\n")


def quality(files: Sequence[Path]) -> None:
    """Print how well each surrogate predicts trials that it has not seen."""
    rows = []
    for name, (_, surrogate) in _load(tuple(files)).items():
        for algorithm, found in surrogate.quality().items():
            rows.append(
                [
                    name,
                    algorithm,
                    found.trials,
                    f"{found.objective:.2f}",
                    f"{found.seconds:.2f}",
                    f"{found.residual:.2f}",
                ]
            )
    title = ["recording", "algorithm", "trials", "objective, Spearman", "log seconds, Spearman", "left of log seconds"]
    print(table(title, rows))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("record", help="run real trials")
    command.add_argument("--data", type=Path, required=True, help="folder in MVTec layout")
    command.add_argument("--output", type=Path, required=True, help="JSON lines; goes on where it stopped")
    command.add_argument("--store", type=Path, default=Path("benchmark-features"), help="feature store")
    command.add_argument("--train-limit", type=int, default=24, help="training pictures")
    command.add_argument("--selection-limit", type=int, default=60, help="selection pictures")
    command.add_argument("--workers", type=int, default=2)
    command.add_argument("--seconds", type=float, default=120.0, help="nothing begins after these")
    command.add_argument("--longest", type=float, default=6.0, help="seconds for which a trial may train")
    command = commands.add_parser("replay", help="run simulated searches")
    command.add_argument("recordings", type=Path, nargs="+")
    command.add_argument("--results", type=Path, required=True)
    command.add_argument("--seeds", type=int, default=20)
    command.add_argument("--seconds", type=float, default=math.inf, help="stop after these; a later call goes on")
    command.add_argument("--tune", action="store_true", help="compare other values of the constants instead")
    command = commands.add_parser("quality", help="how well the surrogates predict")
    command.add_argument("recordings", type=Path, nargs="+")
    command = commands.add_parser("confirm", help="run a real search")
    command.add_argument("--data", type=Path, required=True, help="folder in MVTec layout")
    command.add_argument("--results", type=Path, required=True)
    command.add_argument("--variant", choices=list(VARIANTS), default=FULL)
    command.add_argument("--seconds", type=float, default=90.0)
    command.add_argument("--seed", type=int, default=0)
    command = commands.add_parser("show", help="tables and plot")
    command.add_argument("--results", type=Path, required=True)
    command.add_argument("--plot", type=Path)
    parsed = parser.parse_args()
    if parsed.command == "record":
        record(
            parsed.data,
            parsed.output,
            parsed.store,
            train=parsed.train_limit,
            selection=parsed.selection_limit,
            workers=parsed.workers,
            seconds=parsed.seconds,
            longest=parsed.longest,
        )
    elif parsed.command == "replay":
        replay(parsed.recordings, parsed.results, seeds=parsed.seeds, seconds=parsed.seconds, tune=parsed.tune)
    elif parsed.command == "quality":
        quality(parsed.recordings)
    elif parsed.command == "confirm":
        confirm(parsed.data, parsed.results, parsed.variant, seconds=parsed.seconds, seed=parsed.seed)
    else:
        show(Results(read_results(parsed.results), list(VARIANTS | TUNING)), parsed.plot)


if __name__ == "__main__":
    main()
