"""Of another project's models, datasets, searches and files nothing can be found out: by name, id, hash or timing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI

from autoad.serve.manual import METHODS
from tests.serve import submitting

Serve = Callable[..., None]

THEIRS = {"name": "hidden-part", "model": "gravel", "search": "hidden-search"}
NOBODYS = {"name": "absent-part", "model": "absent", "search": "absent-search", "upload": 32 * "0"}
VERSION = "1"
PNG = {"Content-Type": "image/png"}


async def create_keys(keys: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Headers of a key of the plant's own project, and of one of another."""
    secrets = [keys.create(name, ["admin"], project)[1] for name, project in (("alice", None), ("bob", "other"))]
    await asyncio.sleep(0.1)  # until the server has read the keys again
    alice, bob = ({"Authorization": f"Bearer {secret}"} for secret in secrets)
    return alice, bob


async def fill(service: Any, alice: dict[str, str]) -> dict[str, str]:
    """A dataset, an unfinished upload and a search of alice's, beside the plant's models; how they are called."""
    files = submitting.folder()
    made = await submitting.submit(service.client, THEIRS["name"], files, headers=alice)
    assert made.status_code == 201, made.text
    begun = await service.client.post(
        f"/v1/datasets/{THEIRS['name']}/uploads",
        json=submitting.announced({**files, "train/good/more.png": submitting.picture(99)}),
        headers=alice,
    )
    asked = {"dataset": THEIRS["name"], "name": THEIRS["search"], "trials": 1}
    search = await service.client.post("/v1/searches", json=asked, headers={**alice, "Idempotency-Key": "one"})
    assert search.status_code == 202, search.text
    digests = [hashlib.sha256(data).hexdigest() for data in files.values()]
    return {**THEIRS, "upload": begun.json()["id"], "id": search.json()["id"], "hash": made.json()["hash"], **{
        f"file{number}": digest for number, digest in enumerate(digests)
    }}  # fmt: skip


def requests_of(app: FastAPI, names: dict[str, str]) -> list[tuple[str, str, dict[str, Any]]]:
    """A valid request to every operation that names something, with these names."""
    bodies: dict[tuple[str, str], dict[str, Any]] = {
        ("post", "/v1/models/{name}/score"): {
            "content": submitting.picture(1),
            "headers": PNG,
        },
        ("post", "/v1/models/{name}/promote"): {"json": {"version": 1}},
        ("post", "/v1/models/{name}/rollback"): {"json": {}},
        ("post", "/v1/datasets/{name}/uploads/{id}/files"): {"content": submitting.framed([submitting.picture(99)])},
        ("post", "/v1/datasets/{name}/examples"): {
            "content": submitting.picture(2),
            "headers": PNG,
            "params": {"label": "crack"},
        },
        ("post", "/v1/searches"): {"json": {"dataset": names["name"], "trials": 1}},
    }
    bare = {"/health", "/ready", "/metrics", "/v1/models", "/v1/datasets"}
    makes = {"/v1/datasets/{name}/uploads", "/v1/datasets/{name}/archive"}  # of a name that is free in any project
    found = []
    for path, operations in app.openapi()["paths"].items():
        for method in METHODS:
            if method not in operations or path in makes or path in bare or (method, path) == ("get", "/v1/searches"):
                continue
            kind = "model" if path.startswith("/v1/models") else "name"
            filled = path.replace("{name}", names[kind]).replace("{version}", VERSION)
            filled = filled.replace("{id}", names["upload" if "/uploads/" in path else "search"])
            assert "{" not in filled, path
            assert filled != path or (method, path) in bodies, f"what would be asked of {method} {path}?"
            found.append((method, filled, bodies.get((method, path), {})))
    return found


