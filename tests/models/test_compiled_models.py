"""A saved model scores by compiled networks, in float32; one that was evaluated otherwise goes on as it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoad.algorithms import Detector, Inputs, Runtime, get_algorithm
from autoad.data import load_image, read_dataset
from autoad.errors import UsageError
from autoad.features import EngineChoice, FeatureStore
from autoad.models import Model, Provenance, describe_detector, load_inputs, read_manifest, save_model

CHOICE = EngineChoice("openvino", "float32")
MADE_BY = Provenance(
    code_version="test", search="test", trial=0, dataset_hash="test", dataset_counts={}, evidence="labelled"
)
CONFIGS: dict[str, dict[str, Any]] = {
    "ganomaly": {"image_size": 32, "n_features": 8, "latent_vec_size": 16, "epochs": 1},
    "stfpm": {"image_size": 64, "epochs": 1},
    "reverse_distillation": {"image_size": 64, "epochs": 1},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_scores_in_float32_whatever_it_was_trained_in(name: str, demo: Path, tmp_path: Path) -> None:
    algorithm = get_algorithm(name)
    detector: Detector = algorithm(algorithm.Config(**CONFIGS[name]), runtime=Runtime("cpu", "bfloat16"))
    pictures = read_dataset(demo).pictures[:6]
    inputs: Inputs = load_inputs(FeatureStore(tmp_path / "store"), pictures, detector.needs, CHOICE, 1)
    for _ in detector.fit(inputs):
        pass
    save_model(tmp_path / "model", "model", [describe_detector(detector, CHOICE)], MADE_BY)
    detector.runtime = dataclasses.replace(detector.runtime, precision="float32")
    size = detector.needs.image_size
    images = [load_image(picture.read(), size) for picture in pictures]
    features = {stage: maps.float() for stage, maps in inputs.features.items()}
    expected = detector.predict(Inputs(size, features, torch.from_numpy(np.stack(images))))

    assert read_manifest(tmp_path / "model").members[0].precision == "float32"
    model = Model.load(tmp_path / "model", threads=1)
    with pytest.raises(UsageError, match="must be fitted"):  # it was compiled
        model.parts[0].detector.tensors()
    scores = torch.tensor([score for score, _ in model.predict(images)])
    torch.testing.assert_close(scores, expected.scores, rtol=2e-3, atol=1e-6)  # kept features have 11 bits

    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    manifest["members"][0]["precision"] = "bfloat16"
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(manifest))
    as_it_was = Model.load(tmp_path / "model", threads=1).parts[0].detector
    assert as_it_was.tensors().keys() == detector.tensors().keys()
    assert as_it_was.runtime.precision == "bfloat16"
