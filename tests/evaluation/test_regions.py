from __future__ import annotations

import numpy as np
import pytest

from autoad.evaluation import Region, find_regions


def test_boxes_are_in_pixels_of_the_original_picture():
    anomaly_map = np.zeros((64, 128), dtype=np.float32)
    anomaly_map[8:16, 32:64] = 2.0
    anomaly_map[10, 40] = 5.0
    assert find_regions(anomaly_map, 1.0, (640, 640)) == [
        Region(x=160, y=80, width=160, height=80, area=8 * 32 * 10 * 5, score=5.0)
    ]


def test_strongest_first_and_corners_connect():
    anomaly_map = np.zeros((50, 50), dtype=np.float32)
    anomaly_map[0:10, 0:10] = 2.0
    anomaly_map[10:20, 10:20] = 3.0  # touches the first at a corner
    anomaly_map[40:45, 40:50] = 4.0
    regions = find_regions(anomaly_map, 1.0, (50, 50))
    assert [(region.x, region.y, region.width, region.height, region.score) for region in regions] == [
        (40, 40, 10, 5, 4.0),
        (0, 0, 20, 20, 3.0),
    ]
    assert [region.area for region in regions] == [50, 200]


def test_specks_are_dropped_unless_there_is_nothing_else():
    anomaly_map = np.zeros((256, 256), dtype=np.float32)
    anomaly_map[0, 0] = 9.0
    anomaly_map[100, 100:106] = 3.0  # six pixels: still a speck
    assert [(region.x, region.area) for region in find_regions(anomaly_map, 1.0, (256, 256))] == [(0, 1)]
    anomaly_map[100, 106] = 3.0  # seven
    assert [(region.x, region.area) for region in find_regions(anomaly_map, 1.0, (256, 256))] == [(100, 7)]


def test_boxes_stay_within_the_picture_and_cover_what_they_found():
    rng = np.random.default_rng(0)
    anomaly_map = rng.random((37, 53)).astype(np.float32)
    regions = find_regions(anomaly_map, 0.7, (101, 97))
    assert len(regions) > 1
    for region in regions:
        assert 0 <= region.x < region.x + region.width <= 97
        assert 0 <= region.y < region.y + region.height <= 101
        assert 1 <= region.area <= (region.width + 3) * (region.height + 3)
    peak = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    y, x = (peak[0] + 0.5) * 101 / 37, (peak[1] + 0.5) * 97 / 53
    assert regions[0].x <= x <= regions[0].x + regions[0].width
    assert regions[0].y <= y <= regions[0].y + regions[0].height
    assert regions[0].score == pytest.approx(anomaly_map.max())


def test_exactly_at_the_threshold_is_normal():
    assert find_regions(np.ones((8, 8), dtype=np.float32), 1.0, (8, 8)) == []
    assert len(find_regions(np.ones((8, 8), dtype=np.float32), np.nextafter(1.0, 0.0), (8, 8))) == 1


def test_refuses_what_is_no_map():
    with pytest.raises(ValueError, match=r"anomaly_map must have the shape \[h, w\] but got \[1, 8, 8\]"):
        find_regions(np.ones((1, 8, 8), dtype=np.float32), 1.0, (8, 8))
    with pytest.raises(ValueError, match="anomaly_map must be finite"):
        find_regions(np.full((8, 8), np.nan, dtype=np.float32), 1.0, (8, 8))
