"""The HTTP interface: scoring, models, promotion, datasets, searches, health, metrics, documentation."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Annotated, Any, Protocol, cast

from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import autoad
from autoad.data.catalog import Catalog
from autoad.database import Database
from autoad.errors import StateError
from autoad.models.registry import Registry
from autoad.schema import MapFormat, ModelEntry, PromoteRequest, PromotionResult, ReasonRequest, RouteEntry, ScoreReply
from autoad.schema import Scope as KeyScope
from autoad.search.submissions import Submissions
from autoad.serve import faults
from autoad.serve.auth import Identity
from autoad.serve.batching import QueueFullError
from autoad.serve.datasets import datasets_router, limits_of
from autoad.serve.faults import ErrorReply, describe_errors
from autoad.serve.manual import draw_manual
from autoad.serve.options import ServeOptions
from autoad.serve.pictures import BodyBudget, read_pictures
from autoad.serve.rates import RateLimiter
from autoad.serve.replies import make_reply
from autoad.serve.reports import report_store
from autoad.serve.scorer import Scorer
from autoad.serve.searches import searches_router
from autoad.settings import Settings, get_settings

__all__ = ["ControlPort", "Doorkeeper", "create_app", "describe_api"]

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,200}")
_Name = Annotated[str, Path(description="Name of a model.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
_Reason = Annotated[str, Query(description="Why; kept in the model's history.", max_length=1000, pattern=r"^[^\x00]*$")]
_CONTROL_BYTES = 2**16  # of a request that brings no pictures
# These read their bodies themselves, once they know who sends them, and know limits of their own.
_HAS_LIMITS = re.compile(r"/score$|^/v1/datasets/[^/]+/(uploads|uploads/[^/]+/files|archive|examples)$")
_PICTURES = {
    "requestBody": {
        "required": True,
        "description": "One picture as it is, several in a form, or base64 in JSON.",
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "pictures": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
                    },
                    "required": ["pictures"],
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "pictures": {
                            "type": "array",
                            "items": {"type": "string", "contentEncoding": "base64", "minLength": 4},
                            "minItems": 1,
                        }
                    },
                    "required": ["pictures"],
                }
            },
        },
    }
}


class ControlPort(Protocol):
    """The control plane, which may be another process."""

    async def call(self, method: str, *arguments: Any) -> Any:
        """What a method of :class:`autoad.serve.control.Control` returns."""

    async def metrics(self, project: str | None) -> bytes:
        """The metrics of all replicas; of models, only this project's, or all projects' for None."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Entered while the application runs."""


class Doorkeeper(Protocol):
    """Who a request is from (:class:`autoad.serve.auth.Authenticator`)."""

    def authenticate(self, authorization: str | None) -> Identity:
        """Whose key this is."""

    def start(self) -> None:
        """Begin to watch the keys."""

    def close(self) -> None:
        """End that."""


