"""The eight algorithms beside anomalib's, in one run on this machine.

    make bench [DATA="FOLDER..."]        # an hour or more
    make bench-quick                     # under five minutes

    python benchmarks/reference/compare.py --anomalib PYTHON [--data FOLDER...] [--results FILE] [--phase NAME...]

Each side is a process of its own that is idle unless it is asked for something; they take turns within each round.
Every measurement is a line of ``--results`` as soon as it is made, and those that are there already are not made again:
a run that was cut off goes on, and tables are made of what is there. Phases:

- ``time``: fit from files (cold feature store), an epoch, predict at batch 1 and 16, peak memory; on the first folder,
  or on all with ``--time-all``. At most 60 training (``--train``) and 40 test pictures.
- ``start``: a new process that loads a model and scores one picture.
- ``coreset``: both coreset samplings on the same real features.
- ``many``: 60 configurations of the frozen-backbone algorithms, one after the other.
- ``judge``: accuracy on all pictures for those that do not train, on 60 training and 100 test pictures and for five
  seeds for those that do; ``--side`` limits it to one side.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from loop import Worker, WorkerError
from pictures import Folder, prepare, write_weights
from tables import write_report
from tasks import TASKS, Task, draw_configs, for_anomalib

from autoad.data.demo import write_demo_dataset
from autoad.evaluation import compute_metrics

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SIZE = 256
PHASES = ("time", "start", "coreset", "many", "judge")
LONG = 60.0
"""Seconds of a fit beyond which three rounds must do."""

_WARM = {"backbone": "tf_efficientnet_lite0", "stages": (4,)}
_MOST_SECONDS = 300.0
"""For one of many configurations, in anomalib."""

Row = dict[str, Any]


class Results:
    """Measurements, one JSON object a line; ``key`` says what was measured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def has(self, **key: Any) -> bool:
        """Whether that was measured."""
        return any(row["key"] == key for row in self.rows)

    def add(self, values: Row, **key: Any) -> None:
        """Keep a measurement."""
        row = {"key": key, **values}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row)[:400], file=sys.stderr, flush=True)