def test_every_route_answers_as_if_the_other_project_were_not_there(serve: Serve) -> None:
    async def main(service: Any) -> None:
        alice, bob = await create_keys(service.keys)
        theirs = await fill(service, alice)
        before = await _everything(service, alice)
        pairs = list(zip(requests_of(service.app, theirs), requests_of(service.app, NOBODYS), strict=True))
        assert len(pairs) >= 20
        by_id = [
            (request, (method, path.replace(NOBODYS["search"], "0123456789ab"), more))
            for request, (method, path, more) in pairs
            if "/v1/searches/" in path
        ]
        by_id = [((method, path.replace(theirs["search"], theirs["id"]), m), two) for (method, path, m), two in by_id]
        assert by_id
        for (method, path, more), (_, other_path, other_more) in pairs + by_id:
            one = await _ask(service, method, path, more, bob)
            other = await _ask(service, method, other_path, other_more, bob)
            assert one.status_code == other.status_code == 404, (method, path, one.text, other.text)
            assert _blank(one.text, theirs) == _blank(other.text, {**NOBODYS, "id": "0123456789ab"}), (method, path)
        for path in ("/v1/models", "/v1/datasets", "/v1/searches", "/metrics"):
            seen = (await service.client.get(path, headers=bob)).text
            assert not [word for word in theirs.values() if word in seen], path
        assert await _everything(service, alice) == before

    serve(main)


def test_names_keys_and_files_of_another_project_are_free(serve: Serve) -> None:
    async def main(service: Any) -> None:
        alice, bob = await create_keys(service.keys)
        await fill(service, alice)
        files = submitting.folder()
        path = f"/v1/datasets/{THEIRS['name']}"
        begun = (await service.client.post(f"{path}/uploads", json=submitting.announced(files), headers=bob)).json()
        assert len(begun["missing"]) == len({hashlib.sha256(data).digest() for data in files.values()})
        made = await submitting.submit(service.client, THEIRS["name"], files, headers=bob)
        assert made.status_code == 201
        assert made.json()["version"] == 1
        asked = {"dataset": THEIRS["name"], "name": THEIRS["search"], "trials": 2}
        search = await service.client.post("/v1/searches", json=asked, headers={**bob, "Idempotency-Key": "one"})
        assert search.status_code == 202
        theirs = (await service.client.get(f"/v1/searches/{THEIRS['search']}", headers=alice)).json()
        assert search.json()["id"] != theirs["id"]
        assert search.json()["position"] == 0  # how many others wait is not told either
        assert len((await service.client.get("/v1/searches", headers=bob)).json()["items"]) == 1

    serve(main)


def test_looking_a_hash_up_takes_as_long_whether_another_project_has_it_or_not(serve: Serve) -> None:
    async def main(service: Any) -> None:
        alice, bob = await create_keys(service.keys)
        known = {f"train/good/{index:03d}.png": submitting.picture(index) for index in range(60)}
        await submitting.submit(service.client, "theirs", known, headers=alice)
        kept = submitting.announced(known)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(120):
            is_known = turn % 2 == 0
            asked = json.loads(json.dumps(kept))
            asked["note"] = "either way" if is_known else "other way."
            for number, file in enumerate(asked["files"]):
                file["path"] = f"train/good/{turn:03d}-{number:03d}.png"  # no two uploads are the same
                if not is_known:
                    file["sha256"] = hashlib.sha256(f"{turn} {number}".encode()).hexdigest()
            started = time.perf_counter()
            reply = await service.client.post("/v1/datasets/mine/uploads", json=asked, headers=bob)
            seconds[is_known].append(time.perf_counter() - started)
            assert len(reply.json()["missing"]) == 60
        ratio = statistics.median(seconds[True]) / statistics.median(seconds[False])
        assert ratio == pytest.approx(1, abs=0.25)

    serve(main)


async def _ask(service: Any, method: str, path: str, more: dict[str, Any], key: dict[str, str]) -> Any:
    headers = {**more.get("headers", {}), **key}
    return await service.client.request(method.upper(), path, **{**more, "headers": headers})


async def _everything(service: Any, key: dict[str, str]) -> list[str]:
    """What a project sees of itself."""
    paths = ["/v1/models/gravel", f"/v1/datasets/{THEIRS['name']}", "/v1/searches", "/v1/datasets"]
    return [(await service.client.get(path, headers=key)).text for path in paths]


def _blank(text: str, names: dict[str, str]) -> str:
    for name in sorted(names.values(), key=len, reverse=True):
        text = text.replace(name, "*")
    return text
