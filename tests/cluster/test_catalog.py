"""The catalog on PostgreSQL, with processes that send, commit and label at the same time."""

from __future__ import annotations

import json
import sys

from tests.cluster.conftest import Testbed

_SUBMIT = """
import hashlib, io, json, os, struct, sys, time
import numpy as np
from PIL import Image
from autoad.data import read_dataset
from autoad.data.catalog import Catalog
from autoad.database import Database
from autoad.schema import UploadRequest

def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()

who = sys.argv[1]
catalog = Catalog(Database())
uploads = []
def begin(first, name):
    files = {f"good/{seed}.png": picture(seed) for seed in range(first, first + 40)}
    rows = [{"path": p, "sha256": hashlib.sha256(d).hexdigest(), "size": len(d)} for p, d in files.items()]
    upload = catalog.begin_upload(name, UploadRequest.model_validate({"files": rows}))
    body = b"".join(hashlib.sha256(d).digest() + struct.pack(">Q", len(d)) + d for d in files.values())
    return upload.id, body
wanted = [begin(first, "bottle") for first in range(0, 100, 10)]
with open(f"/tmp/here-{who}", "w"):
    pass
while not os.path.exists("/tmp/start"):
    time.sleep(0.001)
done = []
for upload, body in (wanted if who == "a" else wanted[::-1]):  # overlapping files, in opposite orders
    catalog.receive("bottle", upload, memoryview(body))
    entry, is_new = catalog.commit("bottle", upload, actor=who)
    done.append([upload, entry.version, is_new])
for seed in range(5):
    catalog.add_example("bottle", picture(1000 + 10 * (who == "b") + seed), label="dent", note="", actor=who)
newest = catalog.entry("bottle")
listed, after = [], "0"
while after is not None:
    page = catalog.pictures("bottle", newest.version, 7, int(after))
    listed += [one.path for one in page.items]
    after = page.next
names = [entry.name for entry in catalog.page(10).items]
opened = read_dataset(catalog.open("bottle", newest.version))
print(json.dumps({"done": done, "listed": len(listed), "sorted": listed == sorted(listed), "names": names,
                  "counts": newest.counts, "opened": opened.hash == newest.hash}))
"""


def test_two_processes_send_the_same_files_in_opposite_orders(testbed: Testbed) -> None:
    head = testbed.head
    variables = {
        "AUTOAD_DATABASE_URL": testbed.database_url,
        "AUTOAD_PROJECT": "catalog",
        "AUTOAD_DATA_DIR": "/tmp/sent",  # other tests look at what the node itself has got
    }
    started = [head.start(sys.executable, "-c", _SUBMIT, who, **variables) for who in ("a", "b")]
    head.run("sh", "-c", "while [ $(ls /tmp/here-* 2>/dev/null | wc -l) -lt 2 ]; do sleep 0.05; done")
    head.run("touch", "/tmp/start")
    results = []
    for process in started:
        code, out, err = process.end(120)
        assert code == 0, err
        results.append(json.loads(out))
    commits = [tuple(one) for result in results for one in result["done"]]
    assert len(commits) == 20
    assert len({(upload, version) for upload, version, _ in commits}) == 10  # the same upload, the same version
    assert sorted(version for _, version, is_new in commits if is_new) == sorted({version for _, version, _ in commits})
    last = max(results, key=lambda result: result["counts"]["defective"])
    assert last["counts"]["defective"] + last["counts"]["good"] == last["listed"]
    assert all(result["sorted"] and result["opened"] and result["names"] == ["bottle"] for result in results)
    numbers = head.run(
        "psql", testbed.database_url.replace("+psycopg", ""), "-At", "-c",
        "SELECT version FROM dataset_versions WHERE project = 'catalog' ORDER BY version",
    ).split()  # fmt: skip
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert len(numbers) == 20
