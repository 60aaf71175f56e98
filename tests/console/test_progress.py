from __future__ import annotations

import pytest

from autoad.console.progress import Progress
from tests.console.conftest import Clock, trial


def test_the_best_is_the_first_of_the_largest_complete_trials(progress: Progress, clock: Clock) -> None:
    for number, (value, status) in enumerate(
        [(0.7, "complete"), (0.9, "pruned"), (0.8, "complete"), (0.8, "complete"), (0.6, "complete")]
    ):
        clock.now = 10.0 * number
        progress.hear(trial(number, value=value, status=status))
    view = progress.view()
    assert view.best is not None
    assert (view.best.row.trial, view.best.ended) == (2, 20.0)
    assert view.history == [0.7, 0.8, 0.8, 0.8]


def test_each_algorithm_is_counted_by_its_end_and_its_time(progress: Progress, clock: Clock) -> None:
    progress.hear(trial(0, "padim", 0.7, seconds=3.0))
    progress.hear(trial(1, "padim", 0.9, seconds=4.0, status="pruned"))
    progress.hear(trial(2, "cflow", 0.8, seconds=20.0))
    progress.hear(trial(3, "dfm", status="failed", seconds=1.0))
    progress.hear(trial(4, "dfm", status="stopped", seconds=2.0))
    progress.hear(trial(5, "padim"))
    clock.now = 6.0
    counts = progress.view().by_algorithm()
    assert [(c.algorithm, c.complete, c.pruned, c.failed, c.best, c.seconds) for c in counts] == [
        ("cflow", 1, 0, 0, 0.8, 20.0),
        ("padim", 1, 1, 0, 0.7, 13.0),
        ("dfm", 0, 0, 1, None, 3.0),
    ]


@pytest.mark.parametrize(
    ("ends_at", "limit", "left"),
    [(None, None, None), (100.0, None, 60.0), (None, 10, 6 * 10.0), (100.0, 6, 20.0), (30.0, None, 0.0)],
)
def test_time_left_is_the_sooner_of_time_and_trials(
    progress: Progress, clock: Clock, ends_at: float | None, limit: int | None, left: float | None
) -> None:
    progress.ends_at, progress.trial_limit = ends_at, limit
    for number in range(4):
        progress.hear(trial(number, value=0.5))
    clock.now = 40.0
    view = progress.view()
    assert view.trials_per_minute == pytest.approx(6.0)
    assert view.seconds_left == (None if left is None else pytest.approx(left))


def test_a_trial_that_begins_again_runs(progress: Progress, clock: Clock) -> None:
    progress.hear(trial(0))
    clock.now = 5.0
    progress.hear(trial(0, status="stopped"))
    progress.hear(trial(0, epochs_done=1))
    view = progress.view()
    assert (len(view.ended), [timed.row.epochs_done for timed in view.running]) == (0, [1])


def test_nodes_are_told_apart_only_where_there_are_several(progress: Progress) -> None:
    progress.hear(trial(0, node="a"))
    assert progress.view().by_node() == {}
    progress.hear(trial(1, node="b"))
    progress.hear(trial(2, node="b"))
    progress.hear(trial(3, node="c", value=0.5))
    assert progress.view().by_node() == {"a": 1, "b": 2, "c": 0}
