"""The deployed server: real Ray Serve, real HAProxy, real processes that die.

Each fault comes once here, and five times with ``make faults``, which prints how long each took to recover from.
"""

from __future__ import annotations

import io
import itertools
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest
from PIL import Image

from autoad.algorithms import ALGORITHMS
from autoad.data import read_dataset
from autoad.errors import NotFoundError
from autoad.models import Model
from autoad.settings import Settings
from tests.serve.deployed import Deployment, Load, deploy
from tests.serve.factory import add_model, make_state
from tests.serve.mutation import encodings, mutated

FAULTS = ("replica", "controller", "proxy")
ROUNDS = 5


@pytest.fixture(scope="module")
def state(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of ``bottle`` that answer differently."""
    settings = make_state(tmp_path_factory.mktemp("deployed"))
    dataset = read_dataset(demo)
    for ratio in (0.01, 0.005):
        add_model(settings, dataset, "bottle", "patchcore", coreset_sampling_ratio=ratio)
    return settings.data_dir


@pytest.fixture(scope="module")
def pictures(demo: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((demo / "test").glob("*/*.png"))[::3]]


@pytest.fixture(scope="module")
def expected(state: Path, pictures: list[bytes]) -> dict[int, list[float]]:
    """By version, what the artifacts themselves say."""
    return {
        version: [score.score for score in Model.load(state / f"models/default/bottle/{version}").score_many(pictures)]
        for version in (1, 2)
    }


@pytest.fixture(scope="module")
def server(state: Path) -> Iterator[Deployment]:
    with deploy(state, "--replicas", "2") as deployment:
        with deployment.connect() as client:
            client.promote("bottle", 1)
        yield deployment


def check(load: Load, expected: dict[int, list[float]]) -> None:
    """Nothing was lost, and every score is that of the version that the reply names."""
    assert load.lost == []
    for reply in load.replies:
        assert reply.answer is not None
        assert reply.answer.score == expected[reply.answer.version][reply.picture]


def test_everything_listens_on_loopback_only(server: Deployment) -> None:
    mine = {server.process.pid} | {child.pid for child in server.children()}
    listening = [
        connection.laddr.ip
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid in mine
    ]
    assert len(listening) > 10
    assert set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


@pytest.mark.parametrize("clients", [1, 16])
def test_a_score_is_the_artifacts_to_the_last_bit_at_any_concurrency(
    server: Deployment, pictures: list[bytes], expected: dict[int, list[float]], clients: int
) -> None:
    with Load(server, "bottle", pictures, clients=clients) as load:
        load.wait(3 * len(pictures), 60)
    check(load, expected)
    if clients > 1:
        assert len({reply.answer.reply.replica for reply in load.replies if reply.answer}) == 2


def promote_under_load(
    server: Deployment, pictures: list[bytes], expected: dict[int, list[float]], *, turns: int, replies: int
) -> Load:
    """Promotions and rollbacks in turn, and a canary in between, while clients ask."""
    with server.connect() as admin, Load(server, "bottle", pictures) as load:
        champion = admin.model("bottle").route.champion
        assert champion is not None
        for turn in range(turns):
            challenger = 3 - champion
            admin.promote("bottle", challenger, canary=0.3)
            load.wait(replies // (2 * turns), 120)
            if turn % 2 == 0:
                route = admin.promote("bottle", challenger).route
            else:
                route = admin.rollback("bottle", reason="turn and turn about")
            champion = challenger
            assert (route.champion, route.canary) == (champion, None)
            switched = time.monotonic()
            load.wait(replies // (2 * turns), 120)
            late = [r for r in load.replies if r.asked > switched and r.answer and r.answer.version != champion]
            assert late == []  # who asks after the reply to a promotion is answered by the new champion
    check(load, expected)
    assert {reply.answer.version for reply in load.replies if reply.answer} == {1, 2}
    return load


def test_promotions_rollbacks_and_a_canary_lose_nothing(
    server: Deployment, pictures: list[bytes], expected: dict[int, list[float]]
) -> None:
    promote_under_load(server, pictures, expected, turns=2, replies=300)


def recover(
    server: Deployment, pictures: list[bytes], expected: dict[int, list[float]], fault: str, *, retries: int = 3
) -> float:
    """Seconds that the slowest request took around the death of a process; until all are there again, too."""
    with Load(server, "bottle", pictures, retries=retries) as load:
        load.wait(40, 60)
        before = len(server.children(fault))
        server.kill(fault)
        killed = time.monotonic()
        load.wait(80, 60)
        while len(server.children(fault)) < before:
            assert time.monotonic() - killed < 60, f"the {fault} was not started again"
            time.sleep(0.1)
        load.wait(40, 60)
    check(load, expected)
    return max(reply.seconds for reply in load.replies if reply.asked + reply.seconds > killed)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_process_that_dies_costs_clients_with_retries_nothing(
    server: Deployment, pictures: list[bytes], expected: dict[int, list[float]], fault: str
) -> None:
    # More than the three that do where nothing else runs: beside other tests, a process takes longer to start again.
    recover(server, pictures, expected, fault, retries=6)


def test_what_the_control_plane_refuses_is_told_as_it_is(server: Deployment) -> None:
    with server.connect() as admin:
        for ask in (lambda: admin.promote("bottle", 99), lambda: admin.rollback("nothing")):
            with pytest.raises(NotFoundError, match="unknown") as raised:
                ask()
            assert (raised.value.status, raised.value.code) == (404, "unknown_name")


def test_a_second_server_on_the_port_is_refused(server: Deployment, state: Path) -> None:
    port = server.address.rpartition(":")[2]
    command = [sys.executable, "-m", "autoad.cli", "serve", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.faults
def test_each_fault_five_times(server: Deployment, pictures: list[bytes], expected: dict[int, list[float]]) -> None:
    seconds: dict[str, list[float]] = {fault: [] for fault in FAULTS}
    for _, fault in itertools.product(range(ROUNDS), FAULTS):
        seconds[fault].append(recover(server, pictures, expected, fault))
    print("\n| killed | times | lost | median s | longest s |\n|---|---|---|---|---|")
    for fault, values in seconds.items():
        print(f"| {fault} | {len(values)} | 0 | {statistics.median(values):.1f} | {max(values):.1f} |")


@pytest.mark.faults
def test_every_algorithm_passes_its_gate(server: Deployment, state: Path, demo: Path) -> None:
    """Evaluated in this process with all threads, served with one a replica."""
    dataset = read_dataset(demo)
    with server.connect() as admin:
        for name in ALGORITHMS:
            add_model(Settings(data_dir=state), dataset, f"one-{name}", name)
            result = admin.promote(f"one-{name}")
            assert result.route.champion == 1
            print(f"\n{name}: {result.parity_answers} answers of {len(result.replicas)} replicas")


@pytest.mark.faults
def test_ten_promotions_and_five_thousand_requests(
    server: Deployment, pictures: list[bytes], expected: dict[int, list[float]]
) -> None:
    load = promote_under_load(server, pictures, expected, turns=10, replies=5000)
    print(f"\n{len(load.replies)} requests during 10 promotions and rollbacks with canaries: 0 lost, all as named")


@pytest.mark.faults
def test_two_thousand_mutated_pictures_leave_memory_flat(server: Deployment, pictures: list[bytes]) -> None:
    sound = list(encodings(Image.open(io.BytesIO(pictures[0]))))
    rng = np.random.default_rng(0)
    statuses: Counter[int] = Counter()

    def send(count: int) -> float:
        for _ in range(count):
            reply = client.post("/v1/models/bottle/score", content=mutated(sound, rng))
            statuses[reply.status_code] += 1
        return sum(child.memory_info().rss for child in server.children("replica")) / 1e6

    with httpx2.Client(base_url=server.address, headers={"Content-Type": "image/png"}, timeout=60) as client:
        before = send(500)
        after = send(1500)
    print(f"\nreplies to 2,000 mutated pictures: {dict(statuses)}; replicas {before:.0f} MB, at the end {after:.0f} MB")
    assert sum(statuses.values()) == 2000
    assert set(statuses) <= {200, 400, 413, 422}
    assert after < 1.05 * before
