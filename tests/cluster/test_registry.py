"""The registry on PostgreSQL, with processes that change the same route at the same time."""

from __future__ import annotations

import itertools
import json
import sys

from tests.cluster.conftest import Testbed

_EACH = 60

_PROMOTE = """
import json, os, sys, time
from pathlib import Path
import torch
from autoad.database import Database
from autoad.errors import UsageError
from autoad.models.artifact import Calibration, Member, Provenance, save_model, write_manifest
from autoad.models.registry import Registry

who, each = sys.argv[1], int(sys.argv[2])
database = Database()
registry = Registry(database)
member = Member(algorithm="padim", kind="segmentation", config={}, seed=0, image_size=(8, 8), device="cpu",
                precision="float32", backbone=None)
calibration = Calibration(threshold=0.0, rate=0.1, scale=1.0, pixel_threshold=None, pixel_scale=None, pictures=9)
mine = []
for number in range(5):
    folder = Path(os.environ["AUTOAD_DATA_DIR"]) / f"made-{who}-{number}"
    source = Provenance(code_version="0", search=f"{who}{number}", trial=0, dataset_hash="d", dataset_counts={},
                        evidence="labelled")
    manifest = save_model(folder, "bottle", [(member, {"x": torch.zeros(number + 1)})], source)
    write_manifest(folder, manifest.model_copy(update={"calibration": calibration}))
    mine.append(registry.register(folder, "bottle").version)
with open(f"/tmp/ready-{who}", "w"):
    pass
while not os.path.exists("/tmp/go"):
    time.sleep(0.001)
done = []
for turn in range(each):
    try:
        if turn % 5 == 4:
            done.append(registry.rollback("bottle", reason=str(turn), actor=who).generation)
        else:
            done.append(registry.promote("bottle", mine[turn % 5], reason=str(turn), actor=who).generation)
    except UsageError as error:
        if "already" not in str(error) and "no previous" not in str(error):
            raise
    time.sleep(0.01)  # or one may be through before the other is let onto a processor
print(json.dumps({"versions": mine, "generations": done}))
"""

_LOOK = """
import json
from autoad.database import Database, Keys, ModelTables
from autoad.serve.auth import Authenticator

database = Database()
tables, keys = ModelTables(database), Keys(database)
_, key = keys.create("line-1", ["score"])
identity = Authenticator(keys, database.project).authenticate(f"Bearer {key}")
lines = [line.model_dump(mode="json") for line in reversed(tables.history(database.project, "bottle"))]
route = tables.route(database.project, "bottle").model_dump()
print(json.dumps({"route": route, "lines": lines, "mark": tables.mark(), "key": identity.name}))
"""


def test_two_processes_that_promote_at_once_leave_one_unbroken_history(testbed: Testbed) -> None:
    bed = testbed
    variables = {
        "AUTOAD_DATABASE_URL": bed.database_url,
        "AUTOAD_PROJECT": "promoted",
        "AUTOAD_DATA_DIR": "/tmp/promoted",
    }
    racers = [bed.head.start(sys.executable, "-c", _PROMOTE, who, _EACH, **variables) for who in ("a", "b")]
    bed.head.run("sh", "-c", "until [ -e /tmp/ready-a ] && [ -e /tmp/ready-b ]; do sleep 0.05; done; touch /tmp/go")
    results = []
    for racer in racers:
        code, out, err = racer.end(120)
        assert code == 0, err
        results.append(json.loads(out))
    numbers = [number for result in results for number in result["versions"]]
    assert sorted(numbers) == list(range(1, 11)), "no number is given twice"

    seen = json.loads(bed.head.run(sys.executable, "-c", _LOOK, **variables))
    generations = sorted(generation for result in results for generation in result["generations"])
    assert generations == list(range(1, len(generations) + 1)), "every change that was reported has happened, once"
    assert len(generations) > _EACH
    assert seen["route"]["generation"] == len(generations)
    lines = seen["lines"]
    assert [line["generation"] for line in lines] == generations
    assert all(earlier["after"] == later["before"] for earlier, later in itertools.pairwise(lines))
    assert (seen["route"]["champion"], seen["route"]["previous"]) == (lines[-1]["after"], lines[-1]["before"])
    turns = sum(one["actor"] != other["actor"] for one, other in itertools.pairwise(lines))
    assert turns > 5, "they were at it at the same time"
    assert seen["key"] == "line-1"
