"""What bfloat16 features cost and save: why float32 is the default.

The default configurations of the frozen-backbone algorithms on features of both precisions. Fits on ``train/good`` and
measures on the whole test folder; nothing is chosen. Times are of the backbone and the detector, picture by picture,
in turn.

    python benchmarks/bfloat16.py --data FOLDER...
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
from _common import FROZEN, arguments, folders, open_store, table

from autoad.algorithms import Detector, Inputs, Prediction, Runtime, get_algorithm
from autoad.data import Picture, load_image, load_mask
from autoad.evaluation import compute_metrics
from autoad.features import Engine, EngineChoice, as_tensors, choose_engine, create_engine, head_precision
from autoad.models import load_inputs
from autoad.search.sweep import EVALUATION_SIZE, evaluation_maps

import torch  # isort: skip - after autoad, which says how torch's threads wait

CONFIGS = [(name, {"coreset_sampling_ratio": 0.01} if name == "patchcore" else {}) for name in FROZEN]
PRECISIONS = ("float32", "bfloat16")
TIMED, ROUNDS = 16, 5


def main() -> None:
    """Print one table."""
    parsed = arguments(__doc__ or "")
    store, choice = open_store(parsed)
    choose_engine(choice.name, "bfloat16")  # refuses a machine without
    rows = []
    for path in parsed.data:
        _, train, test = folders(path)
        labels = np.array([not picture.is_normal for picture in test])
        masks = [load_mask(picture, EVALUATION_SIZE) for picture in test]
        for name, changes in CONFIGS:
            kind = get_algorithm(name)
            found, detectors = {}, {}
            for precision in PRECISIONS:
                features = EngineChoice(choice.name, precision)
                detector = kind(kind.Config(**changes), runtime=Runtime("cpu", head_precision(choice)))
                fitted, tested = (
                    load_inputs(store, some, detector.needs, features, parsed.threads) for some in (train, test)
                )
                for _ in detector.fit(fitted):
                    pass
                parts = [detector.predict(batch) for batch in tested.batches(16)]
                scores = torch.cat([part.scores for part in parts])
                maps = [part.maps for part in parts if part.maps is not None]
                prediction = Prediction(scores, torch.cat(maps) if maps else None)
                found[precision] = compute_metrics(
                    scores.numpy(), labels, evaluation_maps(prediction), masks, exact=True
                )
                detectors[precision] = detector
            times = timed(detectors, test[:TIMED], choice, parsed.threads)
            shown = [
                text
                for metric in ("image_auroc", "aupro")
                for text in compared([getattr(found[precision], metric) for precision in PRECISIONS])
            ]
            rows.append([path.name, name, *shown, *(f"{times[precision]:.1f}" for precision in PRECISIONS)])
            print(rows[-1], flush=True)
    title = ["data", "algorithm"]
    for metric in ("image AUROC", "AUPRO"):
        title += [f"{metric} float32", "bfloat16", "difference"]
    print(table([*title, "ms a picture float32", "bfloat16"], rows))


def compared(values: Sequence[float | None]) -> list[str]:
    """Both values and what changes."""
    exact, coarse = values
    if exact is None or coarse is None:
        return ["-", "-", "-"]
    return [f"{exact:.4f}", f"{coarse:.4f}", f"{coarse - exact:+.4f}"]


def timed(
    detectors: dict[str, Detector], pictures: Sequence[Picture], choice: EngineChoice, threads: int
) -> dict[str, float]:
    """Median milliseconds by precision to score a decoded picture, one at a time."""
    needs = next(iter(detectors.values())).needs
    assert needs.backbone is not None
    engines = {
        precision: create_engine(
            needs.backbone, needs.stages, needs.image_size, engine=choice.name, precision=precision, threads=threads
        )
        for precision in detectors
    }
    images = [load_image(picture.read(), needs.image_size) for picture in pictures]
    seconds: dict[str, list[float]] = {precision: [] for precision in detectors}
    for _ in range(ROUNDS + 1):
        for precision, detector in detectors.items():
            started = time.perf_counter()
            for image in images:
                score(detector, engines[precision], image)
            seconds[precision].append((time.perf_counter() - started) / len(images))
    return {precision: 1000 * statistics.median(values[1:]) for precision, values in seconds.items()}


def score(detector: Detector, engine: Engine, image: np.ndarray) -> Prediction:
    """What a saved model does with one picture."""
    return detector.predict(Inputs(detector.needs.image_size, as_tensors(engine(image[None])), None))


if __name__ == "__main__":
    main()
