"""autoad's side of the comparison: what a search does when it fits, saves, loads and scores."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from loop import peak_memory, serve

from autoad.algorithms import Detector, Runtime, get_algorithm
from autoad.algorithms._coreset import greedy_coreset
from autoad.algorithms.patchcore import PatchCore, PatchCoreConfig, embed
from autoad.data import load_image, read_dataset
from autoad.features import FeatureStore, choose_engine, head_precision
from autoad.models import Model, Provenance, describe_detector, load_inputs, save_model, write_manifest

import torch  # isort: skip - after autoad, which says how torch's threads wait


class Ours:
    """One model at a time."""

    def open(self, folder: str, size: int, threads: int, scratch: str) -> dict[str, str]:
        """Take notice of a folder, load its test pictures, and say which versions these are.

        Args:
            folder: in MVTec layout, with ``test.txt`` that lists the test pictures in order.
            size: height and width of the pictures.
            threads: for torch, the engine and the decoder.
            scratch: folder for features and models.
        """
        torch.set_num_threads(threads)
        self._threads, self._scratch = threads, Path(scratch)
        self._store = self._scratch / f"features-{os.getpid()}"
        self._choice = choose_engine()
        pictures = read_dataset(Path(folder)).pictures
        by_name = {Path(picture.path).relative_to(Path(folder).resolve()).as_posix(): picture for picture in pictures}
        self._train = [picture for name, picture in by_name.items() if name.startswith("train/good/")]
        names = (Path(folder) / "test.txt").read_text().splitlines()
        self._tests = [load_image(by_name[name].read(), (size, size)) for name in names]
        self._test_pictures = [by_name[name] for name in names]
        return {"engine": f"{self._choice.name}, {self._choice.precision}", "torch": torch.__version__}

    def fit(self, algorithm: str, config: dict[str, Any], epochs: int | None, seed: int) -> dict[str, Any]:
        """Fit on ``train/good``, from the files, with an empty feature store.

        Returns:
            Whole ``seconds``, those of each epoch, and those of finding features.
        """
        self.forget()
        started = time.perf_counter()
        detector = self._detector(algorithm, config, epochs, seed)
        train = load_inputs(FeatureStore(self._store), self._train, detector.needs, self._choice, self._threads)
        marks = [time.perf_counter()]
        for _ in detector.fit(train):
            marks.append(time.perf_counter())
        seconds = marks[-1] - started
        self._save(detector)
        return {
            "seconds": seconds,
            "epochs": [after - before for before, after in itertools.pairwise(marks)],
            "features": marks[0] - started,
            "pictures": len(train),
        }

    def score(self, output: str, batch: int = 16) -> None:
        """Write raw scores and maps of the test pictures by the model that was saved."""
        answers = [answer for part in self._parts(batch) for answer in self._model.predict(part)]
        found = {"scores": np.array([score for score, _ in answers], np.float32)}
        if answers[0][1] is not None:
            found["maps"] = np.stack([one for _, one in answers])
        np.savez(output, **found)

    def predict_seconds(self, batch: int) -> float:
        """Seconds to score all test pictures, from decoded pixels in memory to raw scores and maps."""
        started = time.perf_counter()
        for part in self._parts(batch):
            self._model.predict(part)
        return time.perf_counter() - started

    def try_out(self, algorithm: str, config: dict[str, Any], cold: bool = False) -> float:
        """Seconds of a whole trial: features (all, where ``cold``), fit, scores and maps of the test pictures."""
        if cold:
            self.forget()
        started = time.perf_counter()
        detector = self._detector(algorithm, config, None, 0)
        store = FeatureStore(self._store)
        train, test = (
            load_inputs(store, pictures, detector.needs, self._choice, self._threads)
            for pictures in (self._train, self._test_pictures)
        )
        for _ in detector.fit(train):
            pass
        for part in test.batches(16):
            detector.predict(part)
        return time.perf_counter() - started

    def forget(self) -> None:
        """Remove all features."""
        shutil.rmtree(self._store, ignore_errors=True)

    def patches(self, output: str) -> None:
        """Write the default PatchCore's patch features of the training pictures, ``[P, C]`` float32."""
        config = PatchCoreConfig()
        needs = PatchCore(config).needs
        train = load_inputs(FeatureStore(self._store), self._train, needs, self._choice, self._threads)
        np.save(output, torch.cat([embed(part, config).flatten(0, 1) for part in train.batches(8)]).numpy())

    def coreset(self, points: str, ratio: float, output: str) -> float:
        """Seconds of the coreset sampling alone, as a fit does it; the chosen rows are written."""
        bank = torch.from_numpy(np.load(points))
        started = time.perf_counter()
        near = bank - bank.mean(0)
        chosen = greedy_coreset(near, near.square().sum(1), int(ratio * len(bank)), 0)
        seconds = time.perf_counter() - started
        np.save(output, chosen.numpy())
        return seconds

    def radius(self, points: str, chosen: str) -> float:
        """Largest distance of any point to the nearest chosen one."""
        bank = torch.from_numpy(np.load(points)).double()
        kept = bank[torch.from_numpy(np.load(chosen))]
        return max(float(torch.cdist(part, kept).amin(1).max()) for part in bank.split(1024))

    def save(self) -> str:
        """The folder of the model, calibrated."""
        model, _, _ = self._model.calibrate([picture.read() for picture in self._train[:20]], 0.1)
        write_manifest(self._scratch / "model", model.manifest)
        return str(self._scratch / "model")

    def peak(self) -> float:
        """Peak resident memory so far, MiB."""
        return peak_memory()

    def _parts(self, batch: int) -> list[list[Any]]:
        return [self._tests[i : i + batch] for i in range(0, len(self._tests), batch)]

    def _detector(self, algorithm: str, config: dict[str, Any], epochs: int | None, seed: int) -> Detector:
        kind = get_algorithm(algorithm)
        changes = config | ({} if epochs is None else {"epochs": epochs})
        runtime = Runtime("cuda" if self._choice.name == "cuda" else "cpu", head_precision(self._choice))
        return kind(kind.Config(**changes), seed=seed, runtime=runtime)

    def _save(self, detector: Detector) -> None:
        made_by = Provenance(
            code_version="benchmark",
            search="benchmark",
            trial=0,
            dataset_hash="benchmark",
            dataset_counts={},
            evidence="labelled",
        )
        shutil.rmtree(self._scratch / "model", ignore_errors=True)
        save_model(self._scratch / "model", "benchmark", [describe_detector(detector, self._choice)], made_by)
        self._model = Model.load(self._scratch / "model", threads=self._threads)


if __name__ == "__main__":
    serve(Ours())
