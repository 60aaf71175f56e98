from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy
from PIL import Image

from autoad.errors import (
    ArtifactError,
    AutoADError,
    FileStoreError,
    PromotionError,
    StateError,
    StorageFullError,
    WeightsError,
)
from autoad.models import Model
from autoad.models.model import Part
from autoad.serve import faults
from autoad.serve.auth import internal_key
from autoad.serve.faults import ErrorReply
from autoad.serve.http import describe_api
from tests.serve.mutation import encodings, mutated

ROOT = Path(__file__).parent.parent.parent
SCORE = "/v1/models/gravel/score"
PNG = {"Content-Type": "image/png"}
Serve = Callable[..., None]
Main = Callable[[Any], Awaitable[None]]


def check_error(reply: Any, status: int, code: str) -> dict[str, Any]:
    """The one shape, and nothing that a client should not see."""
    assert (reply.status_code, reply.json().get("error", {}).get("code")) == (status, code), reply.text
    assert reply.headers["Content-Type"] == "application/json"
    ErrorReply.model_validate(reply.json(), strict=True)
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) <= {"code", "message", "hint", "details"}
    assert None not in error.values()
    for inside in ("Traceback", 'File "', str(ROOT), "site-packages", "/data/", "/models/default/", ".safetensors"):
        assert inside not in reply.text
    if status in (429, 503):
        assert int(reply.headers["Retry-After"]) >= 1
    if status == 401:
        assert reply.headers["WWW-Authenticate"].startswith("Bearer")
    return error


def test_a_picture_is_scored_as_it_is_by_the_model_alone(plant: Any, serve: Serve) -> None:
    model = Model.load(plant.folder("gravel", 1))

    async def main(service: Any) -> None:
        for data in plant.pictures[:2]:
            expected = model.score(data)
            reply = await service.client.post(SCORE, content=data, headers=PNG)
            assert reply.status_code == 200
            body = reply.json()
            assert (body["model"], body["version"], body["replica"]) == ("gravel", 1, "r1")
            [picture] = body["pictures"]
            assert picture["score"] == expected.score
            assert picture["normalized_score"] == expected.normalized_score
            assert picture["is_anomalous"] == expected.is_anomalous
            assert picture["regions"] == [region.model_dump() for region in expected.regions or []]
            assert picture["map"] is None
            times = body["timing_ms"]
            assert times["total"] >= times["decode"] > 0

    serve(main)


def test_raw_form_and_json_are_the_same(plant: Any, serve: Serve) -> None:
    pictures = plant.pictures[:3]

    async def main(service: Any) -> None:
        files = [("pictures", (f"{index}.png", data, "image/png")) for index, data in enumerate(pictures)]
        encoded = [base64.b64encode(data).decode() for data in pictures]
        single = [await service.client.post(SCORE, content=data, headers=PNG) for data in pictures]
        form = await service.client.post(SCORE, files=files)
        as_json = await service.client.post(SCORE, json={"pictures": encoded})
        alone = [reply.json()["pictures"][0] for reply in single]
        assert len({one["score"] for one in alone}) == 3
        assert form.json()["pictures"] == alone
        assert as_json.json()["pictures"] == alone

    serve(main)


def test_maps_on_request(plant: Any, serve: Serve) -> None:
    expected = Model.load(plant.folder("gravel", 1)).score(plant.pictures[1]).anomaly_map

    async def main(service: Any) -> None:
        for kind in ("npy", "png"):
            reply = await service.client.post(SCORE, content=plant.pictures[1], headers=PNG, params={"map": kind})
            data = base64.b64decode(reply.json()["pictures"][0]["map"], validate=True)
            if kind == "npy":
                assert np.load(io.BytesIO(data), allow_pickle=False).tobytes() == expected.tobytes()
            else:
                assert Image.open(io.BytesIO(data)).size == expected.shape[::-1]

    serve(main)