def create_app(
    scorer: Scorer,
    registry: Registry,
    control: ControlPort,
    doorkeeper: Doorkeeper,
    options: ServeOptions,
    database: Database,
    settings: Settings | None = None,
) -> FastAPI:
    """The application of one replica.

    Args:
        scorer: started and stopped with the application.
        registry: for listing models.
        control: for whatever changes a route.
        doorkeeper: knows the API keys.
        options: limits.
        database: with searches and datasets.
        settings: where their files are; from the environment by default.
    """
    settings = settings or get_settings()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await asyncio.to_thread(doorkeeper.start)
            await scorer.start()
            async with control.running():
                yield
        finally:
            await scorer.stop()
            await asyncio.to_thread(doorkeeper.close)

    app = _App(
        title="autoad",
        version=autoad.__version__,
        description="Keeps datasets, searches for models, promotes them, and scores pictures by them.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    faults.install(app)
    app.add_middleware(_Limited)
    app.add_middleware(_Counted, count=scorer.metrics.count_request)
    limiter = RateLimiter(options.rate)
    bodies = BodyBudget(int(options.max_held_bytes))

    def may(scope: KeyScope) -> Any:
        async def check(request: Request) -> Identity:  # async, or FastAPI would give it a thread
            identity = doorkeeper.authenticate(request.headers.get("Authorization"))
            identity.require(scope)
            return identity

        return Depends(check)

    may_score, may_admin = may("score"), may("admin")
    catalog = Catalog(database, settings, limits_of(options))
    app.include_router(datasets_router(catalog, may, bodies, options))
    reports = functools.partial(report_store, settings)
    app.include_router(searches_router(Submissions(database), catalog, reports, may, options))

    @app.post(
        "/v1/models/{name}/score",
        response_model=ScoreReply,
        responses=describe_errors(400, 404, 409, 413, 415, 422, 429),
        openapi_extra=_PICTURES,
        summary="Score pictures",
        tags=["scoring"],
    )
    async def score(
        request: Request,
        name: _Name,
        identity: Identity = may_score,
        version: Annotated[
            str | None, Query(description="Number or alias; the champion, or its canary, by default.", max_length=100)
        ] = None,
        map: Annotated[MapFormat, Query(description="Whether and how to send anomaly maps.")] = "none",  # noqa: A002
    ) -> Response:
        """Verdict, score and regions of each picture, all by one version, which the reply names."""
        started = time.perf_counter()
        request_id = _request_id(request)
        if scorer.pending >= options.max_queue:  # whatever it brings would be refused, so it need not be read
            raise QueueFullError(
                f"{scorer.pending} pictures are waiting and at most {options.max_queue} may; try again in a moment"
            )
        with bodies.hold() as take:
            pictures = await read_pictures(request, options, take)
            read = 1000 * (time.perf_counter() - started)
            if not identity.internal:  # or no promotion would pass its check where keys may ask for little
                limiter.take((identity.project, identity.name), len(pictures))
            answer = await scorer.score(identity.project, name, pictures, wanted=version, request_id=request_id)
            total = 1000 * (time.perf_counter() - started)
            arguments = (answer, name, scorer.replica, request_id, map, read, total)
            # Maps take milliseconds to encode, which others should not wait for.
            body = make_reply(*arguments) if map == "none" else await asyncio.to_thread(make_reply, *arguments)
        headers = {"X-Request-Id": request_id, "X-Model-Version": str(answer.version)}
        return Response(body, media_type="application/json", headers=headers)

    @app.get("/v1/models", responses=describe_errors(), summary="List models", tags=["models"])
    async def models(identity: Identity = may_score) -> list[ModelEntry]:
        """All models of the key's project, with versions and routes; the history only comes with a single model."""
        return await asyncio.to_thread(registry.models, identity.project, histories=False)

    @app.get("/v1/models/{name}", responses=describe_errors(400, 404), summary="Show a model", tags=["models"])
    async def model(name: _Name, identity: Identity = may_score) -> ModelEntry:
        """Versions, route and history of a model."""
        return await asyncio.to_thread(registry.model, name, identity.project)

    @app.post(
        "/v1/models/{name}/promote",
        responses=describe_errors(400, 404, 409, 413),
        summary="Promote a version",
        tags=["models"],
    )
    async def promote(name: _Name, body: PromoteRequest, identity: Identity = may_admin) -> PromotionResult:
        """Make a version the champion, a canary or a shadow, once it scores here exactly what was evaluated."""
        result: PromotionResult = await control.call("promote", identity.project, identity.name, name, body)
        return result

    @app.post(
        "/v1/models/{name}/rollback", responses=describe_errors(400, 404, 413), summary="Roll back", tags=["models"]
    )
    async def rollback(name: _Name, body: ReasonRequest, identity: Identity = may_admin) -> RouteEntry:
        """Make the previous champion the champion again."""
        route: RouteEntry = await control.call("rollback", identity.project, identity.name, name, body.reason)
        return route

    @app.delete(
        "/v1/models/{name}/canary", responses=describe_errors(400, 404), summary="End a canary", tags=["models"]
    )
    async def end_canary(name: _Name, identity: Identity = may_admin, reason: _Reason = "") -> RouteEntry:
        """Let the champion answer all requests."""
        route: RouteEntry = await control.call("end_canary", identity.project, identity.name, name, reason)
        return route

    @app.delete(
        "/v1/models/{name}/shadow", responses=describe_errors(400, 404), summary="End a shadow", tags=["models"]
    )
    async def end_shadow(name: _Name, identity: Identity = may_admin, reason: _Reason = "") -> RouteEntry:
        """Score by the champion alone."""
        route: RouteEntry = await control.call("end_shadow", identity.project, identity.name, name, reason)
        return route

    @app.delete(
        "/v1/models/{name}/versions/{version}",
        status_code=204,
        responses=describe_errors(400, 404),
        summary="Delete a version",
        tags=["models"],
    )
    async def delete(
        name: _Name,
        version: Annotated[int, Path(ge=1, le=999_999_999)],
        identity: Identity = may_admin,
        reason: _Reason = "",
    ) -> Response:
        """Delete a version that has no part in answering; its number is never given again."""
        await control.call("delete", identity.project, identity.name, name, version, reason)
        return Response(status_code=204)

    @app.get("/health", summary="Is the process up?", tags=["operation"])
    async def health() -> dict[str, str]:
        """Answers as long as the process does."""
        return {"status": "up"}

    @app.get(
        "/ready",
        responses={503: {"model": ErrorReply, "description": "Not yet."}},
        summary="Can it score?",
        tags=["operation"],
    )
    async def ready() -> dict[str, str]:
        """Answers 200 once routes have been read and champions loaded."""
        scorer.check()
        if not scorer.ready:
            raise StateError("this replica is still starting")
        return {"status": "ready"}

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=describe_errors(),
        summary="Metrics for Prometheus",
        tags=["operation"],
    )
    async def metrics(request: Request, identity: Identity = may_score) -> Response:
        """Counters of all replicas. With API keys it needs one, of scope score, and tells of its project's models."""
        # Not by the identity's name, which a key may have, too: without a header only a server without keys answers.
        has_key = bool(request.headers.get("Authorization", "").strip())
        text = await control.metrics(identity.project if has_key else None)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(draw_manual(app.openapi()))

    return app


