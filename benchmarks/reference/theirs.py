"""anomalib's side of the comparison; runs in an environment that has anomalib, not autoad.

Everything goes through anomalib's public interface: ``Engine.fit`` with its own model, data module, batch size and
optimiser, without validation and without the
checkpoint that it writes in the end; scores and maps are the model's raw ones. Two things are
put in its way: timm's pretrained weights come from a file instead of a hub, and a clock looks at its epochs.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["TRUST_REMOTE_CODE"] = "1"  # what loading its pickled export asks for

import numpy as np
import timm
import torch
from anomalib.data import Folder
from anomalib.data.utils import TestSplitMode, ValSplitMode, read_image
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from anomalib.metrics.aupr import _AUPR
from anomalib.metrics.aupro import _AUPRO
from anomalib.metrics.auroc import _AUROC
from anomalib.models import Cflow, Dfkde, Dfm, Ganomaly, Padim, Patchcore, ReverseDistillation, Stfpm
from anomalib.models.components import KCenterGreedy
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Checkpoint
from loop import peak_memory, serve
from safetensors.torch import load_file
from torchvision.transforms.v2 import Compose, Normalize, Resize

logging.disable(logging.INFO)
warnings.filterwarnings("ignore")

_LAYERS = {
    "tf_efficientnet_lite0": {1: "blocks.1", 2: "blocks.2", 3: "blocks.4", 4: "blocks.6"},
    "resnet18": {1: "layer1", 2: "layer2", 3: "layer3", 4: "layer4"},
}
_MODELS: dict[str, Any] = {
    "padim": Padim,
    "patchcore": Patchcore,
    "dfkde": Dfkde,
    "dfm": Dfm,
    "stfpm": Stfpm,
    "reverse_distillation": ReverseDistillation,
    "cflow": Cflow,
    "ganomaly": Ganomaly,
}


class _Clock(Checkpoint):
    """Seconds of each epoch, and when the last one ended.

    It counts as a checkpoint, so that it is called after the model's own work at the end of an epoch (which is where
    memory banks are made) and before a checkpoint is written, whose time is not counted.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.ended = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self.seconds.append(-time.perf_counter())

    def on_train_epoch_end(self, *_: Any) -> None:
        self.ended = time.perf_counter()
        self.seconds[-1] += self.ended


