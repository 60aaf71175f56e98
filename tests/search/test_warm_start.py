import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoad.algorithms import get_algorithm
from autoad.data import Picture, read_dataset
from autoad.database import Database
from autoad.features import FeatureStore, choose_engine
from autoad.schema import Metrics, TrialRow
from autoad.search import warm_start as module
from autoad.search.jobs import Suggestion
from autoad.search.plan import Plan, SearchRequest, make_plan
from autoad.search.space import load_spaces
from autoad.search.warm_start import Earlier, WarmStart, choose_configurations, distance, fingerprint, warm_start
from autoad.settings import Settings
from tests.conftest import Run

SPACES = {
    name: space.without_backbones(space.backbones() - {"tf_efficientnet_lite0"})
    for name, space in load_spaces(["dfm", "padim", "patchcore"]).items()
}


def row(trial: int, algorithm: str, auroc: float, **changes: Any) -> TrialRow:
    """A finished trial as the database gives it back: lists where the configuration had tuples."""
    config = json.loads(json.dumps(SPACES[algorithm].defaults() | changes))
    return TrialRow(
        trial=trial, algorithm=algorithm, config=config, proposed=config, status="complete",
        validation=Metrics(image_auroc=auroc),
    )  # fmt: skip


def chosen(*earlier: Earlier) -> list[tuple[str, str, dict[str, Any]]]:
    """Source, algorithm and what differs from the default."""
    return [
        (
            source.name,
            suggestion.algorithm,
            {k: v for k, v in suggestion.config.items() if v != SPACES[suggestion.algorithm].defaults()[k]},
        )
        for suggestion, source in choose_configurations(earlier, SPACES, "image_auroc")
    ]


def test_the_best_of_each_algorithm_and_never_a_default() -> None:
    rows = [
        row(0, "dfm", 0.99),
        row(1, "dfm", 0.98, stage=2),
        row(2, "padim", 0.7, n_features=60),
        row(3, "padim", 0.8, n_features=70, stages=(2, 3)),
        row(4, "patchcore", 0.9, patch_size=5, sigma=8.0),
        row(5, "patchcore", 0.97, patch_size=7).model_copy(update={"status": "pruned"}),
    ]
    assert chosen(Earlier("near", 0.1, rows)) == [
        ("near", "patchcore", {"patch_size": 5}),  # sigma is swept anyway
        ("near", "padim", {"n_features": 70, "stages": (2, 3)}),
    ]


def test_the_winner_of_each_search_comes_before_any_second() -> None:
    near = Earlier("near", 0.1, [row(0, "dfm", 0.6, stage=2), row(1, "padim", 0.7, n_features=60)])
    far = Earlier("far", 0.2, [row(0, "patchcore", 0.99, patch_size=1), row(1, "padim", 0.98, n_features=500)])
    assert [(source, algorithm) for source, algorithm, _ in chosen(near, far)] == [
        ("near", "padim"), ("far", "patchcore"), ("near", "dfm")
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 640},
        {"image_size": 250},
        {"n_features": 60.5},
        {"n_features": True},
        {"n_features": "60"},
        {"stages": (1,)},
        {"backbone": "wide_resnet50_2"},
        {"unknown": 1},
    ],
)
def test_what_the_new_search_may_not_try_makes_way_for_what_it_may(changes: dict[str, Any]) -> None:
    rows = [row(0, "padim", 0.9, **changes), row(1, "padim", 0.8, n_features=77)]
    assert chosen(Earlier("near", 0.1, rows)) == [("near", "padim", {"n_features": 77})]


def test_an_algorithm_that_is_not_searched_is_left_out() -> None:
    earlier = Earlier("near", 0.1, [row(0, "padim", 0.9, n_features=60)])
    assert choose_configurations([earlier], {"dfm": SPACES["dfm"]}, "image_auroc") == []


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings)
    yield database
    database.close()


