from __future__ import annotations

import math
import subprocess
import sys

import pytest

from autoad.errors import UnknownNameError
from autoad.schema import RouteEntry
from autoad.serve.routing import NoChampionError, choose_version, request_share

IDS = [f"id-{index}" for index in range(20_000)]


def route(**fields: object) -> dict[tuple[str, str], RouteEntry]:
    base = {"project": "default", "name": "gravel", "generation": 1}
    return {("default", "gravel"): RouteEntry.model_validate(base | fields)}


def choose(routes: dict[tuple[str, str], RouteEntry], wanted: str | None = None, request: str = "r") -> int:
    return choose_version(routes, "default", "gravel", wanted, request)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_canary_answers_its_share(share: float) -> None:
    routes = route(champion=1, canary=2, canary_share=share)
    found = sum(choose(routes, request=one) == 2 for one in IDS)
    deviation = math.sqrt(len(IDS) * share * (1 - share))
    assert abs(found - share * len(IDS)) < 4 * deviation
    assert [choose(routes, request=one) for one in IDS[:100]] == [choose(routes, request=one) for one in IDS[:100]]


def test_a_larger_share_keeps_the_requests_that_the_canary_answered() -> None:
    small, large = (route(champion=1, canary=2, canary_share=share) for share in (0.1, 0.2))
    assert all(choose(large, request=one) == 2 for one in IDS if choose(small, request=one) == 2)


def test_where_an_id_falls_is_the_same_in_every_process() -> None:
    code = "from autoad.serve.routing import request_share; print(request_share('line-3 / 42'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == request_share("line-3 / 42")
    assert 0 <= request_share("\ud800") < 1


def test_without_a_canary_only_the_champion_answers() -> None:
    assert {choose(route(champion=3), request=one) for one in IDS[:100]} == {3}
    assert {choose(route(champion=3, canary=4, canary_share=0.0), request=one) for one in IDS[:100]} == {3}


def test_names_of_versions() -> None:
    routes = route(champion=3, previous=2, canary=4, canary_share=1.0, shadow=5, staged=6)
    for wanted, version in {"champion": 3, "previous": 2, "canary": 4, "shadow": 5, "7": 7, "007": 7}.items():
        assert choose(routes, wanted) == version
    for wanted in ("staged", "Champion", "-1", "1.0", "²", "٣", "", " 1", "1234567890"):
        with pytest.raises(UnknownNameError, match="unknown version or alias"):
            choose(routes, wanted)


def test_nothing_promoted_is_not_the_same_as_unknown() -> None:
    with pytest.raises(NoChampionError, match="autoad promote gravel"):
        choose(route())
    for alias in ("champion", "previous", "canary", "shadow"):
        with pytest.raises(NoChampionError, match=alias):
            choose(route(), alias)


def test_another_projects_models_are_neither_found_nor_named() -> None:
    routes = route(champion=1)
    for name in ("gravel", "no-such"):
        with pytest.raises(UnknownNameError) as caught:
            choose_version(routes, "other", name, None, "r")
        assert str(caught.value) == f"unknown model {name!r}. There is none yet."
