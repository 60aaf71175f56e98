"""Real trials, written down as numbers for ``search_strategies.py``."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import torch

from autoad.algorithms import ALGORITHMS, get_algorithm
from autoad.data import Picture, assign_roles, read_dataset
from autoad.errors import AutoADError
from autoad.features import FeatureStore, choose_engine, head_precision
from autoad.models import load_inputs
from autoad.search import trial
from autoad.search.space import Space
from autoad.search.trial import TrialTask, TrialWorker
from autoad.search.warm_start import fingerprint

__all__ = ["Recording", "observe", "reachable_spaces", "read_recording", "record"]

_MEMORY = 4 * 2**30
_HANGING = 12
"""Multiple of the time for which a trial may train after which any trial is ended."""

_MOST = 30
"""Trials of one algorithm."""


def reachable_spaces() -> dict[str, Space]:
    """The packaged search spaces with the bundled backbone alone, so that every machine records the same."""
    from autoad.features import DEFAULT_BACKBONE
    from autoad.search.space import load_spaces

    spaces = load_spaces()
    return {name: space.without_backbones(space.backbones() - {DEFAULT_BACKBONE}) for name, space in spaces.items()}


@dataclasses.dataclass(frozen=True)
class Recording:
    """What was recorded of a dataset.

    Attributes:
        name: the file's, without its suffix.
        header: what all trials share: numbers of pictures, the fingerprint, seconds that features take by size.
        trials: one entry for each trial; see :func:`observe`.
    """

    name: str
    header: dict[str, Any]
    trials: list[dict[str, Any]]


def read_recording(path: Path) -> Recording:
    """Read a file that :func:`record` wrote."""
    header, *trials = [json.loads(line) for line in path.read_text().splitlines()]
    return Recording(path.stem, header, trials)


def record(
    data: Path, output: Path, store: Path, *, train: int, selection: int, workers: int, seconds: float, longest: float
) -> None:
    """Go on recording: the default of each algorithm, then random configurations until the time is up.

    Args:
        data: folder in MVTec layout; its pictures get the roles that a search gives them.
        output: JSON lines; made with a header if it is not there.
        store: feature store.
        train: at most so many training pictures.
        selection: at most so many selection pictures, evenly over normal and defective ones.
        workers: processes side by side.
        seconds: nothing begins after these.
        longest: processor seconds for which an algorithm that trains may fit.
    """
    roles = assign_roles(read_dataset(data))
    spaces = reachable_spaces()
    engine = choose_engine()
    task = TrialTask(
        train=roles.train[:train],
        selection=_thin(roles.selection, selection),
        labelled_weight=1.0,
        features_dir=store,
        engine=engine,
        precision=head_precision(engine),
        objective="image_auroc",
        epochs={name: space.epochs for name, space in spaces.items() if space.epochs is not None},
        seed=0,
        timed=False,
    )
    started = time.monotonic()
    if not output.exists():
        normal = sum(picture.is_normal for picture in task.selection)
        header = {
            "train": len(task.train),
            "train_of_all": len(roles.train),
            "selection": [normal, len(task.selection) - normal],
            "selection_of_all": len(roles.selection),
            "longest_fit": longest,
            "feature_seconds": _fill(task, spaces),
            "fingerprint": fingerprint(FeatureStore(store), roles.train, engine),
        }
        output.write_text(json.dumps(header) + "\n")
    trials = read_recording(output).trials
    spent = Counter(dict.fromkeys(ALGORITHMS, 0.0))
    count = Counter(known["algorithm"] for known in trials)
    for known in trials:
        spent[known["algorithm"]] += known["seconds"]
    places = [_Place(task, spaces, longest) for _ in range(workers)]
    with output.open("a") as file:
        while True:
            for place in places:
                open_ones = [name for name in ALGORITHMS if count[name] < _MOST]
                if place.job is None and open_ones and time.monotonic() - started < seconds:
                    name = min(open_ones, key=lambda name: (count[name] > 0, spent[name] / _due(name)))
                    place.give(name, configuration(spaces[name], count[name], output.stem))
                    count[name] += 1
                    spent[name] += longest / 2  # roughly, until it is known
            busy = [place for place in places if place.job is not None]
            if not busy:
                break
            ready = wait([place.pipe for place in busy], timeout=1.0)
            for place in busy:
                if place.pipe in ready or time.monotonic() > place.deadline:
                    result = place.take()
                    spent[result["algorithm"]] += result["seconds"] - longest / 2
                    file.write(json.dumps(result) + "\n")
                    file.flush()
    for place in places:
        place.close()


def configuration(space: Space, index: int, recording: str) -> dict[str, Any]:
    """The default first, then random ones, always the same in one recording."""
    if index == 0:
        return space.defaults()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = zlib.crc32(f"{recording} {space.algorithm} {index}".encode())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return space.suggest(study.ask())


def _thin(pictures: Sequence[Picture], most: int) -> tuple[Picture, ...]:
    """Evenly spread over labels and pictures."""
    ordered = sorted(pictures, key=lambda picture: (picture.label, picture.sha256))
    places = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(int)
    return tuple(ordered[place] for place in places)


def _due(algorithm: str) -> float:
    """Share of the time: more for algorithms that train, whose trials are long and whose results vary more."""
    return 3.0 if get_algorithm(algorithm).iterative else 1.0


def _fill(task: TrialTask, spaces: Mapping[str, Space]) -> dict[str, float]:
    """Seconds that the features of all pictures take, by backbone and picture size; nothing if they were there."""
    worker, seconds = TrialWorker(task), {}
    for name, space in spaces.items():
        for parameter in space.parameters:
            if parameter.name == "image_size" and parameter.low is not None and parameter.high is not None:
                for size in range(int(parameter.low), int(parameter.high) + 1, int(parameter.step or 1)):
                    config = space.defaults() | {"image_size": size}
                    seconds.setdefault(f"{config.get('backbone')} {size}", worker.load(name, config))
    return seconds


class _Place:
    """A process that runs one trial at a time, and is replaced when one takes too long."""

    def __init__(self, task: TrialTask, spaces: Mapping[str, Space], longest: float) -> None:
        self._task, self._spaces, self._longest = task, spaces, longest
        self.job: tuple[str, dict[str, Any]] | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_work, args=(theirs, self._task), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, algorithm: str, config: dict[str, Any]) -> None:
        """Begin a trial."""
        self.job = algorithm, config
        self.began = time.monotonic()
        self.deadline = self.began + _HANGING * self._longest
        self.pipe.send((algorithm, config, self._spaces[algorithm].sweep(config), self._longest))

    def take(self) -> dict[str, Any]:
        """The result of the trial; one that says so if it takes too long."""
        assert self.job is not None
        algorithm, config = self.job
        self.job = None
        if self.pipe.poll():
            result: dict[str, Any] = self.pipe.recv()
            return result
        self.close()
        self._start()
        seconds = round(time.monotonic() - self.began, 2)
        return {"algorithm": algorithm, "config": config, "seconds": seconds, "failure": "took too long"}

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def _work(pipe: Connection, task: TrialTask) -> None:
    torch.set_num_threads(1)
    # The processor's time, so that what else the machine does neither shortens a training nor counts as its cost.
    trial.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    worker = TrialWorker(task)
    # Imports, masks and the engine are there before the first trial, as in a worker that has lived for a while.
    load_inputs(FeatureStore(task.features_dir), task.train[:1], _needs("dfm", {}), task.engine)
    while True:
        algorithm, config, sweep, longest = pipe.recv()
        pipe.send(observe(worker, algorithm, config, sweep, longest))


def _needs(algorithm: str, config: dict[str, Any]) -> Any:
    return get_algorithm(algorithm)(get_algorithm(algorithm).Config(**config)).needs


def observe(
    worker: TrialWorker, algorithm: str, config: dict[str, Any], sweep: Mapping[str, Any], longest: float
) -> dict[str, Any]:
    """Run one trial.

    Returns:
        ``algorithm`` and ``config``; ``seconds`` of the whole; ``curve``, a list of evaluations, each of epochs done (1
        where nothing trains), processor seconds fitted so far and of the evaluation, objective; ``failure`` if there
        was one.
    """
    result: dict[str, Any] = {"algorithm": algorithm, "config": config, "curve": []}
    aside = 0.0

    def timed(call: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal aside
            began = time.process_time()
            try:
                return call(*arguments, **options)
            finally:
                aside += time.process_time() - began

        return run

    judge = worker._judge.judge
    worker._judge.judge = timed(judge)  # type: ignore[method-assign]
    started, begun = time.perf_counter(), time.process_time()
    before = 0.0
    try:
        for report in worker.run(
            algorithm, config, sweep=sweep, seconds=longest, exact_above=2.0, memory_limit=_MEMORY
        ):
            fitted = time.process_time() - begun - aside
            result["curve"].append(
                [report.epochs_done or 1, round(fitted, 3), round(aside - before, 3), round(report.objective, 5)]
            )
            before = aside
    except AutoADError as error:
        result["failure"] = f"{type(error).__name__}: {error}"
    finally:
        worker._judge.judge = judge  # type: ignore[method-assign]
    return result | {"seconds": round(time.perf_counter() - started, 3)}
