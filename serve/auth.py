"""Who may ask what: API keys, and where a server may listen without any.

A request carries ``Authorization: Bearer autoad_ID_SECRET``. The id finds the key, the secret's hash is compared in
constant time; an unknown id costs the same hash and the same comparison.

As long as no key has ever been made, a server on this machine's own address (loopback) answers everybody who can reach
it, with all scopes. From the first key on it asks for one everywhere. Revoking the last key does not open it again.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from autoad.database import PREFIX, SCOPES, Keys, KeyTable, hash_secret
from autoad.errors import AuthenticationError, ForbiddenError, StateError, UsageError
from autoad.schema import Scope

__all__ = ["Authenticator", "Identity", "KeySource", "check_may_listen", "internal_key", "is_loopback"]

_logger = logging.getLogger(__name__)
_NOBODY = hash_secret("")  # what the secret of an unknown id is compared with
_INTERNAL = "internal"


@dataclass(frozen=True)
class Identity:
    """Who sends a request.

    Attributes:
        project: whose models and searches are meant.
        name: of the key, ``local`` without one; the actor in a model's history.
        scopes: what the key may do.
        internal: whether it is this server itself, which checks what is to be promoted.
    """

    project: str
    name: str
    scopes: frozenset[Scope]
    internal: bool = False

    def require(self, scope: Scope) -> None:
        """Pass if the key has the scope, or ``admin``, which includes all.

        Raises:
            ForbiddenError: it has neither.
        """
        if not self.scopes & {scope, "admin"}:
            has = ", ".join(sorted(self.scopes)) or "none"
            raise ForbiddenError(f"this needs the scope {scope!r} but the key {self.name!r} has {has}; use another key")


def internal_key(secret: str, project: str) -> str:
    """The key by which one part of a server asks another on behalf of a project.

    Args:
        secret: what :class:`Authenticator` was given as ``internal``; without a slash, as of ``secrets.token_urlsafe``.
        project: whose models are meant.
    """
    return f"{_INTERNAL}_{secret}/{urllib.parse.quote(project, safe='')}"


class KeySource(Protocol):
    """Where keys are read from: :class:`autoad.database.Keys`."""

    def read(self) -> KeyTable:
        """All keys."""


class Authenticator:
    """Knows the keys as they were at most ``fresh_seconds`` ago, so that a request costs no query.

    Whoever asks first after that time reads them again, in one query; with :meth:`start` a thread does so beforehand
    and no request waits for the database. While the database is out of reach the keys last read stay as they were:
    nobody can revoke one then, and pictures go on being scored.

    Args:
        source: where the keys are.
        default_project: the project of requests without a key.
        loopback: whether the server listens on loopback only, see :func:`check_may_listen`; requests without a key are
            refused otherwise.
        internal: secret of this server alone, by which its own parts are known, see :func:`internal_key`.
        fresh_seconds: for how long what was read may be used; a revoked key may go on for as long.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        source: KeySource,
        default_project: str,
        *,
        loopback: bool = False,
        internal: str | None = None,
        fresh_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._local = Identity(default_project, "local", frozenset(SCOPES)) if loopback else None
        self._internal = None if internal is None else hash_secret(internal)
        self._fresh_seconds = fresh_seconds
        self._clock = clock
        self._table: KeyTable | None = None
        self._tried = -float("inf")
        self._failing = False
        self._reading = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def authenticate(self, authorization: str | None) -> Identity:
        """Who sends a request with this ``Authorization`` header.

        Raises:
            AuthenticationError: a key is needed and there is none, or it is unknown or revoked.
            StateError: the keys could not be read even once yet.
        """
        if self._clock() - self._tried >= self._fresh_seconds:
            self.refresh()
        table = self._table
        if table is None:
            raise StateError("the API keys cannot be read: the database is out of reach; try again in a few seconds")
        if authorization is None or not authorization.strip():
            if self._local is not None and not table.ever_made:
                return self._local
            raise AuthenticationError(
                "this needs an API key: send the header Authorization: Bearer KEY; an administrator makes keys with: "
                "autoad keys create NAME --scope score"
            )
        scheme, _, key = authorization.strip().partition(" ")
        if scheme.lower() != "bearer":
            raise AuthenticationError("the Authorization header must be 'Bearer KEY' but has another scheme")
        prefix, _, rest = key.strip().partition("_")
        if prefix == _INTERNAL and self._internal is not None:
            secret, _, project = rest.partition("/")
            if hmac.compare_digest(hash_secret(secret), self._internal):
                return Identity(urllib.parse.unquote(project), "server", frozenset(SCOPES), internal=True)
        identifier, _, secret = rest.partition("_")
        stored = table.usable.get(identifier)
        same = hmac.compare_digest(hash_secret(secret), _NOBODY if stored is None else stored.hash)
        if stored is None or not same or prefix != PREFIX:
            raise AuthenticationError(
                "the API key is unknown or has been revoked; ask an administrator for another",
                'Bearer error="invalid_token"',
            )
        return Identity(stored.project, stored.name, stored.scopes)

    def refresh(self) -> None:
        """Read the keys again, unless another thread is reading them; on failure what is known stays."""
        if not self._reading.acquire(blocking=self._table is None):
            return
        try:
            self._tried = self._clock()
            self._table = self._source.read()
            if self._failing:
                _logger.warning("the API keys can be read again")
            self._failing = False
        except Exception as error:  # whatever it is, it must not change who may come in, nor end the server
            if not self._failing:
                _logger.warning("the API keys cannot be read, those last known stay (%s)", type(error).__name__)
            self._failing = True
        finally:
            self._reading.release()

    def start(self) -> None:
        """Read the keys now, and from now on in a thread of its own, twice as often as they must be."""
        self.refresh()
        self._thread = threading.Thread(target=self._keep_fresh, name="autoad-keys", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def _keep_fresh(self) -> None:
        while not self._stopping.wait(self._fresh_seconds / 2):
            self.refresh()


def is_loopback(host: str) -> bool:
    """Whether a server bound to ``host`` can be reached from this machine only.

    A name counts if it can be resolved and every address that it has is loopback; an empty host, ``0.0.0.0`` and ``::``
    mean every interface.
    """
    bare = host.strip().removeprefix("[").removesuffix("]")
    if not bare:
        return False
    try:
        addresses = {cast("str", entry[4][0]) for entry in socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False
    return bool(addresses) and all(_is_loopback_address(address) for address in addresses)


def _is_loopback_address(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def check_may_listen(host: str, keys: Keys) -> bool:
    """Whether ``host`` is loopback; refuse to listen elsewhere when nobody would have to show a key.

    Returns:
        What :class:`Authenticator` wants to know as ``loopback``.

    Raises:
        UsageError: the host is not loopback and there is no API key that could be used.
    """
    if is_loopback(host):
        return True
    if not keys.read().usable:
        raise UsageError(
            f"to listen on {host!r}, which other machines reach, there must be an API key but there is none; make one "
            "with: autoad keys create NAME --scope score, or listen on 127.0.0.1"
        )
    return False
