from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of two processes on two cores wait for each other: the tests of the algorithms take twice the time. Torch
    # reads this when it is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from autoad.data import write_demo_dataset

Run = Callable[..., subprocess.CompletedProcess[str]]


SLOWEST = (
    *("serve/test_service.py", "search/test_honesty.py", "cluster/test_nodes.py", "serve/test_survival.py"),
    *("serve/test_driver.py", "serve/test_deployed.py", "search/test_survival.py", "algorithms/test_memory.py"),
)
"""Files that begin first where two processes share the tests, so that neither is left alone with one of them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where two processes share the tests, a file stays whole, and those that look at one search stay together."""
    if not hasattr(config, "workerinput"):
        return
    names = {item: item.nodeid.partition("::")[0] for item in items}
    together = {names[item] for item in items if "searched" in getattr(item, "fixturenames", ())}
    order = {f"tests/{name}": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: (order.get(names[item], len(order)), names[item] not in together))
    for item in items:
        item.add_marker(pytest.mark.xdist_group("searched" if names[item] in together else names[item]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Groups that are not kept together cost twice the time, and nothing else would tell."""
    if hasattr(session.config, "workerinput") and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("this pytest-xdist does not know this pytest's groups; install with constraints.txt")


@pytest.fixture(scope="session", autouse=True)
def _data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where tests that name no data folder keep compiled backbones: in one for the whole run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOAD_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration dataset."""
    return write_demo_dataset(tmp_path_factory.mktemp("demo") / "pictures")


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data folder for all tests that search, so that features are computed once."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
def autoad(state: Path) -> Run:
    """Runs the command line in a process of its own, as a user does."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "autoad.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            env=os.environ | {"AUTOAD_DATA_DIR": str(state), "COLUMNS": "200"} | environment,
        )

    return run


@pytest.fixture
def autoad_here(state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The same in this process, where imports cost nothing any more: for what is refused before anything begins."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        from autoad.cli import main

        for name, value in ({"AUTOAD_DATA_DIR": str(state), "COLUMNS": "200"} | environment).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["autoad", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        try:
            main()
            code: object = 0
        except SystemExit as exit_:
            code = exit_.code
        finally:
            signal.signal(signal.SIGTERM, before)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, int(str(code or 0)), said.out, said.err)

    return run


@pytest.fixture(scope="session")
def searched(autoad: Run, demo: Path) -> dict[str, Any]:
    """The JSON of a small search over one algorithm of each sort, named ``small``."""
    done = autoad(
        *("search", "--data", demo, "--name", "small", "--trials", 5, "--max-epochs", 1, "--json", "--mlflow"),
        *("--algorithms", "dfkde,padim,patchcore,ganomaly"),
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result
