from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from autoad.errors import ArtifactError, StateError, UnknownNameError, UnreadableImageError
from autoad.features import EnginePool
from autoad.models import Model
from autoad.models.model import Part
from autoad.schema import RouteEntry
from autoad.serve.options import ServeOptions
from autoad.serve.routing import NoChampionError, request_share
from autoad.serve.scorer import Scorer

P = "default"
Main = Callable[["Routes", Scorer], Awaitable[None]]


class Routes:
    """Routes that a test changes, and artifacts that it holds back."""

    def __init__(self, plant: Any, **routes: Any) -> None:
        self.plant = plant
        self.rows: dict[tuple[str, str], RouteEntry] = {}
        self.beats: list[tuple[list[str], dict[str, str]]] = []
        self.left: list[str] = []
        self.opened: Counter[str] = Counter()
        self.doors: dict[str, threading.Event] = {}
        self.failures: dict[str, Exception] = {}
        self.broken = False
        self.asked = 0
        for name, fields in routes.items():
            self.set(name, **fields)

    def set(self, name: str, **fields: Any) -> None:
        before = self.rows.get((P, name), RouteEntry(project=P, name=name, generation=0))
        self.rows[P, name] = before.model_copy(update={**fields, "generation": before.generation + 1})

    def shut(self, version: str) -> threading.Event:
        self.doors[version] = threading.Event()
        return self.doors[version]

    def open(self, name: str, version: int, project: str | None = None) -> Path:
        assert project == P
        what = f"{name}/{version}"
        self.opened[what] += 1
        if what in self.doors:
            assert self.doors[what].wait(20)
        if what in self.failures:
            raise self.failures[what]
        folder: Path = self.plant.folder(name, version)
        if not folder.exists():
            raise UnknownNameError(f"version of {name!r}", str(version), ["1"])
        return folder

    def _ask(self) -> None:
        self.asked += 1
        if self.broken:
            raise OSError("no route to the database")

    def routes(self) -> dict[tuple[str, str], RouteEntry]:
        self._ask()
        return dict(self.rows)

    def mark(self) -> tuple[int, int]:
        self._ask()
        return len(self.rows), sum(row.generation for row in self.rows.values())

    def beat(self, replica: str, loaded: Sequence[str], failed: dict[str, str]) -> None:
        self._ask()
        self.beats.append((list(loaded), dict(failed)))

    def leave(self, replica: str) -> None:
        self.left.append(replica)


def run(routes: Routes, main: Main, **options: Any) -> None:
    async def within() -> None:
        scorer = Scorer(routes, ServeOptions(**{"threads": 2, "poll_seconds": 0.02, "replicas": 1} | options), "r1")
        await scorer.start()
        try:
            await main(routes, scorer)
        finally:
            await scorer.stop()

    asyncio.run(within())


async def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 15
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def ask(
    scorer: Scorer, data: bytes, wanted: str | None = None, *, name: str = "gravel", request: str = "r"
) -> Any:
    return await scorer.score(P, name, [data], wanted=wanted, request_id=request)


def count(scorer: Scorer, sample: str) -> float:
    """The value of a line of the metrics, 0 if there is none yet."""
    for line in scorer.metrics.text().decode().splitlines():
        if line.startswith(sample + " "):
            return float(line.rpartition(" ")[2])
    return 0.0


def shadow_count(scorer: Scorer, outcome: str, version: int = 2) -> float:
    labels = f'model="gravel",outcome="{outcome}",project="default",replica="r1",version="{version}"'
    return count(scorer, f"autoad_shadow_pictures_total{{{labels}}}")


