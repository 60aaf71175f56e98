"""A server that keeps the contract in memory, behind real sockets, with faults on demand."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import datetime
import hashlib
import io
import struct
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from PIL import Image

from autoad.schema import (
    Champion,
    DatasetEntry,
    DatasetSummary,
    Metrics,
    ModelEntry,
    ModelVersionEntry,
    RouteEntry,
    SearchEvent,
    SearchResult,
    SubmissionEntry,
    SubmitRequest,
    TestMetrics,
    TrialRow,
    UploadEntry,
    UploadRequest,
)

NOW = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
LARGEST_BODY = 16 * 2**20
Handler = Callable[[Request], Awaitable[Response]]


@dataclasses.dataclass
class Asked:
    """A request that arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class RefusalError(Exception):
    """Is answered as an error."""

    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.more = status, code, message, more


class Service:
    """What the server knows; one for each test."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.faults: list[tuple[str, Callable[[], Response]]] = []
        self.files: dict[str, bytes] = {}
        self.received: list[str] = []
        self.uploads: dict[str, tuple[str, UploadRequest]] = {}
        self.datasets: dict[str, list[DatasetEntry]] = {}
        self.committed: dict[tuple[str, int], UploadRequest] = {}
        self.searches: dict[str, SubmissionEntry] = {}
        self.keys: dict[str, str] = {}
        self.events: dict[str, list[SearchEvent]] = {}
        self.events_at_once = 100
        self.events_open = asyncio.Event()
        self.models: dict[str, ModelEntry] = {"bottle": a_model("bottle")}
        self.delay: Callable[[bytes], float] = lambda _: 0.0
        self.scoring = 0
        self.most_scoring = 0
        self.api_key = ""
        self.fail_after_work: Counter[str] = Counter()

    def fail(self, path: str, *statuses: int, headers: dict[str, str] | None = None, code: str = "busy") -> None:
        """Answer the next requests whose path ends so with these statuses."""
        for status in statuses:
            body = {"error": {"code": code, "message": f"no: {status}", "hint": "try again", "details": ["one", "two"]}}
            self.faults.append((path, lambda s=status, b=body: JSONResponse(b, s, headers=headers)))  # type: ignore[misc]

    def answer(self, path: str, text: str, status: int = 200) -> None:
        """Answer the next request whose path ends so with this text."""
        self.faults.append((path, lambda: Response(text, status, media_type="application/json")))

    def count(self, method: str, ending: str) -> int:
        """How many requests of a method had a path with this ending."""
        return sum(one.method == method and one.path.endswith(ending) for one in self.asked)

    def last(self, ending: str) -> Asked:
        """The last request whose path ends so."""
        return next(one for one in reversed(self.asked) if one.path.endswith(ending))

    # What requests do

    def missing(self, request: UploadRequest) -> list[str]:
        return list(dict.fromkeys(file.sha256 for file in request.files if file.sha256 not in self.files))

    def upload_entry(self, one: str) -> UploadEntry:
        name, request = self.uploads[one]
        return UploadEntry(
            id=one,
            dataset=name,
            missing=self.missing(request),
            files=len(request.files),
            bytes=sum(file.size for file in request.files),
        )

    def receive(self, body: bytes) -> int:
        assert len(body) <= LARGEST_BODY or struct.unpack(">Q", body[32:40])[0] + 40 == len(body)
        place = count = 0
        while place < len(body):
            digest, size = struct.unpack(">32sQ", body[place : place + 40])
            data = body[place + 40 : place + 40 + size]
            if hashlib.sha256(data).digest() != digest:
                raise RefusalError(400, "bad_request", "a file has another sha256 than it says")
            self.files[digest.hex()] = data
            self.received.append(digest.hex())
            place += 40 + size
            count += 1
        return count

    def new_version(self, name: str, digest: str, files: int, size: int, note: str) -> tuple[int, DatasetEntry]:
        versions = self.datasets.setdefault(name, [])
        if versions and versions[-1].hash == digest:
            return 200, versions[-1]
        counts = {"good": files, "defective": 0, "masks": 0, "skipped": 0}
        entry = DatasetEntry(
            name=name, version=len(versions) + 1, hash=digest, layout="folder", counts=counts, size=size, note=note,
            actor="test", created=NOW,
        )  # fmt: skip
        versions.append(entry)
        return 201, entry

    def submit(self, request: SubmitRequest, key: str) -> SubmissionEntry:
        if key in self.keys:
            return self.searches[self.keys[key]]
        name, _, number = request.dataset.partition("/")
        if name not in self.datasets:
            raise RefusalError(404, "unknown_name", f"unknown dataset {name!r}. There is none yet.")
        one = f"s{len(self.searches) + 1}"
        entry = SubmissionEntry(
            id=one,
            name=request.name or f"{name}-search-{len(self.searches) + 1}",
            dataset=f"{name}/{number or len(self.datasets[name])}",
            model=request.model or name,
            status="queued",
            objective=request.objective,
            promote_when=request.promote_when,
            position=0,
            created=NOW,
        )
        self.searches[one] = entry
        self.keys[key] = one
        self.events[one] = some_events(entry)
        return entry

    def find(self, search: str) -> SubmissionEntry:
        for entry in self.searches.values():
            if search in (entry.id, entry.name):
                return entry
        raise RefusalError(404, "unknown_name", f"unknown search {search!r}. There is none yet.")


def some_events(entry: SubmissionEntry, trials: int = 3) -> list[SearchEvent]:
    """A search that goes well."""
    events = [SearchEvent(id="1", kind="status", text="running", search=entry.model_copy(update={"status": "running"}))]
    for number in range(trials):
        now = entry.model_copy(update={"status": "running", "trials": number + 1, "best": 0.9})
        row = a_trial(number)
        events.append(SearchEvent(id=str(number + 2), kind="trial", text=f"trial {number}", search=now, trial=row))
    ended = entry.model_copy(
        update={
            "status": "complete", "trials": trials, "best": 0.9, "champion": a_champion(entry.model), "position": None,
            "seconds": 12.0, "started": NOW, "finished": NOW,
        }
    )  # fmt: skip
    events.append(SearchEvent(id=str(trials + 2), kind="champion", text="champion dfm", search=ended))
    events.append(SearchEvent(id=str(trials + 3), kind="end", text="the search is complete\u2028", search=ended))
    return events


def a_trial(number: int) -> TrialRow:
    metrics = Metrics(image_auroc=0.9 - number / 10)
    return TrialRow(trial=number, algorithm="dfm", config={}, status="complete", validation=metrics, seconds=1.0)


def a_champion(model: str, version: int = 2) -> Champion:
    return Champion(
        trial=0, algorithm="dfm", config={}, validation=Metrics(image_auroc=0.9),
        test=TestMetrics(image_auroc=0.95, image_auroc_low=0.9, image_auroc_high=1.0), default_patchcore=None,
        difference=None, threshold=1.5, false_positive_rate=0.05, speed=None, model=f"/state/models/{model}/{version}",
        name=model, version=version,
    )  # fmt: skip


def a_result(entry: SubmissionEntry) -> SearchResult:
    roles = {role: {"good": 4, "defective": 2} for role in ("train", "selection", "calibration", "test")}
    return SearchResult(
        search_id=entry.id, name=entry.name, status="complete" if entry.status == "complete" else "running",
        objective=entry.objective, seed=0, seconds=12.0,
        dataset=DatasetSummary(path=entry.dataset, layout="mvtec", hash="0" * 64, counts={"good": 8}, roles=roles),
        evidence="labelled", engine="torch float32", notes=[], champion=entry.champion,
        leaderboard=[a_trial(number) for number in range(entry.trials)],
    )  # fmt: skip


def a_model(name: str) -> ModelEntry:
    versions = [
        ModelVersionEntry(
            name=name, version=number, algorithm="dfm", aliases=["champion"] if number == 1 else [], search="s1",
            trial=0, dataset_hash="0" * 64, code_version="1", created=NOW, size=10, threshold=1.5, validation=None,
            test=None,
        )
        for number in (2, 1)
    ]  # fmt: skip
    route = RouteEntry(project="default", name=name, generation=1, champion=1, previous=2)
    return ModelEntry(name=name, route=route, versions=versions, history=[])


def score_of(data: bytes) -> float:
    """What this server says of a picture: a number that no other has."""
    return int.from_bytes(hashlib.sha256(data).digest()[:4], "big") / 2**32


def _map(data: bytes, kind: str) -> str | None:
    values = np.full((4, 6), score_of(data), np.float32)
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, values)
    elif kind == "png":
        Image.fromarray((255 * values).astype(np.uint8)).save(buffer, "PNG")
    else:
        return None
    return base64.b64encode(buffer.getvalue()).decode()


def create_app(current: Callable[[], Service]) -> FastAPI:
    """The application; ``current`` is the service of the test that runs."""
    app = FastAPI()

    @app.middleware("http")
    async def around(request: Request, call_next: Handler) -> Response:
        service = current()
        body = await request.body()
        path = request.scope["path"]
        service.asked.append(Asked(request.method, path, dict(request.query_params), dict(request.headers), body))
        if service.api_key and request.headers.get("Authorization") != f"Bearer {service.api_key}":
            return _error(RefusalError(401, "unauthenticated", "an API key is needed"))
        for place, (ending, make) in enumerate(service.faults):
            if path.endswith(ending):
                del service.faults[place]
                return make()
        reply = await call_next(request)
        if service.fail_after_work[path.rpartition("/")[2]] > 0:
            service.fail_after_work[path.rpartition("/")[2]] -= 1
            return _error(RefusalError(503, "unavailable", "the reply is lost"))
        return reply

    @app.exception_handler(RefusalError)
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, RefusalError)
        return _error(error)

    def _error(error: RefusalError) -> JSONResponse:
        return JSONResponse({"error": {"code": error.code, "message": error.message} | error.more}, error.status)

    def record(value: Any, status: int = 200) -> Response:
        return Response(value.model_dump_json(), status, media_type="application/json")

    def page(items: list[Any], request: Request) -> Response:
        size = min(2, int(request.query_params.get("limit", 2)))
        start = int(request.query_params.get("after", 0))
        after = str(start + size) if start + size < len(items) else None
        dumped = [item.model_dump(mode="json") for item in items[start : start + size]]
        return JSONResponse({"items": dumped, "next": after, "of_a_newer_server": 1})

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "up"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    # Datasets

    @app.post("/v1/datasets/{name}/uploads")
    async def begin(name: str, request: Request) -> Response:
        body = UploadRequest.model_validate_json(await request.body())
        one = hashlib.sha256((name + body.model_dump_json()).encode()).hexdigest()[:16]
        current().uploads[one] = (name, body)
        return record(current().upload_entry(one), 201)

    @app.get("/v1/datasets/{name}/uploads/{one}")
    async def upload(name: str, one: str) -> Response:
        return record(current().upload_entry(one))

    @app.post("/v1/datasets/{name}/uploads/{one}/files")
    async def files(name: str, one: str, request: Request) -> Response:
        body = await request.body()
        return JSONResponse({"files": current().receive(body), "bytes": len(body)})

    @app.post("/v1/datasets/{name}/uploads/{one}/commit")
    async def commit(name: str, one: str) -> Response:
        service = current()
        _, request = service.uploads[one]
        if service.missing(request):
            raise RefusalError(409, "conflict", "files are missing")
        rows = sorted((file.path, file.sha256) for file in request.files)
        digest = hashlib.sha256(repr((rows, request.table)).encode()).hexdigest()
        size = sum(file.size for file in request.files)
        status, entry = service.new_version(name, digest, len(request.files), size, request.note)
        service.committed[name, entry.version] = request
        return record(entry, status)

    @app.post("/v1/datasets/{name}/archive")
    async def archive(name: str, request: Request) -> Response:
        body = await request.body()
        note = request.query_params.get("note", "")
        status, entry = current().new_version(name, hashlib.sha256(body).hexdigest(), 1, len(body), note)
        return record(entry, status)

    @app.post("/v1/datasets/{name}/examples")
    async def example(name: str, request: Request) -> Response:
        body = await request.body()
        if name not in current().datasets:
            raise RefusalError(404, "unknown_name", f"unknown dataset {name!r}")
        digest = hashlib.sha256(body + str(request.query_params).encode()).hexdigest()
        status, entry = current().new_version(name, digest, 1, len(body), request.query_params.get("note", ""))
        return record(entry, status)

    @app.get("/v1/datasets")
    async def datasets(request: Request) -> Response:
        return page([versions[-1] for _, versions in sorted(current().datasets.items())], request)

    @app.get("/v1/datasets/{name}")
    async def dataset(name: str) -> Response:
        if name not in current().datasets:
            raise RefusalError(404, "unknown_name", f"unknown dataset {name!r}. Did you mean 'bottle'?")
        versions = [entry.model_dump(mode="json") for entry in reversed(current().datasets[name])]
        return JSONResponse({"name": name, "versions": versions})

    @app.get("/v1/datasets/{name}/versions/{version}")
    async def version(name: str, version: int) -> Response:
        if not 1 <= version <= len(current().datasets.get(name, [])):
            raise RefusalError(404, "unknown_name", f"unknown version {version}")
        return record(current().datasets[name][version - 1])

    @app.get("/v1/datasets/{name}/versions/{version}/pictures")
    async def pictures(name: str, version: int, request: Request) -> Response:
        from autoad.schema import DatasetPicture

        files = current().committed[name, version].files
        return page([DatasetPicture(path=f.path, sha256=f.sha256, label="good") for f in files], request)

    # Searches

    @app.post("/v1/searches")
    async def submit(request: Request) -> Response:
        body = SubmitRequest.model_validate_json(await request.body())
        return record(current().submit(body, request.headers["Idempotency-Key"]), 202)

    @app.get("/v1/searches")
    async def searches(request: Request) -> Response:
        return page(list(reversed(current().searches.values())), request)

    @app.get("/v1/searches/{one}")
    async def search(one: str) -> Response:
        return record(current().find(one))

    @app.get("/v1/searches/{one}/leaderboard")
    async def leaderboard(one: str) -> Response:
        return record(a_result(current().find(one)))

    @app.get("/v1/searches/{one}/report")
    async def report(one: str) -> Response:
        return HTMLResponse(f"<h1>{current().find(one).name}</h1>")

    @app.post("/v1/searches/{one}/cancel")
    async def cancel(one: str) -> Response:
        entry = current().find(one).model_copy(update={"status": "cancelled"})
        current().searches[entry.id] = entry
        return record(entry)

    @app.get("/v1/searches/{one}/events")
    async def events(one: str, request: Request) -> Response:
        service = current()
        entry = service.find(one)
        last = int(request.headers.get("Last-Event-ID", "0"))

        async def stream() -> AsyncIterator[str]:
            yield ": hello\n\n"
            told = 0
            for event in service.events[entry.id]:
                if int(event.id) <= last:
                    continue
                if told == service.events_at_once:
                    return
                yield f"id: {event.id}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"
                yield f"id: {event.id}\nevent: of_a_newer_server\ndata: x\n\n"
                service.searches[entry.id] = event.search
                told += 1
            await service.events_open.wait()

        return StreamingResponse(stream(), media_type="text/event-stream")

    # Models

    @app.post("/v1/models/{name}/score")
    async def score(name: str, request: Request) -> Response:
        service = current()
        data = await request.body()
        if name not in service.models:
            raise RefusalError(404, "unknown_name", f"unknown model {name!r}")
        if data.startswith(b"bad"):
            raise RefusalError(422, "unreadable_picture", "is no PNG, JPEG, BMP, TIFF or WebP picture")
        service.scoring += 1
        service.most_scoring = max(service.most_scoring, service.scoring)
        try:
            await asyncio.sleep(service.delay(data))
        finally:
            service.scoring -= 1
        value = score_of(data)
        has_map = not data.startswith(b"flat")
        one = {
            "score": value, "normalized_score": value, "is_anomalous": value > 0.5, "regions": [] if has_map else None,
            "map": _map(data, request.query_params.get("map", "none")) if has_map else None, "of_a_newer_server": 1,
        }  # fmt: skip
        timing = dict.fromkeys(("read", "decode", "queue", "forward", "head", "total"), 1.0)
        number = request.query_params.get("version", "1")
        return JSONResponse(
            {
                "model": name, "version": int(number) if number.isdigit() else 1, "replica": "r1",
                "request_id": request.headers["X-Request-Id"], "pictures": [one], "timing_ms": timing,
            }
        )  # fmt: skip

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse([one.model_dump(mode="json") for one in current().models.values()])

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        if name not in current().models:
            raise RefusalError(404, "unknown_name", f"unknown model {name!r}")
        return record(current().models[name])

    @app.post("/v1/models/{name}/promote")
    async def promote(name: str, request: Request) -> Response:
        route = current().models[name].route.model_dump()
        number = (await request.json())["version"] or 2
        return JSONResponse(
            {
                "route": route | {"champion": number}, "version": number, "replicas": ["r1", "r2"],
                "parity_pictures": 4, "parity_answers": 8, "seconds": 1.0,
            }
        )  # fmt: skip

    @app.post("/v1/models/{name}/rollback")
    async def rollback(name: str) -> Response:
        return record(current().models[name].route)

    @app.delete("/v1/models/{name}/canary")
    @app.delete("/v1/models/{name}/shadow")
    async def end(name: str) -> Response:
        return record(current().models[name].route)

    @app.delete("/v1/models/{name}/versions/{version}")
    async def delete(name: str, version: int) -> Response:
        if version == 1:
            raise RefusalError(400, "bad_request", "version 1 of 'bottle' is champion and cannot be deleted")
        return Response(status_code=204)

    return app


@contextlib.contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    """The application at an address of this machine."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