def test_a_requests_id_is_echoed_or_made(plant: Any, serve: Serve) -> None:
    async def main(service: Any) -> None:
        async def ask(**headers: str) -> Any:
            given = PNG | {name.replace("_", "-"): value for name, value in headers.items()}
            reply = await service.client.post(SCORE, content=plant.pictures[0], headers=given)
            assert reply.json()["request_id"] == reply.headers["X-Request-Id"]
            assert reply.headers["X-Model-Version"] == "1"
            return reply.headers["X-Request-Id"]

        assert await ask(X_Request_Id="line-3/42") == "line-3/42"
        made = {await ask(), await ask(), await ask(X_Request_Id="x" * 201), await ask(X_Request_Id="two words")}
        assert len(made) == 4
        assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)

    serve(main)


def test_a_canary_answers_by_the_requests_id(plant: Any, serve: Serve) -> None:
    async def main(service: Any) -> None:
        body = {"version": 2, "canary": 0.5}
        assert (await service.client.post("/v1/models/gravel/promote", json=body)).status_code == 200
        while service.scorer.routes["default", "gravel"].canary != 2:
            await asyncio.sleep(0.01)
        seen = {}
        for _turn in range(2):
            for index in range(12):
                headers = PNG | {"X-Request-Id": f"id-{index}"}
                reply = await service.client.post(SCORE, content=plant.pictures[0], headers=headers)
                version = int(reply.headers["X-Model-Version"])
                assert reply.json()["version"] == version
                assert seen.setdefault(index, version) == version
        assert set(seen.values()) == {1, 2}
        for wanted, version in (("champion", 1), ("canary", 2), ("2", 2)):
            reply = await service.client.post(SCORE, content=plant.pictures[0], headers=PNG, params={"version": wanted})
            assert reply.json()["version"] == version

    serve(main)


def test_promotion_rollback_and_deletion(plant: Any, serve: Serve) -> None:
    async def main(service: Any) -> None:
        client = service.client
        promoted = await client.post("/v1/models/gravel/promote", json={"reason": "better"})
        assert promoted.json()["version"] == 2
        assert promoted.json()["route"]["champion"] == 2
        check_error(await client.delete("/v1/models/gravel/versions/1"), 400, "bad_request")  # it is previous
        back = await client.post("/v1/models/gravel/rollback", json={"reason": "worse"})
        assert (back.json()["champion"], back.json()["previous"]) == (1, 2)
        shown = (await client.get("/v1/models/gravel")).json()
        assert [version["version"] for version in shown["versions"]] == [2, 1]
        assert [(line["action"], line["reason"], line["actor"]) for line in shown["history"][:2]] == [
            ("rollback", "worse", "local"),
            ("promote", "better", "local"),
        ]
        listed = (await client.get("/v1/models")).json()
        assert [model["name"] for model in listed] == ["belt", "gravel"]
        assert listed[1] == shown | {"history": []}
        await client.post("/v1/models/gravel/promote", json={"version": 2, "reason": "again"})
        for role in ("canary", "shadow"):
            options = {"canary": 0.5} if role == "canary" else {"shadow": True}
            assert (await client.post("/v1/models/gravel/promote", json={"version": 1} | options)).status_code == 200
            ended = await client.delete(f"/v1/models/gravel/{role}", params={"reason": f"no {role} & more"})
            assert (ended.status_code, ended.json()[role]) == (200, None)
            line = (await client.get("/v1/models/gravel")).json()["history"][0]
            assert (line["action"], line["reason"]) == (f"end_{role}", f"no {role} & more")
        check_error(await client.delete("/v1/models/gravel/versions/9"), 404, "unknown_name")

    serve(main)


# Every status.


