"""anomalib's own inferencer behind the simplest FastAPI server; runs in an environment that has anomalib, not autoad.

    python _anomalib_server.py FOLDER PORT SCRATCH WEIGHTS

Trains anomalib's PatchCore on FOLDER (EfficientNet-Lite0 with the weights in WEIGHTS, stages 2 and 3, a 1 % coreset,
256 pixels), exports it, loads the export with ``TorchInferencer``, and answers ``POST /score`` with score and verdict.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any

os.environ["TRUST_REMOTE_CODE"] = "1"  # what loading its pickled export asks for

import safetensors.torch
import uvicorn
from anomalib.data import Folder
from anomalib.deploy import ExportType, TorchInferencer
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from fastapi import Body, FastAPI
from PIL import Image
from torchvision.transforms.v2 import Compose, Normalize, Resize


def main(folder: Path, port: int, scratch: Path, weights: Path) -> None:
    """Train, export, serve."""
    transform = Compose([Resize((256, 256), antialias=True), Normalize([0.5] * 3, [0.5] * 3)])
    model = Patchcore(
        backbone="tf_efficientnet_lite0",
        layers=["blocks.2", "blocks.4"],
        pre_trained=False,
        coreset_sampling_ratio=0.01,
        pre_processor=PreProcessor(transform=transform),
    )
    pyramid = model.model.feature_extractor.feature_extractor
    state = safetensors.torch.load_file(weights)
    pyramid.load_state_dict({key.removeprefix("network."): value for key, value in state.items()}, strict=True)
    data = Folder("bench", root=folder, normal_dir="train/good", test_split_mode="synthetic", train_batch_size=8)
    engine = Engine(default_root_dir=scratch / "anomalib", accelerator="cpu", devices=1, logger=False)
    engine.fit(model, datamodule=data)
    exported = engine.export(model, ExportType.TORCH)
    inferencer = TorchInferencer(exported, device="cpu")

    app = FastAPI()

    @app.get("/health")
    def health() -> str:
        return "up"

    @app.post("/score")
    def score(picture: Annotated[bytes, Body(media_type="image/png")]) -> dict[str, Any]:
        answer = inferencer.predict(Image.open(io.BytesIO(picture)).convert("RGB"))
        return {"score": float(answer.pred_score), "is_anomalous": bool(answer.pred_label)}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