def _request_id(request: Request) -> str:
    given = request.headers.get("X-Request-Id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def describe_api() -> dict[str, Any]:
    """The OpenAPI document, without a server: ``python -m autoad.serve.http > docs/openapi.json``."""
    nobody = cast(Any, SimpleNamespace(project=""))  # is asked by requests only
    options = ServeOptions()
    return create_app(Scorer(nobody, options, ""), nobody, nobody, nobody, options, nobody).openapi()


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """FastAPI's, less the reply to an invalid request that it describes by itself: here that is a 400."""
        document = super().openapi()
        for operations in document["paths"].values():
            for operation in operations.values():
                invalid = operation["responses"].get("422", {}).get("content", {}).get("application/json", {})
                if invalid.get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
                    del operation["responses"]["422"]
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document


class _Limited:
    """Reads little of a request that brings no pictures: FastAPI reads its body before it knows who sends it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _HAS_LIMITS.search(scope["path"]):
            await self._app(scope, receive, send)
            return
        size = 0

        async def count() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > _CONTROL_BYTES:
                raise HTTPException(413, f"the request has more than {_CONTROL_BYTES} bytes, the most that is read")
            return message

        await self._app(scope, count, send)


class _Counted:
    """Counts replies by route and status."""

    def __init__(self, app: ASGIApp, count: Any) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = scope.get("route")
            self._count(getattr(route, "path", "none"), status)


if __name__ == "__main__":
    json.dump(describe_api(), sys.stdout, indent=2)
    sys.stdout.write("\n")