def test_what_is_wrong_with_a_request(plant: Any, serve: Serve, bomb: bytes) -> None:
    data = plant.pictures[0]

    async def main(service: Any) -> None:
        post = service.client.post
        for reply in (
            await post(SCORE, content=b"", headers=PNG),
            await post(SCORE, content=b"{}", headers={"Content-Type": "application/json"}),
            await post(SCORE, content=b"x", headers={"Content-Type": "multipart/form-data"}),
            await post(SCORE, content=data, headers=PNG, params={"map": "gif"}),
            await post(SCORE, content=data, headers=PNG, params={"version": "v" * 101}),
            await post("/v1/models/.hidden/score", content=data, headers=PNG),
            await post("/v1/models/gravel/promote", json={"version": 0}),
            await post("/v1/models/gravel/promote", json={"version": 10**30}),
            await post("/v1/models/gravel/promote", json={"reason": "a\0b"}),
            await post("/v1/models/gravel/promote", json={"canary": 1}),
            await post("/v1/models/gravel/promote", json={"canary": 0.5, "shadow": True}),
            await service.client.delete("/v1/models/gravel/canary", params={"reason": "r" * 1001}),
            await service.client.delete("/v1/models/gravel/shadow", params={"reason": "a\0b"}),
            await service.client.delete("/v1/models/gravel/versions/2", params={"reason": "a\0b"}),
            await post("/v1/models/gravel/promote", json={"unknown": 1}),
            await post("/v1/models/gravel/promote", content=b"{"),
            await post(
                "/v1/models/gravel/promote", content=b"[" * 60_000, headers={"Content-Type": "application/json"}
            ),
            await post("/v1/models/gravel/rollback", json={"reason": "x" * 1001}),
            await post("/v1/models/belt/rollback", json={}),  # there is no previous champion
            await service.client.delete("/v1/models/gravel/versions/0"),
            await service.client.delete("/v1/models/gravel/versions/one"),
        ):
            check_error(reply, 400, "bad_request")
        half = b'{"reason": 7, "\\ud800": 1}'  # half a surrogate pair, in a name that is repeated
        reply = await post("/v1/models/gravel/rollback", content=half, headers={"Content-Type": "application/json"})
        assert check_error(reply, 400, "bad_request")["details"]
        many = json.dumps({f"unknown-{index}": 1 for index in range(3000)}).encode()
        reply = await post("/v1/models/gravel/rollback", content=many, headers={"Content-Type": "application/json"})
        assert len(check_error(reply, 400, "bad_request")["details"]) == 20

        for path in ("/v1/models/grave/score", f"{SCORE}?version=77", f"{SCORE}?version=champ"):
            check_error(await post(path, content=data, headers=PNG), 404, "unknown_name")
        assert "Did you mean 'gravel'" in (await post("/v1/models/grave/score", content=data, headers=PNG)).text
        check_error(await service.client.get("/v1/models/grave"), 404, "unknown_name")
        for path in ("/", "/nothing", "/v1/models/", "/v1/models/gravel/", "/v1/models/a/b/c", "//", "/docs/"):
            check_error(await service.client.get(path), 404, "not_found")
        for method, path in (("PUT", "/v1/models"), ("GET", SCORE), ("OPTIONS", "/health"), ("HEAD", "/health")):
            reply = await service.client.request(method, path)
            assert reply.status_code == 405
            assert reply.headers["Allow"]
            if method != "HEAD":
                check_error(reply, 405, "method_not_allowed")

        check_error(await post(f"{SCORE}?version=previous", content=data, headers=PNG), 409, "not_promoted")
        for kind in ("text/plain", "application/xml", ""):
            reply = await post(SCORE, content=data, headers={"Content-Type": kind})
            check_error(reply, 415, "unsupported_media_type")
        for hostile in (
            data[: len(data) // 2],
            data[:30],
            b"text",
            b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
            gif(),
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff",
            b"%PDF-1.7",
            bytes(1000),
        ):
            error = check_error(await post(SCORE, content=hostile, headers=PNG), 422, "unreadable_picture")
            assert error["message"].startswith("picture 1 ")
        both = [("pictures", ("a", data)), ("pictures", ("b", b"text"))]
        error = check_error(await post(SCORE, files=both), 422, "unreadable_picture")
        assert error["message"].startswith("picture 2 ")
        check_error(await post(SCORE, content=bomb, headers=PNG), 413, "picture_too_large")

    serve(main, max_pixels=30_000_000)


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (8, 8)).save(buffer, "GIF")
    return buffer.getvalue()