def test_each_alias_and_number_answers_by_its_version(plant: Any) -> None:
    async def main(_: Routes, scorer: Scorer) -> None:
        data = plant.pictures[0]
        models = {version: Model.load(plant.folder("gravel", version)) for version in (1, 2)}
        for wanted, version in [
            (None, 2),
            ("champion", 2),
            ("previous", 1),
            ("shadow", 1),
            ("1", 1),
            ("2", 2),
        ]:
            answer = await ask(scorer, data, wanted)
            assert answer.version == version, wanted
            assert answer.scores[0].score == models[version].score(data).score
            assert answer.calibration == models[version].manifest.calibration
        assert models[1].manifest.calibration != models[2].manifest.calibration
        with pytest.raises(NoChampionError, match="no version of 'gravel' is canary"):
            await ask(scorer, data, "canary")
        with pytest.raises(UnknownNameError, match="Did you mean 'previous'"):
            await ask(scorer, data, "previos")
        with pytest.raises(UnknownNameError, match="version of 'gravel' '77'"):
            await ask(scorer, data, "77")
        with pytest.raises(NoChampionError, match="no version of 'belt' has been promoted"):
            await ask(scorer, data, name="belt")
        assert (await ask(scorer, data, "1", name="belt")).version == 1
        with pytest.raises(UnknownNameError, match=r"unknown model 'grave'\. Did you mean 'gravel'"):
            await ask(scorer, data, name="grave")
        with pytest.raises(UnreadableImageError):
            await ask(scorer, b"text")

    run(Routes(plant, gravel={"champion": 2, "previous": 1, "shadow": 1}, belt={}), main)


def test_the_canary_gets_its_share_and_an_id_always_the_same_version(plant: Any) -> None:
    async def main(_: Routes, scorer: Scorer) -> None:
        ids = [f"request-{index}" for index in range(60)]
        expected = [2 if request_share(one) < 0.3 else 1 for one in ids]
        assert {1, 2} == set(expected)
        for _turn in range(2):
            answers = await asyncio.gather(*(ask(scorer, plant.pictures[0], request=one) for one in ids))
            assert [answer.version for answer in answers] == expected
        # Who names a version gets it.
        chosen = ids[expected.index(2)]
        assert (await ask(scorer, plant.pictures[0], "champion", request=chosen)).version == 1
        assert (await ask(scorer, plant.pictures[0], "canary", request=ids[expected.index(1)])).version == 2

    run(Routes(plant, gravel={"champion": 1, "canary": 2, "canary_share": 0.3}), main)


def test_a_new_champion_is_loaded_before_it_answers(plant: Any) -> None:
    async def main(routes: Routes, scorer: Scorer) -> None:
        data = plant.pictures[0]
        door = routes.shut("gravel/2")
        routes.set("gravel", champion=2, previous=1)
        await until(lambda: routes.opened["gravel/2"])
        for _ in range(3):
            assert (await ask(scorer, data)).version == 1
        # Other models' changes are taken over meanwhile.
        routes.set("belt", champion=1)
        await until(lambda: scorer.routes[P, "belt"].champion)
        assert (await ask(scorer, data, name="belt")).version == 1
        assert (await ask(scorer, data)).version == 1
        door.set()
        await until(lambda: scorer.routes[P, "gravel"].champion == 2)
        opened = routes.opened["gravel/2"]
        assert (await ask(scorer, data)).version == 2
        assert routes.opened["gravel/2"] == opened == 1

    run(Routes(plant, gravel={"champion": 1}, belt={}), main)


