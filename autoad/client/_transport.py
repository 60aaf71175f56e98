"""One server over HTTP: the key, retries, and errors as exceptions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

import httpx2
from pydantic import BaseModel

from autoad.client._attempts import Attempts
from autoad.client._records import read_record
from autoad.errors import (
    AuthenticationError,
    AutoADError,
    BusyError,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    ServerError,
    UnreachableError,
    UsageError,
)

__all__ = ["Body", "Repeat", "Transport"]

T = TypeVar("T")

Repeat = Literal["never", "retries", "patience"]
"""Whether a request may be repeated: not at all; a few times; or for as long as patience lasts."""
Body = bytes | Callable[[], AsyncIterator[bytes]]
"""What a request brings: bytes, or what gives them anew for each attempt."""

_RETRIED = frozenset({429, 500, 502, 503, 504})
_PASSES = _RETRIED - {500}
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_HOPELESS = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
_CONNECT_SECONDS = 10.0
_CONNECTIONS = 256


class Transport:
    """Requests to one server.

    Args:
        server: its address, such as ``http://127.0.0.1:8000``.
        api_key: empty for a server that asks for none.
        timeout: seconds that an answer may take.
        retries: how often a request that may be repeated is tried again.
        patience: seconds for which uploads, long rows of pictures and following go on trying.
        carrier: what carries requests; None for the network.

    Raises:
        UsageError: the address or the key is none.
    """

    def __init__(
        self,
        server: str,
        api_key: str,
        *,
        timeout: float,
        retries: int,
        patience: float,
        carrier: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        for name, value, least in (("timeout", timeout, 0.001), ("retries", retries, 0), ("patience", patience, 0)):
            if not value >= least:
                raise UsageError(f"{name} must be at least {least} but got {value}")
        self.server = _checked_address(server)
        self.timeout = timeout
        self.retries = retries
        self.patience = patience
        key = api_key.strip()
        if not (key.isascii() and key.isprintable()):
            raise UsageError("the API key must be as `autoad keys create` printed it but holds other characters")
        self._http = httpx2.AsyncClient(
            base_url=self.server,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=self._seconds(timeout),
            limits=httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
            transport=carrier,
        )
        self._closed = False

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        await self._http.aclose()

    async def get(self, kind: type[T], path: str, *, repeat: Repeat = "retries", **params: str | int | None) -> T:
        """The record that ``path`` answers; parameters that are None are left out."""
        return _read(kind, await self.ask("GET", path, repeat=repeat, params=params))

    async def post(
        self, kind: type[T], path: str, record: BaseModel | None = None, *, repeat: Repeat, **options: Any
    ) -> T:
        """The record that ``path`` answers to a record; ``options`` are those of :meth:`ask`."""
        if record is not None:
            headers = {"Content-Type": "application/json"} | options.pop("headers", {})
            options |= {"content": record.model_dump_json().encode(), "headers": headers}
        return _read(kind, await self.ask("POST", path, repeat=repeat, **options))

    async def delete(self, kind: type[T], path: str, **params: str | int | None) -> T:
        """The record that ``path`` answers when what it names is to end."""
        return _read(kind, await self.ask("DELETE", path, repeat="retries", params=params))

    async def ask(
        self,
        method: str,
        path: str,
        *,
        repeat: Repeat,
        params: Mapping[str, str | int | None] | None = None,
        content: Body | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> httpx2.Response:
        """The answer of ``path``, once it is one.

        Args:
            method: of HTTP.
            path: from the server's root; see :func:`autoad.client._records.segment`.
            repeat: whether asking twice does no harm. A request that never reached the server is always repeated.
            params: of the address; those that are None are left out.
            content: the body.
            headers: besides the key.
            timeout: seconds, if the answer may take longer than others.
            options: of httpx2.

        Raises:
            UnreachableError: nobody answers.
            AuthenticationError: the key is missing, unknown or revoked.
            ForbiddenError: the key lacks the scope.
            RefusedError: the server does not do that.
            BusyError: it has no room or time.
            ServerError: it failed.
            UsageError: this client was closed.
        """
        attempts = Attempts(self.retries, self.patience if repeat == "patience" else 0.0)
        options |= {"params": {name: value for name, value in (params or {}).items() if value is not None}}
        if timeout is not None:
            options["timeout"] = self._seconds(max(timeout, self.timeout))
        while True:
            self._require_open()
            body = content() if callable(content) else content
            try:
                reply = await self._http.request(method, path, content=body, headers=headers, **options)
            except _HOPELESS as error:
                raise self.unreachable(error) from error
            except httpx2.RequestError as error:
                may = repeat != "never" or isinstance(error, _NEVER_SENT)
                if not may or not await attempts.again():
                    raise self.unreachable(error) from error
                continue
            except RuntimeError as error:
                self._require_open()  # closed by another thread meanwhile
                raise error
            if reply.is_success:
                return reply
            status, asked = reply.status_code, reply.headers.get("Retry-After")
            may = repeat != "never" and status in _RETRIED
            if not may or not await attempts.again(asked=asked, patient=status in _PASSES):
                raise _refusal(reply)

    @asynccontextmanager
    async def stream(self, path: str, headers: Mapping[str, str], silence: float) -> AsyncIterator[httpx2.Response]:
        """A reply that arrives bit by bit; ``silence`` is how many seconds may lie between two bits. Not repeated.

        Raises:
            RequestError: of httpx2: nobody answers, or the connection broke.
            AutoADError: as :meth:`ask`.
        """
        self._require_open()
        async with self._http.stream("GET", path, headers=headers, timeout=self._seconds(silence)) as reply:
            if not reply.is_success:
                await reply.aread()
                raise _refusal(reply)
            yield reply

    def unreachable(self, error: Exception) -> UnreachableError:
        """The error that says so."""
        return UnreachableError(
            f"no autoad server answers at {self.server} ({str(error) or type(error).__name__}); start one with "
            "`autoad serve`, or name another with --server or AUTOAD_SERVER"
        )

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError("this client was closed; make another")

    @staticmethod
    def _seconds(timeout: float) -> httpx2.Timeout:
        return httpx2.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS))


def _read(kind: type[T], reply: httpx2.Response) -> T:
    return read_record(kind, reply.content, f"{reply.request.method} {reply.request.url.path}", reply.status_code)


def _checked_address(server: str) -> str:
    try:
        url = httpx2.URL(server.strip())
    except (httpx2.InvalidURL, TypeError):
        url = httpx2.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(f"server must be an address such as http://127.0.0.1:8000 but got {server!r}")
    return server.strip().rstrip("/")


def _refusal(reply: httpx2.Response) -> AutoADError:
    """The error that a reply tells of."""
    status = reply.status_code
    try:
        error = reply.json()["error"]
        lines = [error["message"], *(error.get("details") or []), *([error["hint"]] if error.get("hint") else [])]
        message, code = "\n".join(map(str, lines)), str(error["code"])
    except (ValueError, KeyError, TypeError):
        moved = f" (to {reply.headers['Location']})" if "Location" in reply.headers else ""
        message, code = f"the server answered {status}{moved}: {reply.text[:300]}", "unknown"
    if status == 401:
        return AuthenticationError(message, reply.headers.get("WWW-Authenticate", "Bearer"))
    if status == 403:
        return ForbiddenError(message)
    kind = NotFoundError if status == 404 else RefusedError if 400 <= status < 500 else ServerError
    return (BusyError if status in (429, 503) else kind)(message, code, status)