def test_limits_of_a_request(plant: Any, serve: Serve) -> None:
    data = plant.pictures[0]

    async def chunks(count: int) -> Any:
        for _ in range(count):
            yield bytes(50_000)

    async def main(service: Any) -> None:
        post = service.client.post
        for reply in (
            await post(SCORE, content=bytes(200_001), headers=PNG),
            await post(SCORE, content=chunks(5), headers=PNG),
            await post(SCORE, content=b"x", headers=PNG | {"Content-Length": "9" * 30}),
            await post(SCORE, files=[("pictures", (str(index), b"x")) for index in range(4)]),
            await post(SCORE, json={"pictures": ["AAAA"] * 4}),
            await post("/v1/models/gravel/rollback", content=chunks(2)),
            await post("/v1/models/gravel/promote", content=b" " * 2**17, headers={"Content-Type": "application/json"}),
        ):
            check_error(reply, 413, "request_too_large")
        check_error(await post(SCORE, content=chunks(4), headers=PNG), 422, "unreadable_picture")
        assert (await post(SCORE, content=data, headers=PNG)).status_code == 200

    serve(main, max_request_bytes=200_000, max_pictures=3)


def test_nobody_without_a_key_has_much_read(plant: Any, serve: Serve) -> None:
    """FastAPI reads a JSON body before it asks who sends it."""
    read = 0

    async def chunks() -> Any:
        nonlocal read
        for _ in range(1000):
            read += 50_000
            yield bytes(50_000)

    async def main(service: Any) -> None:
        service.keys.create("line-1", ["score"])
        await asyncio.sleep(0.1)
        check_error(await service.client.post(SCORE, content=b"x", headers=PNG), 401, "unauthenticated")
        check_error(await service.client.post("/v1/models/gravel/promote", content=chunks()), 413, "request_too_large")

    serve(main)
    assert 0 < read < 200_000


def test_keys_and_scopes(plant: Any, serve: Serve) -> None:
    data = plant.pictures[0]

    async def main(service: Any) -> None:
        _, score = service.keys.create("line-1", ["score"])
        _, submit = service.keys.create("night", ["submit"])
        _, admin = service.keys.create("boss", ["admin"])
        _, other = service.keys.create("elsewhere", ["admin"], project="other")
        await asyncio.sleep(0.1)

        async def ask(method: str, path: str, key: str | None, **options: Any) -> Any:
            headers = options.pop("headers", {}) | ({} if key is None else {"Authorization": f"Bearer {key}"})
            return await service.client.request(method, path, headers=headers, **options)

        picture = {"content": data, "headers": PNG}
        changes = [
            ("POST", "/v1/models/gravel/promote", {"json": {}}),
            ("POST", "/v1/models/gravel/rollback", {"json": {}}),
            ("DELETE", "/v1/models/gravel/canary", {}),
            ("DELETE", "/v1/models/gravel/shadow", {}),
            ("DELETE", "/v1/models/gravel/versions/2", {}),
        ]
        reads = [("GET", "/v1/models", {}), ("GET", "/v1/models/gravel", {}), ("GET", "/metrics", {})]
        for method, path, options in [("POST", SCORE, picture), *reads, *changes]:
            for key in (None, "autoad_nobody_secret", score[:-1] + "."):
                check_error(await ask(method, path, key, **options), 401, "unauthenticated")
            check_error(await ask(method, path, submit, **options), 403, "forbidden")
        for method, path, options in [("POST", SCORE, picture), *reads]:
            assert (await ask(method, path, score, **options)).status_code == 200
        before = service.registry.routes()
        for method, path, options in changes:
            error = check_error(await ask(method, path, score, **options), 403, "forbidden")
            assert "needs the scope 'admin'" in error["message"]
        assert service.registry.routes() == before
        assert (await ask("POST", SCORE, admin, **picture)).status_code == 200
        assert (await ask("POST", "/v1/models/gravel/promote", admin, json={})).status_code == 200
        assert service.registry.model("gravel").history[0].actor == "boss"

        # Of another project nothing is to be seen: a name that exists and one that does not are alike.
        assert (await ask("GET", "/v1/models", other)).json() == []
        _, called_local = service.keys.create("local", ["score"], project="other")  # a name that opens nothing
        await asyncio.sleep(0.1)
        assert 'model="gravel"' in (await ask("GET", "/metrics", score)).text
        for key in (other, called_local):
            text = (await ask("GET", "/metrics", key)).text
            assert "autoad_requests_total{" in text
            assert "gravel" not in text
        everything = [("POST", SCORE, picture), ("GET", "/v1/models/gravel", {}), *changes]
        for method, path, options in everything:
            there = await ask(method, path, other, **options)
            nowhere = await ask(method, path.replace("gravel", "nothing"), other, **options)
            assert there.status_code == nowhere.status_code == 404, (method, path)
            assert there.text.replace("gravel", "nothing") == nowhere.text
        assert (await ask("POST", f"{SCORE}?version=1", other, **picture)).status_code == 404
        assert service.registry.model("gravel").route.champion == 2

        for path in ("/health", "/ready", "/docs", "/openapi.json"):
            assert (await ask("GET", path, None)).status_code == 200

    serve(main)


