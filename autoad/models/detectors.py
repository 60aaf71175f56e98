"""What stands between pictures and a detector, and between a fitted detector and a saved model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from autoad.algorithms import Detector, Inputs, Needs
from autoad.data import Picture
from autoad.features import EngineChoice, FeatureStore, as_tensors, find_weights
from autoad.models.artifact import Backbone, Member, Standard

__all__ = ["describe_detector", "load_inputs"]


def load_inputs(
    store: FeatureStore, pictures: Sequence[Picture], needs: Needs, engine: EngineChoice, threads: int = 1
) -> Inputs:
    """The pictures as a detector wants them, from the feature store.

    Args:
        store: computes what it does not hold.
        pictures: may repeat.
        needs: of the detector.
        engine: runs the backbone.
        threads: CPU threads of that.

    Raises:
        UnreadableImageError: a picture cannot be decoded.
        WeightsError: the backbone's weights cannot be reached.
    """
    features = {}
    if needs.backbone is not None:
        arrays = store.features(
            pictures,
            backbone=needs.backbone,
            stages=needs.stages,
            image_size=needs.image_size,
            engine=engine,
            threads=threads,
        )
        features = as_tensors(arrays)
    images = as_tensors({0: store.images(pictures, needs.image_size)})[0] if needs.images else None
    if images is not None:
        images = images.permute(0, 2, 3, 1)
    return Inputs(needs.image_size, features, images)


def describe_detector(
    detector: Detector, engine: EngineChoice, standard: Standard | None = None
) -> tuple[Member, dict[str, Tensor]]:
    """A fitted detector as a member of a model: all that scoring by it takes, and its tensors.

    Args:
        detector: that was fitted.
        engine: which ran the backbone over the pictures that it was fitted on.
        standard: of a member of an ensemble.
    """
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
            engine=engine.name,
            precision=engine.precision,
        )
    on_gpu = detector.runtime.device.startswith("cuda")
    member = Member(
        algorithm=detector.name,
        kind=detector.kind,
        config=dataclasses.asdict(detector.config),
        seed=detector.seed,
        image_size=needs.image_size,
        device="cuda" if on_gpu else "cpu",
        precision="float32" if detector.compiles and not on_gpu else detector.runtime.precision,
        backbone=backbone,
        standard=standard,
    )
    return member, detector.tensors()
