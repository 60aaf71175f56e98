import multiprocessing
import threading
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from autoad.errors import StateError
from autoad.schema import TrialRow
from autoad.search.space import load_spaces
from autoad.search.study import Proposer, study_storage
from autoad.settings import Settings

SPACES = load_spaces(["dfm", "stfpm"])


def study_and_proposer() -> tuple[optuna.Study, Proposer]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    return study, Proposer(study, SPACES, seed=0, liar=False)


def row(number: int, status: str, value: float | None = None, **more: object) -> TrialRow:
    return TrialRow.model_validate(
        {
            "trial": number,
            "algorithm": "dfm",
            "proposed": SPACES["dfm"].defaults() | {"stage": 2},
            "config": {},
            "status": status,
            "validation": {"image_auroc": value},
            **more,
        }
    )


def test_what_is_given_is_kept_and_the_rest_sampled() -> None:
    _, proposer = study_and_proposer()
    seen = set()
    for _ in range(12):
        trial, algorithm, config = proposer.ask("dfm", {"pooling_kernel_size": 3})
        assert (algorithm, config["pooling_kernel_size"]) == ("dfm", 3)
        seen.add(config["stage"])
        proposer.tell(trial, row(trial.number, "complete"), 0.5)
    assert len(seen) > 1
    _, fresh = study_and_proposer()
    assert {fresh.ask(None, {})[1] for _ in range(12)} == {"dfm", "stfpm"}


def test_the_study_is_brought_in_line_with_the_rows() -> None:
    """Three trials were asked for; the process died before the study heard of two, and before one had a row."""
    study, proposer = study_and_proposer()
    for _ in range(3):
        proposer.ask("dfm", {})
    proposer.reconcile([row(0, "complete", 0.8), row(1, "stopped")], "image_auroc")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL]
    assert study.trials[0].value == 0.8
    assert study.ask().number == 3


def test_a_lost_study_is_made_again_from_the_rows() -> None:
    study, proposer = study_and_proposer()
    rows = [row(0, "complete", 0.8), row(2, "pruned", 0.6, epochs_done=3), row(3, "failed")]
    proposer.reconcile(rows, "image_auroc")
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.FAIL]
    assert study.trials[0].params["dfm.stage"] == 2
    assert study.trials[2].value == 0.6
    proposer.reconcile(rows, "image_auroc")
    assert len(study.trials) == 4, "once is enough"


def test_what_was_maximised_is_what_the_row_says_or_else_the_metric() -> None:
    assert row(0, "complete", 0.9, objective=0.6).value("image_auroc") == 0.6
    assert row(0, "complete", 0.9).value("image_auroc") == 0.9
    assert row(0, "complete", 0.9).value("aupro") is None
    assert TrialRow(trial=0, algorithm="", config={}, status="failed").value("image_auroc") is None


def test_the_storage_is_a_file_that_other_tools_open(tmp_path: Path) -> None:
    storage = study_storage(Settings(data_dir=tmp_path))
    proposer = Proposer.open(storage, "abc", SPACES, seed=0, liar=False)
    proposer.tell(proposer.ask("dfm", {})[0], row(0, "complete"), 0.7)
    again = optuna.load_study(study_name="abc", storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert again.best_value == 0.7


def test_a_resumed_sampler_goes_on_where_it_was_cut_off() -> None:
    """What was asked for in vain, or cut off in the middle, changes nothing that is asked for later."""

    def ask_on(proposer: Proposer, ended: int, upto: int) -> list[dict[str, object]]:
        configs = []
        for number in range(ended, upto):
            trial, _, config = proposer.ask("dfm", {})
            configs.append(config)
            proposer.tell(trial, row(number, "complete", 0.5, started_after=1.0, proposed=config), 0.5)
        return configs

    _, whole = study_and_proposer()
    expected = ask_on(whole, 0, 5)
    study, cut_off = study_and_proposer()
    begun = ask_on(cut_off, 0, 2)
    refused, _, _ = cut_off.ask("dfm", {})
    cut_off.tell(refused, row(2, "failed"), None)
    cut_off.ask("dfm", {})
    rows = [row(n, "complete", 0.5, started_after=1.0, proposed=config) for n, config in enumerate(begun)]
    resumed = Proposer(study, SPACES, seed=0, liar=False)
    resumed.reconcile([*rows, row(3, "stopped", started_after=2.0)], "image_auroc")
    again, _, third = resumed.ask("dfm", expected[2])
    resumed.tell(again, row(4, "complete", 0.5, started_after=3.0, proposed=third), 0.5)
    assert [*begun, third, *ask_on(resumed, 3, 5)] == expected
    assert len({str(config) for config in expected}) == 5


def test_a_study_that_cannot_be_written_stops_the_search(tmp_path: Path) -> None:
    storage = study_storage(Settings(data_dir=tmp_path))
    proposer = Proposer.open(storage, "abc", SPACES, seed=0, liar=False)
    sqlalchemy.event.listen(storage.engine, "checkout", lambda dbapi, *_: dbapi.execute("PRAGMA query_only=ON"))
    with pytest.raises(StateError, match=r"optuna.db\) cannot be written \(attempt to write a readonly database\)"):
        proposer.ask("dfm", {})


def test_two_processes_that_begin_at_once_make_one_study_database(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_open_at_once, args=(barrier, tmp_path)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 2


def _open_at_once(barrier: threading.Barrier, folder: Path) -> None:
    barrier.wait()
    study_storage(Settings(data_dir=folder))


@pytest.mark.parametrize("damage", [b"no database at all", b"SQLite format 3\0" + bytes(5000)])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "optuna.db").write_bytes(damage)
    proposer = Proposer.open(study_storage(Settings(data_dir=tmp_path)), "abc", SPACES, seed=0, liar=False)
    proposer.reconcile([row(0, "complete", 0.8)], "image_auroc")
    assert optuna.load_study(study_name="abc", storage=f"sqlite:///{tmp_path / 'optuna.db'}").best_value == 0.8
    (kept,) = tmp_path.glob("optuna.db.damaged-*")
    assert kept.read_bytes() == damage