def test_a_key_has_its_rate(plant: Any, serve: Serve) -> None:
    async def main(service: Any) -> None:
        files = [("pictures", (str(index), data)) for index, data in enumerate(plant.pictures[:3])]
        assert (await service.client.post(SCORE, files=files)).status_code == 200
        reply = await service.client.post(SCORE, content=plant.pictures[0], headers=PNG)
        check_error(reply, 429, "rate_exceeded")
        assert 20 <= int(reply.headers["Retry-After"]) <= 21  # two too many, at a tenth a second
        # The server itself, which sends what is to be promoted its parity pictures, has no rate.
        own = {"Authorization": f"Bearer {internal_key(service.secret, 'default')}"}
        for _ in range(3):
            reply = await service.client.post(SCORE, content=plant.pictures[0], headers=PNG | own)
            assert reply.status_code == 200

    serve(main, rate=0.1)


def test_a_full_queue_says_so(plant: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    measure = Part.measure

    def slow(self: Part, *arguments: Any) -> Any:
        assert hold.wait(20)
        return measure(self, *arguments)

    monkeypatch.setattr(Part, "measure", slow)

    async def main(service: Any) -> None:
        files = [("pictures", (str(index), data)) for index, data in enumerate(plant.pictures[:3])]
        first = asyncio.create_task(service.client.post(SCORE, files=files))
        while service.scorer.pending < 3:
            await asyncio.sleep(0.01)
        check_error(await service.client.post(SCORE, files=files), 429, "queue_full")
        assert (await service.client.get("/health")).status_code == 200
        hold.set()
        assert (await first).status_code == 200

    serve(main, max_queue=4)


@pytest.mark.parametrize("limit", [{"max_queue": 1}, {"max_request_bytes": 40_000, "max_held_bytes": 40_000}], ids=str)
def test_bodies_are_not_read_without_end(
    plant: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch, limit: dict[str, int]
) -> None:
    hold = threading.Event()
    measure = Part.measure

    def slow(self: Part, *arguments: Any) -> Any:
        assert hold.wait(20)
        return measure(self, *arguments)

    monkeypatch.setattr(Part, "measure", slow)
    chunk = bytes(1000)
    picture = plant.pictures[0]
    assert 20_000 < len(picture) < 40_000
    read = 0

    async def large() -> Any:
        nonlocal read
        for _ in range(39):
            read += len(chunk)
            yield chunk

    async def main(service: Any) -> None:
        first = asyncio.create_task(service.client.post(SCORE, content=picture, headers=PNG))
        while service.scorer.pending < 1:
            await asyncio.sleep(0.01)
        check_error(await service.client.post(SCORE, content=large(), headers=PNG), 429, "queue_full")
        hold.set()
        assert (await first).status_code == 200
        assert (await service.client.post(SCORE, content=picture, headers=PNG)).status_code == 200  # all is given back

    serve(main, **limit)
    if "max_queue" not in limit:
        assert len(picture) + read < 42_000
    else:
        assert read == 0


@pytest.mark.parametrize(
    "error",
    [
        ArtifactError("the file '/data/models/default/gravel/2/model.safetensors' is damaged"),
        WeightsError("no /data/weights"),
        FileStoreError("no s3://bucket/data/"),
        StorageFullError(Path("/data/models"), 10, 0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_model_that_cannot_be_loaded(
    plant: Any,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: AutoADError,
) -> None:
    async def main(service: Any) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(service.registry, "open", fail)
        reply = await service.client.post(f"{SCORE}?version=2", content=plant.pictures[0], headers=PNG)
        check_error(reply, 503, "model_unavailable")
        assert str(error) in caplog.text  # whoever runs the server is told more
        assert (await service.client.post(SCORE, content=plant.pictures[0], headers=PNG)).status_code == 200

    serve(main)


def test_a_damaged_artifact(plant: Any, serve: Serve, tmp_path: Path) -> None:
    async def main(service: Any) -> None:
        file = tmp_path / "data" / "models" / "default" / "gravel" / "2" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        reply = await service.client.post(f"{SCORE}?version=2", content=plant.pictures[0], headers=PNG)
        check_error(reply, 503, "model_unavailable")

    serve(main)


def test_a_database_out_of_reach(plant: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(service: Any) -> None:
        def fail(*_: object, **__: object) -> None:
            raise sqlalchemy.exc.OperationalError("select secret", {}, OSError("host db.internal"))

        for method in ("routes", "mark", "open", "models", "model"):
            monkeypatch.setattr(service.registry, method, fail)
        await asyncio.sleep(0.1)
        for reply in (
            await service.client.get("/v1/models"),
            await service.client.get("/v1/models/gravel"),
            await service.client.post(f"{SCORE}?version=2", content=plant.pictures[0], headers=PNG),
        ):
            check_error(reply, 503, "unavailable")
            assert "secret" not in reply.text
            assert "db.internal" not in reply.text
        assert (await service.client.post(SCORE, content=plant.pictures[0], headers=PNG)).status_code == 200
        assert (await service.client.get("/ready")).status_code == 200

    serve(main)


def test_what_the_control_plane_refuses(serve: Serve) -> None:
    async def main(service: Any) -> None:
        post = service.client.post
        service.plane.failure = PromotionError("scores differ", ["picture a", "picture b"])
        error = check_error(await post("/v1/models/gravel/promote", json={}), 409, "promotion_refused")
        assert error == {"code": "promotion_refused", "message": "scores differ", "details": ["picture a", "picture b"]}
        service.plane.failure = StateError("the control plane is being started again")
        check_error(await post("/v1/models/gravel/rollback", json={}), 503, "unavailable")

    serve(main)


def test_before_it_is_ready_and_after_its_thread_has_died(plant: Any, serve: Serve) -> None:
    async def main(service: Any) -> None:
        assert (await service.client.get("/ready")).json() == {"status": "ready"}
        tasks, service.scorer._tasks = service.scorer._tasks, []
        check_error(await service.client.get("/ready"), 503, "unavailable")
        service.scorer._tasks = tasks
        await asyncio.to_thread(service.scorer._batcher.close)
        check_error(await service.client.get("/ready"), 503, "unavailable")
        check_error(await service.client.post(SCORE, content=plant.pictures[0], headers=PNG), 503, "unavailable")
        assert (await service.client.get("/health")).json() == {"status": "up"}

    serve(main)


def test_a_fault_of_the_server_itself(
    plant: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(f"secret of {__file__}")

    async def main(service: Any) -> None:
        monkeypatch.setattr(Part, "measure", fail)
        reply = await service.client.post(SCORE, content=plant.pictures[0], headers=PNG)
        check_error(reply, 500, "failed")
        assert "secret" not in reply.text
        monkeypatch.undo()
        assert (await service.client.post(SCORE, content=plant.pictures[0], headers=PNG)).status_code == 200

    serve(main, raise_errors=False)
    assert "secret" in caplog.text


def test_every_status_of_the_table_is_produced_by_a_test() -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert len(faults._STATUS) >= 15
    for _, status, code in faults._STATUS:
        assert re.search(rf'check_error\([^#]*?{status}, "{code}"\)', text), (status, code)


# Documents.


def test_the_snapshot_of_the_openapi_document_is_up_to_date(serve: Serve) -> None:
    snapshot = ROOT / "docs" / "openapi.json"
    refresh = "the HTTP interface has changed; if that is meant: python -m autoad.serve.http > docs/openapi.json"
    assert snapshot.read_text() == json.dumps(describe_api(), indent=2) + "\n", refresh

    async def main(service: Any) -> None:
        served = await service.client.get("/openapi.json")
        assert served.json() == json.loads(snapshot.read_text()) == service.app.openapi()

    serve(main)


def test_the_manual_is_served(serve: Serve) -> None:
    async def main(service: Any) -> None:
        reply = await service.client.get("/docs")
        assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "POST</span> /v1/models/{name}/score" in reply.text

    serve(main)


def test_replies_are_counted(plant: Any, serve: Serve) -> None:
    async def main(service: Any) -> None:
        await service.client.post(SCORE, content=plant.pictures[0], headers=PNG)
        await service.client.post(SCORE, content=b"text", headers=PNG)
        await service.client.get("/nothing/at/all")
        await service.client.get("/health")
        reply = await service.client.get("/metrics")
        assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        for line in (
            'autoad_requests_total{replica="r1",route="/v1/models/{name}/score",status="200"} 1.0',
            'autoad_requests_total{replica="r1",route="/v1/models/{name}/score",status="422"} 1.0',
            'autoad_requests_total{replica="r1",route="none",status="404"} 1.0',
            'autoad_requests_total{replica="r1",route="/health",status="200"} 1.0',
            'autoad_models_total{event="loaded",replica="r1"} 2.0',
            'autoad_queue_pictures{replica="r1"} 0.0',
        ):
            assert line in reply.text.splitlines()
        assert 'model="gravel",project="default",replica="r1",version="1"' in reply.text

    serve(main)


# Hostile pictures.


def test_three_hundred_mutated_pictures(plant: Any, serve: Serve) -> None:
    image = Image.open(io.BytesIO(plant.pictures[1])).resize((48, 40))
    sound = list(encodings(image))
    rng = np.random.default_rng(0)
    outcomes: dict[int, int] = {}

    async def main(service: Any) -> None:
        for data in sound:
            assert (await service.client.post(SCORE, content=data, headers=PNG)).status_code == 200
        for _ in range(30):
            batch = [mutated(sound, rng) for _ in range(10)]
            for reply in await asyncio.gather(
                *(service.client.post(SCORE, content=data, headers=PNG) for data in batch)
            ):
                status = reply.status_code
                outcomes[status] = outcomes.get(status, 0) + 1
                if status != 200:
                    codes = {400: "bad_request", 413: "picture_too_large", 422: "unreadable_picture"}
                    check_error(reply, status, codes[status])
                else:
                    assert np.isfinite(reply.json()["pictures"][0]["score"])
        assert service.scorer.pending == 0
        assert (await service.client.post(SCORE, content=plant.pictures[0], headers=PNG)).status_code == 200

    serve(main)
    assert sum(outcomes.values()) == 300
    assert outcomes[200] >= 30  # some mutations do no harm
    assert outcomes[422] >= 100