class Bench:
    """The two environments, and a scratch folder."""

    def __init__(self, anomalib: Path, threads: int, scratch: Path, weights: dict[str, str]) -> None:
        self.scratch, self.threads, self._anomalib, self._weights = scratch, threads, anomalib, weights
        folder = Path(weights["resnet18"]).parent
        self._environment = {
            "AUTOAD_WEIGHTS_DIR": str(folder),
            "AUTOAD_DATA_DIR": str(scratch / "state"),
            "PYTHONPATH": str(ROOT),
        }

    @contextlib.contextmanager
    def side(self, name: str, folder: Folder, **environment: str) -> Iterator[Worker]:
        """A new process of one side, with the folder open."""
        ours = name == "ours"
        python = Path(sys.executable) if ours else self._anomalib
        extra = (self._environment if ours else {}) | environment
        with Worker(python, HERE / f"{name}.py", self.threads, self.scratch / f"{name}.log", extra) as worker:
            given: Row = {} if ours else {"weights": self._weights}
            scratch = str(self.scratch / name)
            worker.versions = worker.ask(
                "open", folder=str(folder.path), size=SIZE, threads=self.threads, scratch=scratch, **given
            )
            yield worker

    def first_score(self, name: str, model: str, picture: Path) -> float:
        """Seconds from the start of a Python process until it has scored its first picture."""
        ours = name == "ours"
        code = _FIRST[name]
        pinned = {key: str(self.threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        environment = os.environ | pinned | (self._environment if ours else {"TRUST_REMOTE_CODE": "1"})
        started = time.perf_counter()
        subprocess.run(
            [sys.executable if ours else self._anomalib, "-c", code, model, str(picture), str(self.threads)],
            check=True,
            env=environment,
            capture_output=True,
        )
        return time.perf_counter() - started


_FIRST = {
    "ours": (
        "import sys\nfrom pathlib import Path\nfrom autoad.models import Model\n"
        "model = Model.load(Path(sys.argv[1]), threads=int(sys.argv[3]))\n"
        "print(model.score(Path(sys.argv[2]).read_bytes()).score)\n"
    ),
    "theirs": (
        "import sys\nfrom anomalib.deploy import TorchInferencer\n"
        "print(float(TorchInferencer(sys.argv[1], device='cpu').predict(sys.argv[2]).pred_score))\n"
    ),
}


QUICK = ("PaDiM", "PatchCore 1 %", "STFPM")
"""Whose start is measured; with ``--quick`` only that of the first, all else is limited to these, and accuracy to those
that do not train."""


def main() -> None:
    """Measure what is asked for and is not there yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anomalib", type=Path, required=True, help="a Python that has anomalib")
    parser.add_argument("--data", type=Path, nargs="*", help="folders in MVTec AD layout; default: the demo dataset")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/reference.jsonl")
    parser.add_argument("--phase", nargs="*", choices=PHASES, default=list(PHASES))
    parser.add_argument("--only", nargs="*", help="names of tasks, such as PaDiM")
    parser.add_argument("--side", choices=("ours", "theirs"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--train", type=int, default=60, help="training pictures, at most, of what is timed")
    parser.add_argument("--time-all", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few pictures and rounds, three algorithms")
    asked = parser.parse_args()
    results = Results(asked.results)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        sources = asked.data or [scratch / "demo"]
        if not asked.data:
            write_demo_dataset(sources[0])
        train, test = (24, 16) if asked.quick else (asked.train, 40)
        timed = [prepare(source, scratch / f"timed-{i}", SIZE, train, test) for i, source in enumerate(sources)]
        bench = Bench(asked.anomalib, asked.threads, scratch, write_weights(scratch / "weights"))
        tasks = [task for task in TASKS if not asked.only or task.name in asked.only]
        if asked.quick:
            tasks = [task for task in tasks if task.name in QUICK]
        _note_machine(results, asked.threads)
        if "time" in asked.phase:
            for folder, task in itertools.product(timed if asked.time_all else timed[:1], tasks):
                if task.timed:
                    _time(results, bench, folder, task, 2 if asked.quick else asked.rounds)
        if "start" in asked.phase:
            for task in tasks:
                if task.name in (QUICK[:1] if asked.quick else QUICK):
                    _start(results, bench, timed[0], task, 2 if asked.quick else asked.rounds)
        if "coreset" in asked.phase:
            _coreset(results, bench, timed[0], 0.02 if asked.quick else 0.1)
        if "many" in asked.phase and not asked.quick:
            few = prepare(sources[0], scratch / "few", SIZE, 24, 20)
            _many(results, bench, few, 60)
        if "judge" in asked.phase:
            for number, source in enumerate(sources):
                whole = prepare(source, scratch / f"whole-{number}", SIZE, train if asked.quick else None, None)
                part = prepare(source, scratch / f"part-{number}", SIZE, 24 if asked.quick else 60, 100)
                for task in tasks:
                    if task.judged is not None and not (asked.quick and task.epochs):
                        folder = whole if task.judged == "whole" else part
                        seeds = 1 if asked.quick else min(asked.seeds, task.seeds)
                        _judge(results, bench, folder, task, seeds, asked.side)
    write_report(results.rows, asked.results.parent)


def _note_machine(results: Results, threads: int) -> None:
    if not results.has(phase="machine"):
        model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ":?")
        results.add(
            {"cpu": model.split(":")[1].strip(), "threads": threads, "python": platform.python_version()},
            phase="machine",
        )


def _time(results: Results, bench: Bench, folder: Folder, task: Task, rounds: int) -> None:
    """Rounds of fit and predict, in turn; the first round warms up and tells how much memory that takes."""
    key = {"phase": "time", "data": folder.name, "task": task.name}
    if any(row["key"] == key and row["pictures"] == [folder.train, folder.test] for row in results.rows):
        return
    # Two, and the first is timed: what is done once, at the end of a fit, is no part of an epoch.
    epochs = None if task.epochs is None and not task.goal.get("epoch") else 2
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": [], "theirs, batch 32": []}
    peaks, failed = {}, {}
    if task.algorithm != "ganomaly":  # compiles the backbone, which is kept: only the first process here pays for it
        with bench.side("ours", folder) as first:
            first.ask("fit", algorithm=task.algorithm, config=task.ours, epochs=epochs and 1, seed=0)
    with bench.side("ours", folder) as ours, bench.side("theirs", folder) as theirs:
        versions = ours.versions | {"anomalib": theirs.versions["anomalib"]}
        number = 0
        while number <= rounds:
            plan = [("theirs", theirs, task.theirs, {}), ("ours", ours, task.ours, {})]
            if epochs is None:  # what does not train gives the same with any batch: also its fastest
                plan[0] = ("theirs", theirs, task.theirs, {"batch": 4})
                if not task.name.startswith("PatchCore"):
                    plan.insert(1, ("theirs, batch 32", theirs, task.theirs, {"batch": 32}))
            for side, worker, config, options in plan:
                try:
                    row = _fit_and_predict(worker, task.algorithm, config, epochs, number, options)
                except WorkerError as error:
                    failed[side] = str(error)
                    continue
                if number == 0 and side not in peaks:
                    peaks[side] = worker.ask("peak")
                if number or row["fit"] > LONG:
                    found[side].append(row)
            longest = max((row["fit"] for rows in found.values() for row in rows), default=0.0)
            number += 1
            if longest > LONG and number >= 3:
                break
    columns = {side: {name: [row[name] for row in rows] for name in rows[0]} for side, rows in found.items() if rows}
    results.add(
        {
            "seconds": columns,
            "peak": peaks,
            "failed": failed,
            "epochs": epochs,
            "pictures": [folder.train, folder.test],
            "versions": versions,
        },
        **key,
    )


def _fit_and_predict(
    worker: Worker, algorithm: str, config: Row, epochs: int | None, seed: int, options: Row
) -> dict[str, float]:
    fitted = worker.ask("fit", algorithm=algorithm, config=config, epochs=epochs, seed=seed, **options)
    row = {"fit": fitted["seconds"]}
    if epochs is not None:
        row["epoch"] = fitted["epochs"][0]
    row["predict 1"] = worker.ask("predict_seconds", batch=1)
    row["predict 16"] = worker.ask("predict_seconds", batch=16)
    row["fit + predict"] = row["fit"] + min(row["predict 1"], row["predict 16"])
    return row


def _start(results: Results, bench: Bench, folder: Folder, task: Task, rounds: int) -> None:
    """New processes, in turn, that load a saved model and score one picture."""
    key = {"phase": "start", "data": folder.name, "task": task.name}
    if results.has(**key):
        return
    models = {}
    for side, config in (("theirs", task.theirs), ("ours", task.ours)):
        with bench.side(side, folder) as worker:
            epochs = None if task.epochs is None else 1
            worker.ask("fit", algorithm=task.algorithm, config=config, epochs=epochs, seed=0)
            models[side] = worker.ask("save")
    picture = folder.path / (folder.path / "test.txt").read_text().splitlines()[0]
    seconds: dict[str, list[float]] = {side: [] for side in models}
    for number in range(rounds + 1):
        for side, model in models.items():
            taken = bench.first_score(side, model, picture)
            if number:
                seconds[side].append(taken)
    results.add({"seconds": seconds}, **key)


def _coreset(results: Results, bench: Bench, folder: Folder, ratio: float) -> None:
    """Both samplings of the same patch features, alone; radius of each on the features themselves."""
    key = {"phase": "coreset", "data": folder.name, "ratio": ratio}
    if results.has(**key):
        return
    points, chosen = bench.scratch / "points.npy", bench.scratch / "chosen.npy"
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    radius = {}
    with bench.side("ours", folder) as ours, bench.side("theirs", folder) as theirs:
        ours.ask("patches", output=str(points))
        for _ in range(3):
            for side, worker in (("theirs", theirs), ("ours", ours)):
                seconds[side].append(worker.ask("coreset", points=str(points), ratio=ratio, output=str(chosen)))
                radius[side] = ours.ask("radius", points=str(points), chosen=str(chosen))
    results.add({"seconds": seconds, "radius": radius, "patches": len(np.load(points, mmap_mode="r"))}, **key)


def _many(results: Results, bench: Bench, folder: Folder, count: int) -> None:
    """Fit and score many configurations: anomalib, autoad with one store for all, autoad with none."""
    wanted = [
        (number, name, config)
        for number, (name, config) in enumerate(draw_configs(count, seed=0))
        if not results.has(phase="many", data=folder.name, count=count, number=number)
    ]
    if not wanted:
        return
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(bench.side("ours", folder))
        # Each keeps its own compiled backbones: whoever comes second would find those of the first.
        storeless = stack.enter_context(bench.side("ours", folder, AUTOAD_DATA_DIR=str(bench.scratch / "storeless")))
        theirs: Worker | None = None
        for worker in (ours, storeless):  # imports, compilers
            worker.ask("try_out", algorithm="dfkde", config=_WARM, cold=True)
        ours.ask("forget")
        for number, name, config in wanted:
            if theirs is None or not theirs.alive:
                theirs = stack.enter_context(bench.side("theirs", folder))
                theirs.ask("try_out", algorithm="dfkde", config=for_anomalib("dfkde", _WARM))
            row: Row = {"algorithm": name, "config": config, "pictures": [folder.train, folder.test]}
            seconds = {}
            try:
                seconds["theirs"] = theirs.ask(
                    "try_out", algorithm=name, config=for_anomalib(name, config), limit=_MOST_SECONDS
                )
            except WorkerError as error:  # both go on with the next one
                row["failed"] = str(error)
            else:
                seconds["ours"] = ours.ask("try_out", algorithm=name, config=config)
                seconds["ours, no store"] = storeless.ask("try_out", algorithm=name, config=config, cold=True)
            results.add(row | {"seconds": seconds}, phase="many", data=folder.name, count=count, number=number)


def _judge(results: Results, bench: Bench, folder: Folder, task: Task, seeds: int, side: str | None) -> None:
    """Accuracy of both sides, by both sides' metrics."""
    for name, config in (("theirs", task.theirs), ("ours", task.ours)):
        if side not in (None, name):
            continue
        wanted = [
            seed
            for seed in range(seeds)
            if not results.has(phase="judge", data=folder.name, task=task.name, side=name, seed=seed)
        ]
        if not wanted:
            continue
        # Where time is not looked at, training may have an allocator that keeps what it has: the same results, sooner.
        keeping = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
        keeping["MALLOC_TOP_PAD_"] = str(256 << 20)
        patient = {} if task.epochs is None else keeping
        with (
            bench.side("theirs", folder, **patient) as theirs,
            bench.side("ours", folder) if name == "ours" else contextlib.nullcontext(theirs) as worker,
        ):
            for seed in wanted:
                key = {"phase": "judge", "data": folder.name, "task": task.name, "side": name, "seed": seed}
                try:
                    worker.ask("fit", algorithm=task.algorithm, config=config, epochs=task.epochs, seed=seed)
                except WorkerError as error:
                    results.add({"failed": str(error)}, **key)
                    break
                scores = bench.scratch / "scores.npz"
                worker.ask("score", output=str(scores))
                values = _measure(scores, folder) | {
                    **({"alone": _alone(worker, bench, folder)} if task.algorithm == "cflow" else {}),
                    "epochs": task.epochs,
                    "pictures": [folder.train, folder.test],
                }
                if seed == 0:  # its AUPRO takes a minute
                    values["by anomalib"] = theirs.ask("metrics", scores=str(scores), truth=str(folder.truth))
                results.add(values, **key)


def _alone(worker: Worker, bench: Bench, folder: Folder) -> dict[str, float]:
    """Metrics of the same model where it is asked for one picture at a time: they should be no others."""
    scores = bench.scratch / "alone.npz"
    worker.ask("score", output=str(scores), batch=1)
    measured: dict[str, float] = _measure(scores, folder)["metrics"]
    return measured


def _measure(scores: Path, folder: Folder) -> Row:
    given, truth = np.load(scores), np.load(folder.truth)
    labels, known = truth["labels"], truth["known"]
    masks: list[Any] = [None] * len(labels)
    for row, mask in zip(known, truth["masks"], strict=True):
        masks[row] = mask
    maps = given.get("maps")
    found = {"metrics": _chosen(compute_metrics(given["scores"], labels, maps, masks))}
    if "mended" in given:
        found["mended"] = _chosen(compute_metrics(given["mended"], labels))
    return found


def _chosen(metrics: Any) -> dict[str, float]:
    names = {"image_auroc": "image_auroc", "image_aupr": "aupr", "pixel_auroc": "pixel_auroc", "aupro": "aupro"}
    return {short: getattr(metrics, name) for name, short in names.items() if getattr(metrics, name) is not None}


if __name__ == "__main__":
    main()