class Theirs:
    """One model at a time."""

    def open(self, folder: str, weights: dict[str, str], size: int, threads: int, scratch: str) -> dict[str, str]:
        """Take notice of a folder, load its test pictures, and say which versions these are.

        Args:
            folder: in MVTec layout, with ``test.txt`` that lists the test pictures in order.
            weights: file of a feature pyramid's tensors, by timm name.
            size: height and width of the pictures.
            threads: for torch.
            scratch: folder for what is exported.
        """
        torch.set_num_threads(threads)
        self._folder, self._size, self._scratch = Path(folder), size, Path(scratch)
        create = timm.create_model

        def create_with_weights(name: str, *args: Any, pretrained: bool = False, **options: Any) -> Any:
            network = create(name, *args, pretrained=False, **options)
            if pretrained:
                given = load_file(weights[name])
                network.load_state_dict({key: given[key] for key in network.state_dict()}, strict=True)
            return network

        timm.create_model = create_with_weights
        names = (self._folder / "test.txt").read_text().splitlines()
        self._tests = torch.stack([read_image(self._folder / name, as_tensor=True) for name in names])
        return {"anomalib": version("anomalib"), "torch": torch.__version__, "timm": timm.__version__}

    def fit(
        self, algorithm: str, config: dict[str, Any], epochs: int | None, seed: int, batch: int = 32
    ) -> dict[str, Any]:
        """Fit on ``train/good``, from the files; whole seconds, and those of each epoch."""
        seed_everything(seed, verbose=False)
        started = time.perf_counter()
        self._model = self._create(algorithm, config)
        if algorithm == "padim":  # the channels that autoad draws from that seed: chance decides more than the rest
            every = torch.randperm(self._model.model.n_features_original, generator=torch.Generator().manual_seed(seed))
            self._model.model.idx.copy_(every[: len(self._model.model.idx)].sort().values)
        # On two cores loader processes only take time from torch (measured: README).
        data = Folder(
            "bench",
            root=self._folder,
            normal_dir="train/good",
            test_split_mode=TestSplitMode.NONE,
            val_split_mode=ValSplitMode.NONE,
            train_batch_size=batch,
            num_workers=0,
        )
        clock = _Clock()
        self._engine = Engine(
            default_root_dir=self._scratch / "anomalib",
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
            limit_val_batches=0,
            **({} if epochs is None else {"max_epochs": epochs}),
        )
        self._engine.fit(self._model, datamodule=data)
        self._model.eval()
        return {"seconds": clock.ended - started, "epochs": clock.seconds, "pictures": len(data.train_data)}

    def score(self, output: str, batch: int = 16) -> None:
        """Write raw scores and maps of the test pictures; for DFKDE also the log density that its scores underflow."""
        parts = [self._predict(self._tests[i : i + batch]) for i in range(0, len(self._tests), batch)]
        found = {"scores": torch.cat([part.pred_score.flatten() for part in parts]).float().numpy()}
        if parts[0].anomaly_map is not None:
            maps = torch.cat([part.anomaly_map for part in parts])
            found["maps"] = maps.reshape(len(maps), *maps.shape[-2:]).float().numpy()
        if isinstance(self._model, Dfkde):
            found["mended"] = self._log_density()
        np.savez(output, **found)

    def predict_seconds(self, batch: int) -> float:
        """Seconds to score all test pictures, from decoded pixels in memory to raw scores and maps."""
        started = time.perf_counter()
        for i in range(0, len(self._tests), batch):
            self._predict(self._tests[i : i + batch])
        return time.perf_counter() - started

    def coreset(self, points: str, ratio: float, output: str) -> float:
        """Seconds of its coreset sampling alone; the chosen rows are written."""
        seed_everything(0, verbose=False)
        bank = torch.from_numpy(np.load(points))
        started = time.perf_counter()
        chosen = KCenterGreedy(embedding=bank, sampling_ratio=ratio).select_coreset_idxs()
        seconds = time.perf_counter() - started
        np.save(output, np.array([int(one) for one in chosen]))
        return seconds

    def try_out(self, algorithm: str, config: dict[str, Any]) -> float:
        """Seconds to fit (with the batch that is fastest) and to score the test pictures."""
        started = time.perf_counter()
        self.fit(algorithm, config, None, 0, batch=4)
        self.predict_seconds(1)
        return time.perf_counter() - started

    def save(self) -> str:
        """Export for anomalib's own inferencer; the file."""
        return str(self._engine.export(self._model, ExportType.TORCH, export_root=self._scratch))

    def metrics(self, scores: str, truth: str) -> dict[str, float]:
        """Metrics of given scores and maps by anomalib's code."""
        given, known = np.load(scores), np.load(truth)
        labels = torch.from_numpy(known["labels"]).int()
        found = {}
        for name, metric in (("image_auroc", _AUROC), ("aupr", _AUPR)):
            one = metric()
            one.update(_unit(given["scores"]), labels)
            found[name] = float(one.compute())
        if "maps" in given and len(known["known"]):
            maps, masks = _unit(given["maps"][known["known"]]), torch.from_numpy(known["masks"]).int()
            for name, metric in (("pixel_auroc", _AUROC), ("aupro", _AUPRO)):
                one = metric()
                one.update(maps, masks)
                found[name] = float(one.compute())
        return found

    def peak(self) -> float:
        """Peak resident memory so far, MiB."""
        return peak_memory()

    @torch.inference_mode()
    def _predict(self, images: torch.Tensor) -> Any:
        return self._model.model(self._model.pre_processor(images))

    @torch.inference_mode()
    def _log_density(self) -> np.ndarray:
        """Minus the log of its own kernel density, summed in float64 as logarithms."""
        classifier, kde = self._model.model.classifier, self._model.model.classifier.kde_model
        batches = self._tests.split(16)
        features = torch.cat([self._model.model.get_features(self._model.pre_processor(one)) for one in batches])
        reduced, _ = classifier.pre_process(classifier.pca_model.transform(features), classifier.max_length)
        points = kde.dataset.double()
        white = reduced.double() @ kde.bw_transform.double()
        squares = torch.cdist(white, points).square()
        return -torch.logsumexp(-0.5 * squares, dim=1).numpy()

    def _create(self, algorithm: str, config: dict[str, Any]) -> Any:
        config = dict(config)
        backbone = config.get("backbone")
        for name in ("stages", "stage"):
            if name in config:
                stages = config.pop(name)
                layers = _LAYERS[backbone]
                config |= {"layer": layers[stages]} if name == "stage" else {"layers": [layers[s] for s in stages]}
        size = (config.pop("image_size", self._size),) * 2
        mean, std = ([0.5] * 3, [0.5] * 3)
        if backbone == "resnet18":
            mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        transform = Compose([Resize(size, antialias=True), Normalize(mean, std)])
        model = _MODELS[algorithm](pre_processor=PreProcessor(transform=transform), **config)
        return model


def _unit(values: np.ndarray) -> torch.Tensor:
    """Values between 0 and 1 in the same order: outside of that torchmetrics squashes them until they tie."""
    values = values.astype(np.float64)
    return torch.from_numpy((values - values.min()) / max(float(np.ptp(values)), 1e-300))


if __name__ == "__main__":
    serve(Theirs())