def test_requests_under_way_end_with_their_version(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(routes: Routes, scorer: Scorer) -> None:
        started, hold = threading.Event(), threading.Event()
        measure = Part.measure

        def slow(self: Part, *arguments: Any) -> Any:
            if not started.is_set():
                started.set()
                assert hold.wait(20)
            return measure(self, *arguments)

        monkeypatch.setattr(Part, "measure", slow)
        under_way = [asyncio.create_task(ask(scorer, plant.pictures[0])) for _ in range(4)]
        await until(started.is_set)
        routes.set("gravel", champion=2, previous=1)
        await until(lambda: scorer.routes[P, "gravel"].champion == 2)
        later = asyncio.create_task(ask(scorer, plant.pictures[0]))
        await asyncio.sleep(0.02)
        hold.set()
        assert [(await one).version for one in under_way] == [1] * 4
        assert (await later).version == 2

    run(Routes(plant, gravel={"champion": 1}), main)


def test_a_change_that_is_overtaken_is_not_taken_over(plant: Any) -> None:
    async def main(routes: Routes, scorer: Scorer) -> None:
        door = routes.shut("gravel/2")
        routes.set("gravel", champion=2, previous=1)
        await until(lambda: routes.opened["gravel/2"])
        routes.set("gravel", champion=1, previous=None)
        await until(lambda: scorer.routes[P, "gravel"].generation == 3)
        door.set()
        await until(lambda: f"{P}/gravel/2" in routes.beats[-1][0])
        assert scorer.routes[P, "gravel"].champion == 1
        assert (await ask(scorer, plant.pictures[0])).version == 1

    run(Routes(plant, gravel={"champion": 1}), main)


def test_a_staged_version_is_loaded_and_reported(plant: Any) -> None:
    async def main(routes: Routes, scorer: Scorer) -> None:
        await until(lambda: routes.beats)
        assert routes.beats[-1] == ([f"{P}/gravel/1"], {})
        routes.set("gravel", staged=2)
        await until(lambda: f"{P}/gravel/2" in routes.beats[-1][0])
        assert (await ask(scorer, plant.pictures[0])).version == 1
        assert (await ask(scorer, plant.pictures[0], "2")).version == 2

    run(Routes(plant, gravel={"champion": 1}), main)


def test_a_replica_that_starts_during_a_promotion_loads_what_is_staged_too(plant: Any) -> None:
    async def main(routes: Routes, scorer: Scorer) -> None:
        await until(lambda: routes.beats and f"{P}/gravel/2" in routes.beats[-1][0])
        assert (await ask(scorer, plant.pictures[0])).version == 1

    run(Routes(plant, gravel={"champion": 1, "staged": 2}), main)


def test_why_a_version_cannot_be_loaded_is_reported_and_forgotten_when_nobody_wants_it(plant: Any) -> None:
    async def main(routes: Routes, scorer: Scorer) -> None:
        routes.failures["gravel/2"] = ArtifactError("damaged")
        routes.set("gravel", staged=2)
        await until(lambda: routes.beats and routes.beats[-1][1] == {f"{P}/gravel/2": "damaged"})
        with pytest.raises(ArtifactError, match="damaged"):
            await ask(scorer, plant.pictures[0], "2")
        assert (await ask(scorer, plant.pictures[0])).version == 1
        # The promotion is given up; the next one must not be told of the old failure.
        routes.set("gravel", staged=None)
        await until(lambda: routes.beats[-1][1] == {})
        del routes.failures["gravel/2"]
        before = len(routes.beats)
        routes.set("gravel", staged=2)
        await until(lambda: f"{P}/gravel/2" in routes.beats[-1][0])
        assert all(failed == {} for _, failed in routes.beats[before:])

    run(Routes(plant, gravel={"champion": 1}), main)


def test_what_a_client_asks_for_in_vain_is_not_reported(plant: Any) -> None:
    async def main(routes: Routes, scorer: Scorer) -> None:
        routes.failures["gravel/2"] = ArtifactError("damaged")
        for wanted in ("2", "5", "6"):
            with pytest.raises((ArtifactError, UnknownNameError)):
                await ask(scorer, plant.pictures[0], wanted)
        before = len(routes.beats)
        routes.set("belt", champion=1)
        await until(lambda: len(routes.beats) > before and f"{P}/belt/1" in routes.beats[-1][0])
        assert all(failed == {} for _, failed in routes.beats)

    run(Routes(plant, gravel={"champion": 1}), main)


def test_a_damaged_champion_of_another_model_does_not_keep_a_replica_from_starting(plant: Any) -> None:
    routes = Routes(plant, gravel={"champion": 1}, belt={"champion": 1})
    routes.failures["belt/1"] = ArtifactError("damaged")

    async def main(routes: Routes, scorer: Scorer) -> None:
        assert scorer.ready
        assert (await ask(scorer, plant.pictures[0])).version == 1
        with pytest.raises(ArtifactError):
            await ask(scorer, plant.pictures[0], name="belt")
        await until(lambda: routes.beats and routes.beats[-1][1] == {f"{P}/belt/1": "damaged"})

    run(routes, main)


def test_only_so_many_champions_are_loaded_beforehand(plant: Any) -> None:
    async def main(routes: Routes, scorer: Scorer) -> None:
        assert sum(routes.opened.values()) == 1
        for name in ("gravel", "belt"):
            assert (await ask(scorer, plant.pictures[0], name=name)).version == 1
        assert sum(routes.opened.values()) == 2

    run(Routes(plant, gravel={"champion": 1}, belt={"champion": 1}), main, preload=1)


def test_a_shadow_scores_what_has_been_answered_and_is_counted(plant: Any) -> None:
    pool = EnginePool()
    models = [Model.load(plant.folder(name, 1), engines=pool) for name in ("gravel", "belt")]
    answers = [list(model.score_many(plant.pictures[:8])) for model in models]
    expected = [one.is_anomalous == other.is_anomalous for one, other in zip(*answers, strict=True)]

    class Crossed(Routes):
        """Version 9 of ``gravel`` is ``belt`` 1, whose verdicts are others."""

        def open(self, name: str, version: int, project: str | None = None) -> Path:
            return super().open("belt", 1, project) if version == 9 else super().open(name, version, project)

    async def main(routes: Routes, scorer: Scorer) -> None:
        await scorer.score(P, "gravel", plant.pictures[:8], wanted=None, request_id="r")
        await until(lambda: shadow_count(scorer, "agree", 9) + shadow_count(scorer, "differ", 9) == 8)
        assert shadow_count(scorer, "agree", 9) == sum(expected)
        assert shadow_count(scorer, "differ", 9) == 8 - sum(expected)
        # Who names a version is testing something, and is not shadowed.
        await ask(scorer, plant.pictures[0], "champion")
        await asyncio.sleep(0.1)
        assert shadow_count(scorer, "agree", 9) + shadow_count(scorer, "differ", 9) == 8
        text = scorer.metrics.text().decode()
        assert not any('version="9"' in line for line in text.splitlines() if line.startswith("autoad_pictures_total"))

    assert expected.count(False) > 0
    assert expected.count(True) > 0
    run(Crossed(plant, gravel={"champion": 1, "shadow": 9}), main)


def test_shadows_are_off_the_reply_path_and_bounded(plant: Any) -> None:
    async def main(routes: Routes, scorer: Scorer) -> None:
        door = routes.shut("gravel/2")
        routes.set("gravel", shadow=2)
        await asyncio.sleep(0.1)
        scorer._routes = dict(routes.rows)  # as if 2 had been loaded and given up since
        answers = [await ask(scorer, plant.pictures[0]) for _ in range(12)]
        assert [answer.version for answer in answers] == [1] * 12  # none waits for the shadow
        # One is being scored, five wait.
        assert shadow_count(scorer, "dropped") == 12 - 1 - 5
        door.set()
        await until(lambda: shadow_count(scorer, "agree") + shadow_count(scorer, "differ") == 6)

    run(Routes(plant, gravel={"champion": 1}), main, max_shadow=5)


def test_a_shadow_that_cannot_be_loaded_is_counted_and_nothing_else(plant: Any) -> None:
    routes = Routes(plant, gravel={"champion": 1, "shadow": 2})
    routes.failures["gravel/2"] = ArtifactError("damaged")

    async def main(_: Routes, scorer: Scorer) -> None:
        for _turn in range(3):
            assert (await ask(scorer, plant.pictures[0])).version == 1
        await until(lambda: shadow_count(scorer, "failed") == 3)

    run(routes, main)


def test_while_the_database_is_out_of_reach_the_last_routes_hold(plant: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main(routes: Routes, scorer: Scorer) -> None:
        await until(lambda: routes.beats)
        routes.broken = True
        routes.set("gravel", champion=2, previous=1)
        asked = routes.asked
        await until(lambda: routes.asked > asked + 5)
        assert (await ask(scorer, plant.pictures[0])).version == 1
        scorer.check()
        assert scorer.ready
        routes.broken = False
        await until(lambda: scorer.routes[P, "gravel"].champion == 2)
        assert (await ask(scorer, plant.pictures[0])).version == 2

    with caplog.at_level(logging.WARNING, logger="autoad.serve.scorer"):
        run(Routes(plant, gravel={"champion": 1}), main)
    assert [record.getMessage() for record in caplog.records] == [
        "the database is out of reach (OSError: no route to the database)",
        "the database can be reached again",
    ]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("autoad-")]


def test_a_replica_that_cannot_read_the_routes_does_not_start(plant: Any) -> None:
    routes = Routes(plant)
    routes.broken = True

    async def main() -> None:
        scorer = Scorer(routes, ServeOptions(threads=1), "r1")
        with pytest.raises(StateError, match="routes cannot be read"):
            await scorer.start()
        assert not scorer.ready

    asyncio.run(main())
    assert threads() == []


def test_before_it_starts_it_says_so(plant: Any) -> None:
    async def main() -> None:
        scorer = Scorer(Routes(plant, gravel={"champion": 1}), ServeOptions(threads=1), "r1")
        assert not scorer.ready
        with pytest.raises(StateError, match="still starting"):
            await ask(scorer, plant.pictures[0])

    asyncio.run(main())


def test_stopping_leaves_no_thread_no_task_and_no_sign_of_life(plant: Any) -> None:
    routes = Routes(plant, gravel={"champion": 1, "shadow": 2})
    slow = threading.Event()
    beat = routes.beat

    def slow_beat(replica: str, loaded: Sequence[str], failed: dict[str, str]) -> None:
        slow.set()
        time.sleep(0.2)
        assert not routes.left, "a beat after it has left would bring it back to life"
        beat(replica, loaded, failed)

    async def main() -> None:
        scorer = Scorer(routes, ServeOptions(threads=2, poll_seconds=0.02), "r1")
        await scorer.start()
        door = routes.shut("gravel/2")
        routes.set("gravel", staged=2)
        await ask(scorer, plant.pictures[0])
        await until(lambda: routes.opened["gravel/2"])
        routes.beat = slow_beat  # type: ignore[method-assign]
        await until(slow.is_set)
        await asyncio.gather(scorer.stop(), asyncio.sleep(0.05))
        assert not scorer.ready
        assert threads() == []
        with pytest.raises(StateError, match="being stopped"):
            await ask(scorer, plant.pictures[0])
        door.set()
        await until(lambda: not scorer._cache._loading)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert routes.left == ["r1"]

    asyncio.run(main())
    assert threads() == []


def test_a_lane_that_has_died_is_noticed(plant: Any) -> None:
    async def main(_: Routes, scorer: Scorer) -> None:
        scorer.check()
        assert scorer._batcher is not None
        await asyncio.to_thread(scorer._batcher.close)
        with pytest.raises(StateError, match="scoring thread has ended"):
            scorer.check()

    run(Routes(plant, gravel={"champion": 1}), main)


def test_a_version_that_has_been_deleted_answers_no_more(plant: Any) -> None:
    async def main(routes: Routes, scorer: Scorer) -> None:
        assert (await ask(scorer, plant.pictures[0], "1")).version == 1
        routes.failures["gravel/1"] = UnknownNameError("version of 'gravel'", "1", ["2"])
        routes.set("gravel", previous=None, shadow=None)  # any change of the route: deleting is one
        await until(lambda: scorer.routes[P, "gravel"].previous is None)
        with pytest.raises(UnknownNameError, match="version of 'gravel' '1'"):
            await ask(scorer, plant.pictures[0], "1")
        assert (await ask(scorer, plant.pictures[0])).version == 2

    run(Routes(plant, gravel={"champion": 2, "previous": 1}), main)
