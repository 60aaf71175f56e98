from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autoad.database import Search
from autoad.errors import UsageError
from autoad.schema import TrialRow
from autoad.search.budget import TRIALS_SHARE, Budget
from autoad.search.plan import SearchRequest
from autoad.search.record import check_unchanged, read_request

SPENT = 3600.0


def search(**request: Any) -> Search:
    record = {"data": "/pictures", "algorithms": ["dfm"], "space": None, "spaces_sha256": "x", "seconds": 1200.0}
    return Search(id="s", project="default", name="s", status="interrupted", request=record | request, spent=SPENT)


ROWS = [
    TrialRow(trial=0, algorithm="dfm", config={}, status="complete", started_after=0.0),
    TrialRow(trial=1, algorithm="dfm", config={}, status="stopped", started_after=1.0),
    TrialRow(trial=2, algorithm="dfm", config={}, status="failed"),
]


def left(request: SearchRequest) -> float:
    """Seconds for trials in the budget of the search that goes on."""
    assert request.seconds is not None
    return Budget(None, request.seconds * TRIALS_SHARE, 1, before=SPENT).left


def test_without_new_limits_the_old_ones_count() -> None:
    request = read_request(search(trials=50), ROWS)
    assert (request.seconds, request.trials, request.algorithms, request.data) == (
        1200.0,
        50,
        ("dfm",),
        Path("/pictures"),
    )
    assert left(request) < 0


def test_new_time_is_from_now_on_and_replaces_all_limits() -> None:
    request = read_request(search(trials=1), ROWS, seconds=600.0)
    assert left(request) == pytest.approx(TRIALS_SHARE * 600, abs=1)
    assert request.trials is None


def test_new_trials_are_from_now_on_and_replace_all_limits() -> None:
    request = read_request(search(), ROWS, trials=20)
    assert (request.trials, request.seconds) == (21, None), "of the three rows one has been carried out"


def test_what_is_given_changes_and_what_is_not_stays() -> None:
    request = read_request(search(patience=7, address="old:1"), ROWS, patience=None, address="new:1")
    assert (request.patience, request.address) == (7, "new:1")


def test_a_resumed_search_makes_a_version_of_the_same_model() -> None:
    assert read_request(search(model="bottle"), ROWS, trials=1).model == "bottle"
    assert read_request(search(), ROWS).model == "", "from before models had versions"


def test_a_resumed_search_finds_its_threshold_as_it_began() -> None:
    assert read_request(search(threshold="f1-max"), ROWS, trials=1).threshold == "f1-max"
    assert read_request(search(), ROWS).threshold == "conformal", "from before there was a choice"


def test_a_search_of_an_earlier_version_is_refused() -> None:
    old = search()
    del old.request["spaces_sha256"]
    with pytest.raises(UsageError, match="earlier version"):
        read_request(old, ROWS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": SimpleNamespace(hash="other")}, "the pictures in /pictures must be what it was"),
        ({"engine": SimpleNamespace(name="torch", precision="float32")}, "the engine of this machine must be"),
        ({"evidence": "both"}, r"the evidence that ranks trials must be .* \(labelled\) but is both"),
    ],
)
def test_a_search_goes_on_with_what_it_began_with_or_not_at_all(change: dict[str, Any], said: str) -> None:
    same: dict[str, Any] = {
        "request": SimpleNamespace(data="/pictures"), "dataset": SimpleNamespace(hash="h"), "spaces": {},
        "engine": SimpleNamespace(name="openvino", precision="float32"), "evidence": "labelled",
    }  # fmt: skip
    begun = search(spaces_sha256=hashlib.sha256(b"{}").hexdigest())
    begun.dataset_hash = "h"
    summary: Any = SimpleNamespace(engine="openvino float32", evidence="labelled")
    check_unchanged(cast(Any, SimpleNamespace(**same)), begun, summary)
    with pytest.raises(UsageError, match=said):
        check_unchanged(cast(Any, SimpleNamespace(**same | change)), begun, summary)