@pytest.fixture
def plan(demo: Path) -> Plan:
    return make_plan(SearchRequest(data=demo, algorithms=("dfm", "padim", "patchcore"), trials=9))


def add(database: Database, settings: Settings, name: str, print_: list[float], *rows: TrialRow, **of: Any) -> None:
    """A search that is complete."""
    database.add_search(name, name, of.get("hash", name), {}, {"objective": of.get("objective", "image_auroc")})
    database.write_fingerprint(name, print_)
    for one in rows:
        database.write_trial(name, one)
    folder = settings.searches_dir / name
    folder.mkdir(parents=True)
    (folder / "roles.json").write_text(json.dumps({"role_of": of.get("role_of", {})}))
    database.update_search(name, status=of.get("status", "complete"))


def begin(database: Database, settings: Settings, plan: Plan, name: str = "new") -> WarmStart:
    """A new search whose pictures have the fingerprint (1, 0)."""
    database.add_search(name, name, plan.dataset.hash, {}, {"objective": plan.objective})
    database.write_fingerprint(name, [1.0, 0.0])
    return warm_start(plan, name, database, settings, threads=1)


def test_the_nearest_are_chosen_and_named(database: Database, settings: Settings, plan: Plan) -> None:
    add(database, settings, "far", [0.6, 0.0], row(0, "dfm", 0.99, stage=1))
    add(database, settings, "same", [1.0, 0.0], row(0, "padim", 0.7, n_features=60), hash=plan.dataset.hash)
    add(database, settings, "near", [0.9, 0.0], row(0, "patchcore", 0.8, patch_size=1))
    add(database, settings, "unrelated", [0.0, 1.0], row(0, "patchcore", 1.0, patch_size=5))
    found = begin(database, settings, plan)
    assert [(s.origin, s.algorithm) for s in found.suggestions] == [("warm", "padim"), ("warm", "patchcore")]
    assert found.notes == (
        "warm start: 1 configuration from search same (the same pictures)",
        "warm start: 1 configuration from search near (pictures at distance 0.10)",
    )


def test_searches_that_do_not_count(database: Database, settings: Settings, plan: Plan) -> None:
    best = row(0, "dfm", 0.99, stage=1)
    elsewhere = Database(settings.model_copy(update={"project": "another"}))
    add(elsewhere, settings, "theirs", [1.0, 0.0], best)
    elsewhere.close()
    add(database, settings, "other-objective", [1.0, 0.0], best, objective="aupro")
    add(database, settings, "interrupted", [1.0, 0.0], best, status="interrupted")
    add(database, settings, "other-network", [1.0, 0.0, 0.0], best)
    assert begin(database, settings, plan) == WarmStart()
    add(database, settings, "later", [1.0, 0.0], best)
    assert warm_start(plan, "new", database, settings, threads=1) == WarmStart(), "a resumed search sees nothing newer"
    assert begin(database, settings, plan, "next").suggestions == (
        Suggestion("warm", "dfm", SPACES["dfm"].defaults() | {"stage": 1}),
    )


def test_what_was_selected_by_pictures_that_test_now_does_not_count(
    database: Database, settings: Settings, plan: Plan
) -> None:
    best = row(0, "dfm", 0.99, stage=1)
    picture = plan.roles.test[0].sha256
    add(database, settings, "clean", [0.9, 0.0], best, role_of={picture: "test"})
    assert len(begin(database, settings, plan).suggestions) == 1
    add(database, settings, "overlapping", [1.0, 0.0], best, role_of={picture: "selection"})
    add(database, settings, "unknown", [1.0, 0.0], best)
    (settings.searches_dir / "unknown" / "roles.json").unlink()
    found = begin(database, settings, plan, "next")
    assert found.notes == (
        "warm start: not from search unknown, for pictures that it selected by test now",
        "warm start: not from search overlapping, for pictures that it selected by test now",
        "warm start: 1 configuration from search clean (pictures at distance 0.10)",
    )


