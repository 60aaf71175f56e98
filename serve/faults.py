"""What goes wrong, as replies: one JSON shape for everything.

``{"error": {"code": ..., "message": ..., "hint": ..., "details": [...]}}``; hint and details only where there are any.
What a client cannot mend (a damaged file, a database out of reach) is told to the log, with its paths and addresses;
the reply only says that it is so.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from starlette.exceptions import HTTPException

from autoad.errors import (
    ArtifactError,
    AuthenticationError,
    AutoADError,
    ConflictError,
    FileStoreError,
    ForbiddenError,
    ImageTooLargeError,
    PromotionError,
    QueueLimitError,
    QuotaError,
    StateError,
    StorageFullError,
    UnknownNameError,
    UnreadableImageError,
    UsageError,
    WeightsError,
)
from autoad.serve.batching import QueueFullError
from autoad.serve.routing import NoChampionError

__all__ = [
    "ErrorReply",
    "MissingError",
    "RateError",
    "RequestTooLargeError",
    "UnsupportedError",
    "describe_errors",
    "install",
]

_logger = logging.getLogger(__name__)


class ErrorBody(BaseModel):
    """What went wrong.

    Attributes:
        code: for programs; does not change.
        message: for people.
        hint: what to do.
        details: one line each.
    """

    code: str
    message: str
    hint: str | None = None
    details: list[str] | None = None


class ErrorReply(BaseModel):
    """The reply to a request that was not carried out."""

    error: ErrorBody


class RequestTooLargeError(AutoADError):
    """A request has more bytes or pictures than are read."""


class MissingError(AutoADError):
    """What is asked for is not there, or not yet."""


class UnsupportedError(AutoADError):
    """A request's body is of a kind that is not read."""


class RateError(AutoADError):
    """Somebody asks for more than is given at a time: pictures a second, or searches to follow.

    Args:
        message: what is wrong.
        seconds: after which it may ask again.
    """

    def __init__(self, message: str, seconds: int = 1) -> None:
        super().__init__(message, seconds)
        self.message = message
        self.seconds = seconds

    def __str__(self) -> str:
        return self.message


# The first that fits; derived before base.
_STATUS: tuple[tuple[type[AutoADError], int, str], ...] = (
    (AuthenticationError, 401, "unauthenticated"),
    (ForbiddenError, 403, "forbidden"),
    (RequestTooLargeError, 413, "request_too_large"),
    (ImageTooLargeError, 413, "picture_too_large"),
    (UnreadableImageError, 422, "unreadable_picture"),
    (UnsupportedError, 415, "unsupported_media_type"),
    (RateError, 429, "rate_exceeded"),
    (QueueFullError, 429, "queue_full"),
    (NoChampionError, 409, "not_promoted"),
    (ConflictError, 409, "conflict"),
    (QuotaError, 413, "quota_exceeded"),
    (QueueLimitError, 429, "search_queue_full"),
    (PromotionError, 409, "promotion_refused"),
    (UnknownNameError, 404, "unknown_name"),
    (MissingError, 404, "not_found"),
    (UsageError, 400, "bad_request"),
    (ArtifactError, 503, "model_unavailable"),
    (WeightsError, 503, "model_unavailable"),
    (FileStoreError, 503, "model_unavailable"),
    (StorageFullError, 503, "model_unavailable"),
    (StateError, 503, "unavailable"),
)
_DETAILS, _LENGTH = 20, 300
_RETRY_SECONDS = 1
_SEARCH_SECONDS = 30  # a place in the queue comes free when a search has ended


def describe_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of replies with these statuses, and with those that every route has."""
    names = {
        400: "The request is not as it must be.",
        401: "An API key is needed.",
        403: "The key lacks the scope.",
        404: "No such thing, or not yet.",
        409: "What there is stands against it: nothing has been promoted, the name is taken, ...",
        413: "Too many bytes, pixels or pictures.",
        415: "A body of a kind that is not read.",
        422: "Bytes that are no picture.",
        429: "Too much at once; try again after Retry-After.",
        503: "Not now; try again after Retry-After.",
    }
    return {status: {"model": ErrorReply, "description": names[status]} for status in (*statuses, 401, 403, 503)}


def install(app: FastAPI) -> None:
    """Have an application answer every error in the one shape."""
    app.add_exception_handler(AutoADError, _known)
    app.add_exception_handler(OperationalError, _database)
    app.add_exception_handler(InterfaceError, _database)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unknown)


async def _known(_: Request, error: Exception) -> JSONResponse:
    found = next(((status, code) for kind, status, code in _STATUS if isinstance(error, kind)), None)
    if found is None:
        return await _unknown(_, error)
    status, code = found
    headers = {}
    if status in (429, 503):
        seconds = _SEARCH_SECONDS if isinstance(error, QueueLimitError) else _RETRY_SECONDS
        headers["Retry-After"] = str(error.seconds if isinstance(error, RateError) else seconds)
    if code == "model_unavailable":
        _logger.warning("a model cannot be loaded: %s", error)
        return _reply(status, code, "this replica cannot load the model; the server's log says why", headers=headers)
    if isinstance(error, AuthenticationError):
        headers["WWW-Authenticate"] = error.challenge
    if isinstance(error, PromotionError):
        return _reply(status, code, error.message, details=error.details, headers=headers)
    return _reply(status, code, str(error), headers=headers)


async def _database(_: Request, error: Exception) -> JSONResponse:
    _logger.warning("the database cannot be asked: %s", error.orig if isinstance(error, DBAPIError) else error)
    message = "the database is out of reach; models that are loaded go on scoring"
    return _reply(503, "unavailable", message, headers={"Retry-After": "1"})


async def _http(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    codes = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
    message = str(error.detail)
    if error.status_code == 404:
        message = f"there is no {request.url.path}"
    return _reply(
        error.status_code,
        codes.get(error.status_code, "refused"),
        message,
        hint="see /docs" if error.status_code in (404, 405) else None,
        headers=dict(error.headers or {}),
    )


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    details = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}"[:_LENGTH] for one in error.errors()[:_DETAILS]]
    return _reply(400, "bad_request", "the request is not as it must be", hint="see /docs", details=details)


async def _unknown(_: Request, error: Exception) -> JSONResponse:
    _logger.error("a request failed", exc_info=error)
    return _reply(500, "failed", "the server failed; its log says why")


def _reply(
    status: int,
    code: str,
    message: str,
    *,
    hint: str | None = None,
    details: list[str] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    body: dict[str, Any] = {"code": code, "message": message}
    if hint:
        body["hint"] = hint
    if details:
        body["details"] = details
    return _Json({"error": body}, status, headers=headers)


class _Json(JSONResponse):
    """In ASCII: what a client sent may hold half a surrogate pair, which UTF-8 cannot say."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()
