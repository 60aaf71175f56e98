from __future__ import annotations

import hmac
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoad.database import SCOPES, Database, Keys, KeyTable, hash_secret
from autoad.errors import AuthenticationError, ForbiddenError, StateError, UsageError
from autoad.schema import Scope
from autoad.serve import auth
from autoad.serve.auth import Authenticator, Identity, check_may_listen, internal_key, is_loopback
from autoad.settings import Settings


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    database = Database(Settings(data_dir=tmp_path))
    yield Keys(database)
    database.close()


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Source:
    """Keys of a database that can be put out of reach, and how often they were read."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.reads = 0
        self.failure: Exception | None = None

    def read(self) -> KeyTable:
        self.reads += 1
        if self.failure is not None:
            raise self.failure
        return self.keys.read()


def test_a_key_is_its_project_name_and_scopes(keys: Keys) -> None:
    _, key = keys.create("line-1", ["score"], project="plant")
    _, boss = keys.create("boss", ["admin"])
    who = Authenticator(keys, "default")
    assert who.authenticate(f"Bearer {key}") == Identity("plant", "line-1", frozenset({"score"}))
    assert who.authenticate(f"  bearer   {boss} ") == Identity("default", "boss", frozenset({"admin"}))


@pytest.mark.parametrize("scope", SCOPES)
def test_admin_includes_every_scope_and_the_others_only_themselves(scope: Scope) -> None:
    for held in SCOPES:
        identity = Identity("default", "line-1", frozenset({held}))
        if held in {scope, "admin"}:
            identity.require(scope)
        else:
            with pytest.raises(ForbiddenError, match=f"needs the scope '{scope}' but the key 'line-1' has {held}"):
                identity.require(scope)


def test_what_is_no_key_is_refused(keys: Keys) -> None:
    entry, key = keys.create("line-1", ["score"])
    other, other_key = keys.create("line-2", ["score"])
    secret = key.split("_", 2)[2]
    who = Authenticator(keys, "default", loopback=True)
    for missing in (None, "", "  "):
        with pytest.raises(AuthenticationError, match="needs an API key") as caught:
            who.authenticate(missing)
        assert caught.value.challenge == "Bearer", "RFC 6750: no error code where no key was sent"
    with pytest.raises(AuthenticationError, match="must be 'Bearer KEY'"):
        who.authenticate(f"Basic {key}")
    wrong = [
        *(key, f"Bearer{key}", "Bearer", "Bearer ", f"Bearer {key}x", f"Bearer {key[:-1]}", f"Bearer {key} {key}"),
        *(f"Bearer {secret}", f"Bearer x{key}", f"Bearer autoad_{entry.id}", f"Bearer autoad_{entry.id}_"),
        *(f"Bearer autoad_{other.id}_{secret}", f"Bearer autoad__{secret}", f"Bearer AUTOAD_{entry.id}_{secret}"),
        *(f"Bearer autoad_{entry.id}_{hash_secret(secret)}", "Bearer autoad_é_\udce9", "Bearer " + "_" * 9000),
    ]
    for header in wrong:
        with pytest.raises(AuthenticationError) as caught:
            who.authenticate(header)
        assert secret not in str(caught.value)
    assert caught.value.challenge == 'Bearer error="invalid_token"'
    assert who.authenticate(f"Bearer {other_key}").name == "line-2"


def test_an_unknown_id_costs_the_same_comparison(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, key = keys.create("line-1", ["score"])
    compared: list[tuple[int, int]] = []
    genuine = hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return genuine(one, other)

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    who = Authenticator(keys, "default")
    who.authenticate(f"Bearer {key}")
    for header in (f"Bearer autoad_{'0' * 16}_secret", f"Bearer autoad_{entry.id}_secret", "Bearer nonsense"):
        with pytest.raises(AuthenticationError, match="unknown or has been revoked"):
            who.authenticate(header)
    assert compared == [(64, 64)] * 4, "two hashes each time"


def test_an_empty_secret_does_not_pass_for_nobody(keys: Keys) -> None:
    """What an unknown id is compared with is the hash of the empty secret: equal, and still refused."""
    keys.create("line-1", ["score"])
    with pytest.raises(AuthenticationError):
        Authenticator(keys, "default").authenticate(f"Bearer autoad_{'0' * 16}_")


@pytest.mark.parametrize("project", ["default", "Werk 3/ä"])
def test_a_server_knows_its_own_parts(keys: Keys, project: str) -> None:
    keys.create("line-1", ["score"])
    who = Authenticator(keys, "default", internal="s3cret_-x")
    header = f"Bearer {internal_key('s3cret_-x', project)}"
    assert header.isascii()
    assert who.authenticate(header) == Identity(project, "server", frozenset(SCOPES), internal=True)
    for wrong in (
        "Bearer internal_/default",
        "Bearer internal_s3cret_-y/default",
        "Bearer internal_",
        "Bearer s3cret_-x",
    ):
        with pytest.raises(AuthenticationError):
            who.authenticate(wrong)
    with pytest.raises(AuthenticationError):
        Authenticator(keys, "default").authenticate(header)


def test_without_any_key_only_loopback_is_open(keys: Keys) -> None:
    clock = Clock()
    local = Authenticator(keys, "plant", loopback=True, clock=clock)
    remote = Authenticator(keys, "plant", clock=clock)
    assert local.authenticate(None) == Identity("plant", "local", frozenset(SCOPES))
    with pytest.raises(AuthenticationError):
        remote.authenticate(None)
    with pytest.raises(AuthenticationError):
        local.authenticate("Bearer autoad_00_11")
    keys.create("line-1", ["score"], project="other")
    clock.now += 1.0
    with pytest.raises(AuthenticationError):
        local.authenticate(None)
    keys.revoke("line-1", project="other")
    clock.now += 1.0
    with pytest.raises(AuthenticationError):
        local.authenticate(None)


def test_a_revoked_key_stops_within_a_second_and_requests_cost_no_query(keys: Keys) -> None:
    _, key = keys.create("line-1", ["score"])
    clock, source = Clock(), Source(keys)
    who = Authenticator(source, "default", clock=clock)
    for _ in range(100):
        who.authenticate(f"Bearer {key}")
        clock.now += 0.009
    assert source.reads == 1
    keys.revoke("line-1")
    clock.now = 1000.99
    assert who.authenticate(f"Bearer {key}").name == "line-1", "what was read is used for a second"
    clock.now = 1001.0
    with pytest.raises(AuthenticationError):
        who.authenticate(f"Bearer {key}")
    assert source.reads == 2
    clock.now += 3600
    _, later = keys.create("line-2", ["score"])
    assert who.authenticate(f"Bearer {later}").name == "line-2"
    assert source.reads == 3


def test_it_goes_on_with_what_it_knew_while_the_database_is_away(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    _, key = keys.create("line-1", ["score"])
    clock, source = Clock(), Source(keys)
    who = Authenticator(source, "default", clock=clock)
    who.authenticate(f"Bearer {key}")
    source.failure = OSError(f"no route to host, {key}")
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            clock.now += 0.5
            assert who.authenticate(f"Bearer {key}").name == "line-1"
            with pytest.raises(AuthenticationError):
                who.authenticate("Bearer autoad_00_11")
    assert source.reads == 1 + 25, "one attempt a second"
    assert [record.message for record in caplog.records] == [
        "the API keys cannot be read, those last known stay (OSError)"
    ]
    keys.revoke("line-1")
    source.failure = None
    clock.now += 1.0
    with pytest.raises(AuthenticationError):
        who.authenticate(f"Bearer {key}")
    assert "can be read again" in caplog.text


def test_what_was_never_read_lets_nobody_in(keys: Keys) -> None:
    clock, source = Clock(), Source(keys)
    source.failure = OSError()
    who = Authenticator(source, "default", loopback=True, clock=clock)
    with pytest.raises(StateError, match="out of reach"):
        who.authenticate(None)
    with pytest.raises(StateError, match="out of reach"):
        who.authenticate(None)
    assert source.reads == 1
    source.failure = None
    clock.now += 1.0
    assert who.authenticate(None).name == "local"


def test_a_thread_reads_beforehand_and_no_request_waits_for_a_database_that_hangs(keys: Keys) -> None:
    _, key = keys.create("line-1", ["score"])
    hang, hanging = threading.Event(), threading.Event()

    class Hanging(Source):
        def read(self) -> KeyTable:
            if hang.is_set():
                hanging.set()
                while hang.is_set():
                    time.sleep(0.005)
            return super().read()

    source = Hanging(keys)
    who = Authenticator(source, "default", fresh_seconds=0.1)
    who.start()
    try:
        keys.revoke("line-1")
        end = time.monotonic() + 30
        while source.reads < 3 and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(AuthenticationError):
            who.authenticate(f"Bearer {key}")
        _, other = keys.create("line-2", ["score"])
        seen = source.reads
        while source.reads < seen + 2 and time.monotonic() < end:
            time.sleep(0.01)
        hang.set()
        assert hanging.wait(30)
        time.sleep(0.15)  # longer than what was read may be used
        assert who.authenticate(f"Bearer {other}").name == "line-2"
        assert hang.is_set()
    finally:
        hang.clear()
        who.close()
    assert "autoad-keys" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "::ffff:127.0.0.1", "127.1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "::", "[::]", "0", "10.0.0.1", "128.0.0.1", "fe80::1", "::ffff:10.0.0.1", "::ffff:0.0.0.0", "a..b"],
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_a_name_is_loopback_only_if_all_its_addresses_are(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, list[str]] = {
        "localhost.evil.example": ["10.1.2.3"],
        "both.example": ["127.0.0.1", "192.0.2.1"],
        "mine.example": ["127.0.0.1", "::1"],
        "none.example": [],
    }

    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        if host not in answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in answers[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert is_loopback("mine.example")
    assert not any(map(is_loopback, ("localhost.evil.example", "both.example", "none.example", "gone.example")))


def test_it_listens_elsewhere_only_with_a_usable_key(keys: Keys) -> None:
    assert check_may_listen("127.0.0.1", keys)
    for _ in range(2):
        with pytest.raises(UsageError, match=r"listen on '0\.0\.0\.0'.*autoad keys create"):
            check_may_listen("0.0.0.0", keys)
        if not keys.read().ever_made:
            keys.create("line-1", ["score"], project="other")
            assert not check_may_listen("0.0.0.0", keys)
            assert check_may_listen("127.0.0.1", keys)
            keys.revoke("line-1", project="other")
