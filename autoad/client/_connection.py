"""One server over HTTP: the key, retries, and errors as exceptions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx2

from autoad.errors import ServerError, UnreachableError

__all__ = ["Connection"]

_RETRIED = frozenset({429, 500, 502, 503, 504})
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 10.0


class Connection:
    """Requests to one server.

    Args:
        server: its address, such as ``http://127.0.0.1:8000``.
        api_key: empty for a server on this machine that asks for none.
        timeout: seconds that an answer may take.
        retries: how often a request that may be repeated is tried again, after waits that double from a second (longer
            where the server asks for it in ``Retry-After``).
        sleep: what waits.
    """

    def __init__(
        self,
        server: str,
        api_key: str = "",
        *,
        timeout: float = 60.0,
        retries: int = 3,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.server = server.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx2.Client(base_url=self.server, headers=headers, timeout=timeout)
        self._retries = retries
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str, **params: str | int) -> Any:
        """What ``path`` answers."""
        return self._ask("GET", path, repeatable=True, params=params)

    def post(
        self,
        path: str,
        json: Mapping[str, Any] | None = None,
        *,
        repeatable: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """What ``path`` answers to a JSON document; ``repeatable`` says that asking twice does no harm."""
        more = {} if timeout is None else {"timeout": timeout}
        return self._ask("POST", path, repeatable=repeatable, json=dict(json or {}), **more)

    def delete(self, path: str, **params: str | int) -> Any:
        """What ``path`` answers when what it names is to end."""
        return self._ask("DELETE", path, repeatable=True, params=params)

    def send(self, path: str, picture: bytes, **params: str | int) -> Any:
        """What ``path`` answers to a picture. Scoring changes nothing, so it is repeated when it fails."""
        headers = {"Content-Type": "application/octet-stream"}
        return self._ask("POST", path, repeatable=True, content=picture, headers=headers, params=params)

    def _ask(self, method: str, path: str, *, repeatable: bool, **options: Any) -> Any:
        """The JSON of an answer.

        Raises:
            UnreachableError: nobody answers.
            ServerError: the server refuses, or fails.
        """
        for attempt in range(self._retries + 1 if repeatable else 1):
            last = attempt == self._retries or not repeatable
            try:
                reply = self._client.request(method, path, **options)
            except httpx2.TransportError as error:
                if last:
                    raise UnreachableError(
                        f"no autoad server answers at {self.server} ({error or type(error).__name__}); start one with "
                        "`autoad serve`, or name another with --server or AUTOAD_SERVER"
                    ) from error
                self._sleep(_wait(attempt, None))
                continue
            if reply.status_code < 400:
                return reply.json() if reply.content else None
            if last or reply.status_code not in _RETRIED:
                raise _refusal(reply)
            self._sleep(_wait(attempt, reply.headers.get("Retry-After")))
        raise AssertionError("the last attempt returns or raises")


def _wait(attempt: int, asked: str | None) -> float:
    """Seconds before the next attempt, not less than was ``asked`` for.

    Three waits of one, two and four seconds outlast the restart of whatever has died in the server. Some chance in them
    keeps many clients from coming back together.
    """
    least = float(asked) if asked is not None and asked.isdigit() else 0.0
    longest = min(max(_FIRST_WAIT * float(2**attempt), least), _LONGEST_WAIT)
    return longest * random.uniform(1.0, 1.25)  # noqa: S311


def _refusal(reply: httpx2.Response) -> ServerError:
    try:
        error = reply.json()["error"]
        message = "\n".join(
            [error["message"], *error.get("details", []), *([error["hint"]] if error.get("hint") else [])]
        )
        return ServerError(message, error["code"], reply.status_code)
    except (ValueError, KeyError, TypeError):
        return ServerError(f"the server answered {reply.status_code}: {reply.text[:300]}", "unknown", reply.status_code)
