"""autoad's side of the comparison: what a search does when it fits, saves, loads and scores."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loop import peak_memory, serve

from autoad.algorithms import Detector, Runtime, get_algorithm
from autoad.data import load_image, read_dataset
from autoad.features import FeatureStore, choose_engine, find_weights, head_precision
from autoad.models import Backbone, Member, Model, Provenance, save_model
from autoad.search.trial import load_inputs


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
        self._choice = choose_engine()
        pictures = read_dataset(Path(folder)).pictures
        by_name = {Path(picture.path).relative_to(Path(folder).resolve()).as_posix(): picture for picture in pictures}
        self._train = [picture for name, picture in by_name.items() if name.startswith("train/good/")]
        names = (Path(folder) / "test.txt").read_text().splitlines()
        self._tests = [load_image(by_name[name].read(), (size, size)) for name in names]
        self._test_pictures = [by_name[name] for name in names]
        return {"engine": f"{self._choice.name}, {self._choice.precision}", "torch": torch.__version__}

    def fit(
        self, algorithm: str, config: dict[str, Any], epochs: int | None, seed: int, cold: bool = True
    ) -> dict[str, Any]:
        """Fit on ``train/good``, from the files (``cold``: with an empty feature store).

        Returns:
            Whole ``seconds``, those of each epoch, and those of finding features.
        """
        store = self._scratch / "features"
        if cold:
            shutil.rmtree(store, ignore_errors=True)
        started = time.perf_counter()
        detector = self._detector(algorithm, config, epochs, seed)
        train = load_inputs(FeatureStore(store), self._train, detector.needs, self._choice, self._threads)
        marks = [time.perf_counter()]
        for _ in detector.fit(train):
            marks.append(time.perf_counter())
        seconds = marks[-1] - started
        self._save(detector)
        return {
            "seconds": seconds,
            "epochs": [after - before for before, after in zip(marks, marks[1:], strict=False)],
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

    def save(self) -> str:
        """The folder of the model, calibrated."""
        self._calibrate()
        return str(self._scratch / "model")

    def first(self, model: str, picture: str) -> float:
        """Load a saved model and score a picture file."""
        return Model.load(Path(model), threads=torch.get_num_threads()).score(Path(picture).read_bytes()).score

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
        import dataclasses

        needs, backbone = detector.needs, None
        if needs.backbone is not None:
            weights = find_weights(needs.backbone)
            backbone = Backbone(
                name=needs.backbone,
                stages=needs.stages,
                weights_source=weights.source,
                weights_sha256=weights.sha256,
                mean=weights.mean,
                std=weights.std,
                engine=self._choice.name,
                precision=self._choice.precision,
            )
        member = Member(
            algorithm=detector.name,
            kind=detector.kind,
            config=dataclasses.asdict(detector.config),
            seed=detector.seed,
            image_size=needs.image_size,
            device="cuda" if detector.runtime.device.startswith("cuda") else "cpu",
            precision=detector.runtime.precision,
            backbone=backbone,
        )
        provenance = Provenance(
            code_version="benchmark",
            search="benchmark",
            trial=0,
            dataset_hash="benchmark",
            dataset_counts={},
            evidence="labelled",
        )
        shutil.rmtree(self._scratch / "model", ignore_errors=True)
        save_model(self._scratch / "model", "benchmark", member, detector.tensors(), provenance)
        self._model = Model.load(self._scratch / "model", threads=self._threads)

    def _calibrate(self) -> None:
        from autoad.models import write_manifest

        model, _, _ = self._model.calibrate([picture.read() for picture in self._train[:20]], 0.1)
        write_manifest(self._scratch / "model", model.manifest)


if __name__ == "__main__":
    serve(Ours())
