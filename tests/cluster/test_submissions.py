"""The queue on PostgreSQL, with processes that submit, start and promote at the same time."""

from __future__ import annotations

import json
import sys

from tests.cluster.conftest import Testbed

_QUEUE = """
import datetime, json, os, sys, time
from autoad.database import Database, this_process
from autoad.errors import QueueLimitError
from autoad.schema import DatasetEntry, Metrics, SubmitRequest, TrialRow
from autoad.search.submissions import Submissions
from autoad.serve.following import Follower

class Datasets:
    def entry(self, name, version, project):
        now = datetime.datetime.now(datetime.UTC)
        return DatasetEntry(name=name, version=1, hash="h", layout="folder", counts={}, size=0, created=now)

who, me = sys.argv[1], this_process()
database = Database()
submissions = Submissions(database)
tables = submissions.tables

def together(step):
    open(f"/tmp/queue-{step}-{who}", "w").close()
    while not all(os.path.exists(f"/tmp/queue-{step}-{one}") for one in "ab"):
        time.sleep(0.001)

def submit(name, **options):
    return submissions.submit("queue", who, SubmitRequest(dataset="d", name=name), Datasets(), most=20, **options).id

together("submit")
accepted = []
for number in range(25):
    try:
        accepted.append(submit(f"{who}-{number}"))
    except QueueLimitError:
        pass
together("begin")
begun = []
while (row := tables.begin_next(me, 5)) is not None:
    begun.append(row.id)
together("key")  # by the same name and key from both
tables.cancel(accepted[-1])
once = submit("once", key="k")
together("trials")
for place, search in enumerate(begun):
    assert tables.claim(search, me, me) is not None
    summary = {"champion": None, "seconds": 0.0, "notes": ["note"], "objective": "image_auroc"}
    database.of("queue").add_search(search, search, "h", {}, summary, owner=me)
    for number in range(3):
        metrics = Metrics(image_auroc=number / 4)
        row = TrialRow(trial=number, algorithm="dfm", config={}, status="complete", validation=metrics)
        database.of("queue").write_trial(search, row, owner=me)
told = [[event.kind for event in Follower(submissions, "queue", search).poll()] for search in begun]
best = [submissions.entry("queue", search).best for search in begun]
for search in begun:
    assert tables.finish(search, me, "complete", promotion={"state": "pending", "reason": "r"})
together("promote")
waiting = list(tables.pending())
together("hold")
held = [row.id for row in waiting if tables.hold(row, me)]
for search in held:
    assert tables.settle(search, me, {"state": "kept", "reason": "r"})
together("list")
listed, after = [], None
while True:
    page = submissions.page("queue", 7, after)
    listed += [entry.id for entry in page.items]
    after = page.next
    if after is None:
        break
print(json.dumps({"accepted": accepted, "begun": begun, "once": once, "told": told, "best": best,
                  "waiting": len(waiting), "held": held, "listed": listed, "pending": len(tables.pending())}))
"""


def test_two_processes_share_the_queue(testbed: Testbed) -> None:
    head = testbed.head
    variables = {"AUTOAD_DATABASE_URL": testbed.database_url, "AUTOAD_PROJECT": "queue"}
    started = [head.start(sys.executable, "-c", _QUEUE, who, **variables) for who in ("a", "b")]
    results = []
    for process in started:
        code, out, err = process.end(120)
        assert code == 0, err
        results.append(json.loads(out))

    def all_of(name: str) -> list[str]:
        return [one for result in results for one in result[name]]

    assert len(all_of("accepted")) == 20, "as many as may wait, however they come"
    assert len(all_of("begun")) == len(set(all_of("begun"))) == 5, "as many as may run"
    assert results[0]["once"] == results[1]["once"], "the same request, sent twice"
    assert all(kinds == ["status", "note", "trial", "trial", "trial"] for kinds in all_of("told"))
    assert set(all_of("best")) == {0.5}
    assert [result["waiting"] for result in results] == [5, 5]
    assert sorted(all_of("held")) == sorted(all_of("begun")), "each is promoted by one"
    assert [result["pending"] for result in results] == [0, 0]
    assert results[0]["listed"] == results[1]["listed"]
    assert set(results[0]["listed"]) == {*all_of("accepted"), results[0]["once"]}
