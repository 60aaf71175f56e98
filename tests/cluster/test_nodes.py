"""A search on two machines that share nothing, one of which is lost on the way."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoad.features.shard import Shard
from tests.cluster.conftest import Node, Started, Testbed, wait_for

SPACE = """
algorithm: stfpm
epochs: 100
parameters:
  backbone: {type: categorical, choices: [tf_efficientnet_lite0], default: tf_efficientnet_lite0}
  image_size: {type: int, low: 96, high: 128, step: 32, default: 128}
  lr: {type: float, low: 0.02, high: 1.0, log: true, default: 0.4}
"""


@pytest.fixture
def bed(testbed: Testbed) -> Iterator[Testbed]:
    """The machines, with no state and with the head alone in the cluster."""
    (testbed.head.root / "space.yaml").write_text(SPACE)
    # Another picture under the name of each of the driver's.
    for path in (testbed.head.root / "pictures").rglob("*.png"):
        decoy = testbed.node.root / path.relative_to(testbed.head.root)
        decoy.parent.mkdir(parents=True, exist_ok=True)
        decoy.write_bytes(path.read_bytes() + b"decoy")
    yield testbed
    testbed.clear()


def shards(node: Node) -> list[Path]:
    """What a node has computed and kept."""
    return sorted((node.root / "state" / "features").glob("*/*/[!.]*/rows.jsonl"))


def start_search(bed: Testbed, trials: int, **environment: str) -> Started:
    return bed.head.start(
        *(sys.executable, "-m", "autoad.cli", "search", "--data", "/tmp/pictures", "--name", "two", "--json"),
        *("--trials", trials, "--algorithms", "stfpm", "--space", "/tmp/space.yaml", "--max-epochs", 6),
        *("--address", bed.address),
        **environment,
    )


def finish(search: Started) -> dict[str, Any]:
    code, out, err = search.end(240)
    assert code == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def until_working(bed: Testbed, search: Started, *nodes: Node, database_url: str = "") -> None:
    """Until a trial is fitting on each of the nodes, at once: it has the features of both its roles."""

    def working() -> bool:
        assert search.running(), search.end(1)
        busy = {row["node"] for row in bed.rows(database_url) if row["status"] == "running"}
        return busy >= {node.name for node in nodes} and all(len(shards(node)) >= 2 for node in nodes)

    wait_for(f"trials on {[node.name for node in nodes]}", working)


def until_tried_again(bed: Testbed, search: Started, database_url: str = "") -> None:
    def tried_again() -> bool:
        assert search.running(), search.end(1)
        return any(row["attempts"] == 2 for row in bed.rows(database_url))

    wait_for("another attempt", tried_again)


def check(bed: Testbed, result: dict[str, Any], trials: int) -> None:
    """Nothing lost, nothing repeated but what was lost, and features computed once on each node."""
    rows = sorted(result["leaderboard"], key=lambda row: int(row["trial"]))
    assert [row["trial"] for row in rows] == list(range(trials))
    assert {row["status"] for row in rows} <= {"complete", "pruned"}, [(row["status"], row["reason"]) for row in rows]
    assert Counter(row["attempts"] for row in rows) == {1: trials - 1, 2: 1}
    assert result["champion"] is not None
    for node in (bed.head, bed.node):
        computed: Counter[tuple[Path, str, str]] = Counter()
        for path in shards(node):
            shard = Shard.open(path.parent)
            computed.update((path.parents[1], column, key) for column in shard.columns for key in shard.rows)
        assert computed, f"{node.name} computed no features"
        assert set(computed.values()) == {1}, f"{node.name} computed features twice"


def fetched(node: Node) -> set[str]:
    """The pictures and masks that a node has got, checked against their names; not what it was writing when killed."""
    files = [path for path in (node.root / "state" / "files").rglob("[!.]*") if path.is_file()]
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in files)
    return {path.name for path in files}


def hashes(folder: Path) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.png")}


def lose_a_joined_node(bed: Testbed) -> None:
    """Files from the driver's node, rows in SQLite: a node joins a search that runs, works, and is killed."""
    search = start_search(bed, 11)
    until_working(bed, search, bed.head)
    bed.join()
    until_working(bed, search, bed.node)
    lost = time.monotonic()
    bed.lose()

    until_tried_again(bed, search)
    print(f"\nkilled node: its trial was begun again after {time.monotonic() - lost:.1f} s")
    result = finish(search)
    check(bed, result, 11)
    assert {row["node"] for row in result["leaderboard"]} <= {"head", "node"}
    used = {key for path in shards(bed.node) for key in Shard.open(path.parent).rows}
    offered = hashes(bed.head.root / "pictures") | hashes(bed.head.root / "state" / "searches")  # with drawn defects
    assert used <= offered, "the node's decoys were taken for pictures"
    assert used < fetched(bed.node) <= offered, "pictures, and masks besides"
    assert not fetched(bed.head), "the driver's node has the pictures already"


def cut_off_a_node(bed: Testbed) -> None:
    """Files on S3, rows in PostgreSQL: two nodes from the start, of which one is cut off."""
    bucket = f"files-{time.monotonic_ns()}"
    bed.make_bucket(bucket)
    bed.join()
    search = start_search(bed, 5, AUTOAD_FILES_URL=f"s3://{bucket}/autoad", AUTOAD_DATABASE_URL=bed.database_url)
    until_working(bed, search, bed.head, bed.node, database_url=bed.database_url)
    cut = time.monotonic()
    bed.cut()
    until_tried_again(bed, search, bed.database_url)
    print(f"\nnode cut off: its trial was begun again after {time.monotonic() - cut:.1f} s")
    result = finish(search)
    check(bed, result, 5)
    kept = [key.split("/") for key in bed.objects(bucket)]
    assert all(its[:2] == ["autoad", "default"] and its[3] == its[4][:2] for its in kept)
    assert {its[2] for its in kept} == {"pictures", "models"}
    assert sum(its[2] == "models" for its in kept) == 4, "tensors, manifest, card and parity set of one version"
    names = [its[4] for its in kept if its[2] == "pictures"]
    assert hashes(bed.head.root / "pictures" / "train") & set(names)
    assert fetched(bed.node) <= set(names)
    assert fetched(bed.node)
    assert not (bed.head.root / "state" / "autoad.db").exists()
    bed.plug()


FAULTS = {"kill": lose_a_joined_node, "cut": cut_off_a_node}


def test_a_search_survives_the_loss_of_a_node(bed: Testbed) -> None:
    FAULTS["kill"](bed)


@pytest.mark.faults
@pytest.mark.parametrize("time", range(1, 6))
@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_search_survives_every_time(bed: Testbed, fault: str, time: int) -> None:
    FAULTS[fault](bed)


@pytest.mark.faults
def test_a_cluster_that_refuses_the_token_says_so(bed: Testbed) -> None:
    search = start_search(bed, 1, RAY_AUTH_TOKEN="0" * 64, RAY_NUM_REDIS_GET_RETRIES="2")
    code, out, err = search.end(60)
    assert (code, out) == (2, "")
    assert f"the Ray cluster {bed.address} refuses the token" in err
    assert not [row for row in bed.rows() if row["status"] == "running"]
