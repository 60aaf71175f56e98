"""What ``autoad promote`` and ``rollback`` ask of the server, and what they refuse to ask."""

from __future__ import annotations

import json

import pytest

from tests.client.service import Service
from tests.commands.conftest import Command


@pytest.mark.parametrize(
    "options",
    [
        ("--canary", "10%", "--shadow"),
        ("--canary", "10%", "--no-shadow"),
        ("--canary", "0%", "--shadow"),
        ("--canary", "0%", "--no-shadow"),
        ("--canary", "0%", "--version", "2"),
        ("--no-shadow", "--version", "2"),
        ("--canary", "100%"),
        ("--canary", "few"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_refused(run: Command, service: Service, address: str, options: tuple[str, ...]) -> None:
    done = run("promote", "bottle", *options, "--server", address)
    assert done.code == 2
    assert any(told in done.stderr for told in ("one after the other", "leave it out", "must be a share"))
    assert service.asked == []


def test_the_reason_is_sent_with_everything(run: Command, service: Service, address: str) -> None:
    to = ("--server", address)
    assert run("promote", "bottle", "--canary", "0%", "--reason", "noisy & slow", *to).code == 0
    assert service.last("/canary").query == {"reason": "noisy & slow"}
    assert run("promote", "bottle", "--no-shadow", "--reason", "seen", *to).stdout == (
        "bottle: ended; version 1 answers alone\n"
    )
    assert service.last("/shadow").query == {"reason": "seen"}
    done = run("promote", "bottle", "--version", 2, "--canary", "10%", "--reason", "try", *to)
    assert json.loads(service.last("/promote").body) == {
        "version": 2,
        "reason": "try",
        "canary": 0.1,
        "shadow": False,
    }
    assert done.stdout == (
        "bottle: version 2 is canary for 10.0%; 8 answers of 2 replicas to 4 pictures are what was evaluated (1.0 s)\n"
    )
    assert json.loads(run("promote", "bottle", "--json", *to).stdout)["version"] == 2
    done = run("rollback", "bottle", "--reason", "worse", *to)
    assert done.stdout == "bottle: version 1 is the champion again, instead of 2\n"
    assert json.loads(service.last("/rollback").body) == {"reason": "worse"}
    assert json.loads(run("rollback", "bottle", "--json", *to).stdout)["champion"] == 1


def test_the_server_of_this_machine_is_asked_where_none_is_named(run: Command, waits: list[float]) -> None:
    done = run("rollback", "bottle")
    assert done.code == 4
    assert "no autoad server answers at http://127.0.0.1:8000" in done.stderr
