"""What ``autoad promote`` asks of the server, and what it refuses to ask."""

from __future__ import annotations

from typing import Any

import pytest

from autoad import client
from autoad.commands import serving
from autoad.errors import UsageError


class Connection:
    """Takes down requests."""

    asked: list[tuple[str, str, dict[str, Any]]]

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def delete(self, path: str, **params: Any) -> Any:
        self.asked.append(("DELETE", path, params))
        return {"champion": 1}

    def post(self, path: str, body: dict[str, Any]) -> Any:
        self.asked.append(("POST", path, body))
        return {"version": 2, "parity_answers": 8, "parity_pictures": 4, "replicas": ["a", "b"], "seconds": 1.0}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    Connection.asked = []
    monkeypatch.setattr(client, "Connection", Connection)
    return Connection.asked


@pytest.mark.parametrize(
    "options",
    [
        {"canary": "10%", "shadow": True},
        {"canary": "10%", "shadow": False},
        {"canary": "0%", "shadow": True},
        {"canary": "0%", "shadow": False},
        {"canary": "0%", "version": 2},
        {"shadow": False, "version": 2},
    ],
    ids=str,
)
def test_two_changes_at_once_are_refused(asked: list[Any], options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"one after the other|leave it out"):
        serving.promote("bottle", **{"version": None, "shadow": None} | options)
    assert asked == []


def test_the_reason_is_sent_with_everything(asked: list[Any]) -> None:
    serving.promote("bottle", version=None, canary="0%", shadow=None, reason="noisy & slow")
    serving.promote("bottle", version=None, shadow=False, reason="seen enough")
    serving.promote("bottle", version=2, canary="10%", shadow=None, reason="try")
    assert asked == [
        ("DELETE", "/v1/models/bottle/canary", {"reason": "noisy & slow"}),
        ("DELETE", "/v1/models/bottle/shadow", {"reason": "seen enough"}),
        ("POST", "/v1/models/bottle/promote", {"version": 2, "reason": "try", "canary": 0.1, "shadow": False}),
    ]
