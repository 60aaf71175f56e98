from __future__ import annotations

import numpy as np
import pytest

from autoad import evaluation
from autoad.evaluation import (
    by_defect,
    compute_metrics,
    image_metrics,
    pixel_metrics,
)
from autoad.schema import Metrics


def test_public_names_are_sorted_and_exist():
    assert evaluation.__all__ == sorted(evaluation.__all__)
    assert all(hasattr(evaluation, name) for name in evaluation.__all__)


def test_each_defect_is_compared_with_all_normal_pictures(draw_maps):
    maps, masks = draw_maps(12, 32)
    scores = maps.max(axis=(1, 2))
    names = ["dent", "scratch", "dent", "scratch", "dent", "dent"] + ["good"] * 6
    result = by_defect(scores, names, maps, masks)
    assert list(result) == ["dent", "scratch"]
    rows = [0, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    image = image_metrics(scores[rows], np.arange(10) < 4)
    pixel = pixel_metrics(maps[rows], masks[rows], exact=True)
    assert result["dent"] == Metrics(
        image_auroc=image.image_auroc,
        image_aupr=image.image_aupr,
        image_f1_max=image.image_f1_max,
        pixel_auroc=pixel.pixel_auroc,
        aupro=pixel.aupro,
    )


def test_without_maps_masks_normals_or_defects(draw_maps):
    maps, masks = draw_maps(4, 32)
    scores = np.arange(4.0)
    assert by_defect(scores, ["good"] * 4) == {}
    assert by_defect(scores, ["dent"] * 4) == {"dent": Metrics()}
    labels = scores < 2
    assert compute_metrics(scores, labels, maps, None).aupro is None
    assert compute_metrics(scores, labels, None, masks).aupro is None
    assert compute_metrics(scores, labels, maps, masks).aupro is not None
    with pytest.raises(ValueError, match=r"labels_by_name must have the shape \[4\]"):
        by_defect(scores, ["good"] * 3)
