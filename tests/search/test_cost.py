import math

import numpy as np
import pytest

from autoad.search.cost import CostModel
from autoad.search.ladders import AlgorithmLadders
from autoad.search.shares import Standing, choose_algorithm, standard_error
from autoad.search.space import load_spaces


def test_one_trial_tells_of_other_sizes_by_their_pixels() -> None:
    model = CostModel(load_spaces(["padim"]))
    assert model.predict("padim", {"image_size": 256}) is None
    model.observe("padim", {"image_size": 256}, 10.0)
    assert model.predict("padim", {"image_size": 256}) == pytest.approx(10.0)
    assert model.predict("padim", {"image_size": 320}) == pytest.approx(10 * (320 / 256) ** 2, rel=0.01)


def test_the_model_learns_what_makes_trials_dear() -> None:
    spaces = load_spaces(["patchcore"])
    model, generator = CostModel(spaces), np.random.default_rng(0)

    def truth(ratio: float, size: int) -> float:
        return 40 * ratio**0.8 * (size / 256) ** 3

    def draw() -> tuple[float, int]:
        return math.exp(generator.uniform(math.log(0.001), math.log(0.25))), int(generator.choice([192, 256, 320, 384]))

    for _ in range(40):
        ratio, size = draw()
        noise = generator.lognormal(0, 0.1)
        model.observe("patchcore", {"coreset_sampling_ratio": ratio, "image_size": size}, truth(ratio, size) * noise)
    errors = []
    for _ in range(100):
        ratio, size = draw()
        predicted = model.predict("patchcore", {"coreset_sampling_ratio": ratio, "image_size": size})
        assert predicted is not None
        errors.append(abs(math.log(predicted / truth(ratio, size))))
    assert np.median(errors) < 0.1
    assert max(errors) < 0.4


def test_features_cost_once_for_each_backbone_and_size() -> None:
    model = CostModel(load_spaces(["dfm", "padim"]))
    small, large = {"backbone": "b", "image_size": 256}, {"backbone": "b", "image_size": 320}
    assert model.predict_features(small) == 0.0, "nothing is known yet"
    model.observe("dfm", small, 1.0, feature_seconds=16.0)
    model.observe("padim", small, 1.0, feature_seconds=0.01)
    assert model.predict_features(small) == 0.0
    assert model.predict_features(large) == pytest.approx(16 * (320 / 256) ** 2)


def test_the_one_furthest_behind_its_due_is_next() -> None:
    standings = {
        "best": Standing(best=0.95, spent=100.0),
        "near": Standing(best=0.94, spent=50.0),
        "far": Standing(best=0.5, spent=4.0),
        "fails": Standing(spent=5.0, failed=4),
    }
    assert choose_algorithm(standings, 0.02) == "near", "half the time, and due exp(-1/2) of the best's"
    standings["near"].spent = 70.0
    assert choose_algorithm(standings, 0.02) == "best"
    standings["far"].spent = 2.0
    assert choose_algorithm(standings, 0.02) == "far", "even the worst is due three in a hundred"


def test_the_standard_error_is_the_smaller_classs_and_never_zero() -> None:
    assert standard_error(0.5, 100, 25) == pytest.approx(0.1, rel=0.01)
    assert standard_error(0.9, 100, 10) > standard_error(0.9, 100, 100)
    assert standard_error(1.0, 20, 20) > 0


def test_each_algorithm_has_its_own_ladder() -> None:
    ladders = AlgorithmLadders(["stfpm", "cflow", "dfm"])
    for number in range(3):
        assert ladders.goes_on(number, "stfpm", 0.9, 3)
    assert ladders.goes_on(3, "cflow", 0.3, 3), "the first on its ladder has nobody to be worse than"
    assert ladders.goes_on(4, "dfm", 0.1, 0), "one pass"
    assert not ladders.goes_on(5, "stfpm", 0.3, 3)