def test_never_in_a_deterministic_search_nor_against_the_users_will(
    database: Database, settings: Settings, demo: Path
) -> None:
    add(database, settings, "near", [1.0, 0.0], row(0, "dfm", 0.99, stage=1))
    for number, options in enumerate(({"deterministic": True}, {"warm_start": False})):
        request = SearchRequest(data=demo, algorithms=("dfm",), trials=9, seconds=None, **options)
        assert begin(database, settings, make_plan(request), str(number)) == WarmStart()


def test_a_fingerprint_is_the_mean_and_spread_of_pooled_features(demo: Path, tmp_path: Path) -> None:
    train = [p for p in read_dataset(demo).pictures if p.split == "train"][:6]
    engine = choose_engine()
    found = fingerprint(FeatureStore(tmp_path), train, engine)
    detector = get_algorithm("dfkde")
    needs = detector(detector.Config(stages=(3,))).needs
    (features,) = (
        FeatureStore(tmp_path)
        .features(train, backbone=needs.backbone or "", stages=(3,), image_size=(256, 256), engine=engine)
        .values()
    )
    pooled = features.astype(np.float64).reshape(len(train), -1, features.shape[-1]).mean(axis=1)
    mean, spread = pooled.mean(axis=0), pooled.std(axis=0)
    expected = np.concatenate([mean / np.linalg.norm(mean), spread / np.linalg.norm(spread)]) / np.sqrt(8)
    start = 2 * (24 + 40)  # channels of stages 1 and 2
    np.testing.assert_allclose(found[start : start + len(expected)], expected, atol=1e-5)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-3)
    assert distance(found, fingerprint(FeatureStore(tmp_path), train[::-1], engine)) == pytest.approx(0, abs=1e-4)


def test_a_fingerprint_looks_at_64_pictures_across_the_training_role(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Picture] = []

    class Store:
        def features(self, pictures: list[Picture], **_: Any) -> dict[int, Any]:
            seen.extend(pictures)
            return {stage: np.ones((len(pictures), 2, 2, 3), np.float16) for stage in (1, 2, 3, 4)}

    pictures = [Picture(Path(str(n)), str(n)) for n in range(640)]
    fingerprint(Store(), pictures, choose_engine())  # type: ignore[arg-type]
    assert len(seen) == module._PICTURES
    assert (seen[0], seen[-1]) == (pictures[0], pictures[-1])


def test_a_search_tries_after_the_defaults_what_an_earlier_one_has_found(
    autoad: Run, demo: Path, database: Database, settings: Settings
) -> None:
    plan = make_plan(SearchRequest(data=demo, trials=9))
    store = FeatureStore(settings.features_dir)
    halves = [fingerprint(store, plan.roles.train[start::2], plan.engine) for start in (0, 1)]
    add(database, settings, "first", halves[0], row(0, "dfm", 1.0, stage=2, pca_level=0.95))
    add(database, settings, "unrelated", list(-np.array(halves[1])), row(0, "dfm", 1.0, stage=1))
    done = autoad(
        *("search", "--data", demo, "--algorithms", "dfkde,dfm", "--trials", 3, "--name", "second", "--json"),
        "--keep-suspicious",
        AUTOAD_DATA_DIR=str(settings.data_dir),
    )
    assert done.returncode == 0, done.stderr
    second = json.loads(done.stdout)
    rows = {row["trial"]: row for row in second["leaderboard"]}
    assert [rows[n]["origin"] for n in range(3)] == ["default", "default", "warm"]
    assert rows[2]["proposed"] == json.loads(json.dumps(SPACES["dfm"].defaults() | {"stage": 2, "pca_level": 0.95}))
    assert rows[2]["status"] == "complete"
    (note,) = [note for note in second["notes"] if note.startswith("warm")]
    assert "1 configuration from search first (pictures at distance 0.0" in note
    assert note in done.stderr
    print_ = database.find_search("second").fingerprint
    assert print_ is not None
    assert distance(print_, halves[0]) < 0.2 < distance(print_, list(-np.array(halves[1])))
