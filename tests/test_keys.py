from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoad.database import SCOPES, Database, Keys
from autoad.errors import UnknownNameError, UsageError
from autoad.settings import Settings
from tests.conftest import Run


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    database = Database(Settings(data_dir=tmp_path))
    yield Keys(database)
    database.close()


def test_only_the_hash_of_a_secret_is_stored(keys: Keys, tmp_path: Path) -> None:
    entry, key = keys.create("line-1", ["submit", "score", "score"])
    prefix, identifier, secret = key.split("_", 2)
    assert (prefix, identifier) == ("autoad", entry.id)
    assert len(identifier) == 16
    assert len(secret) >= 43, "32 bytes in base64"
    assert (entry.project, entry.name, entry.scopes) == ("default", "line-1", ["score", "submit"])
    with contextlib.closing(sqlite3.connect(tmp_path / "autoad.db")) as database:
        (row,) = database.execute("SELECT id, hash FROM api_keys")
    assert row == (identifier, hashlib.sha256(secret.encode()).hexdigest())
    assert not [path for path in tmp_path.iterdir() if secret.encode() in path.read_bytes()]


def test_keys_differ_and_are_listed_by_project(keys: Keys) -> None:
    made = [keys.create(f"key-{number}", ["score"])[1] for number in range(20)]
    assert len({key.split("_", 2)[1] for key in made}) == len({key.split("_", 2)[2] for key in made}) == 20
    other, _ = keys.create("key-0", ["admin"], project="other")
    assert [entry.name for entry in keys.list()] == [f"key-{number}" for number in range(20)]
    assert list(keys.list("other")) == [other]
    assert keys.list("nobody") == []
    assert len(keys.read().usable) == 21
    assert keys.read().usable[other.id].scopes == {"admin"}


def test_a_revoked_key_stays_listed_and_its_name_taken(keys: Keys) -> None:
    assert (dict(keys.read().usable), keys.read().ever_made) == ({}, False)
    entry, _ = keys.create("line-1", SCOPES)
    revoked = keys.revoke("line-1")
    assert revoked.revoked is not None
    assert revoked.revoked >= entry.created
    assert revoked.revoked.tzinfo is not None
    assert keys.revoke("line-1") == revoked, "the first time counts"
    assert list(keys.list()) == [revoked]
    assert (dict(keys.read().usable), keys.read().ever_made) == ({}, True)
    with pytest.raises(UsageError, match="a key named 'line-1' already"):
        keys.create("line-1", ["score"])


@pytest.mark.parametrize(
    ("name", "scopes", "project", "message"),
    [
        ("", ["score"], None, "a key's name must be"),
        ("a b", ["score"], None, "a key's name must be"),
        ("a\n", ["score"], None, "a key's name must be"),
        ("[red]", ["score"], None, "a key's name must be"),
        ("a" * 65, ["score"], None, "a key's name must be"),
        ("a", [], None, "at least one scope: score, submit, admin"),
        ("a", ["scor"], None, "unknown scope 'scor'. Did you mean 'score'"),
        ("a", ["score"], "", "a key's project must be"),
    ],
)
def test_what_cannot_be_a_key_is_refused(
    keys: Keys, name: str, scopes: list[str], project: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        keys.create(name, scopes, project)
    assert not keys.read().ever_made


def test_an_unknown_key_cannot_be_revoked(keys: Keys) -> None:
    with pytest.raises(UsageError, match="no key yet"):
        keys.revoke("line-1")
    keys.create("line-1", ["score"])
    with pytest.raises(UnknownNameError, match="Did you mean 'line-1'"):
        keys.revoke("line-2")
    with pytest.raises(UsageError, match="'other' has no key yet"):
        keys.revoke("line-1", project="other")


def test_the_command_line_makes_lists_and_revokes(autoad: Run, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        done = autoad("keys", *arguments, AUTOAD_DATA_DIR=str(tmp_path), AUTOAD_PROJECT="plant")
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    assert "autoad keys create" in run("list")[1]
    code, key, hint = run("create", "line-1", "--scope", "score", "--scope", "admin")
    assert (code, key.count("\n"), key.split("_")[0]) == (0, 1, "autoad"), "stdout is the key alone, for a pipe"
    assert "only time" in hint
    made = json.loads(run("create", "line-2", "--scope", "score", "--project", "other", "--json")[1])
    assert made["key"].startswith(f"autoad_{made['id']}_")
    (listed,) = json.loads(run("list", "--json")[1])
    assert (listed["name"], listed["project"], listed["scopes"]) == ("line-1", "plant", ["score", "admin"])
    code, shown, _ = run("list")
    assert "line-1" in shown
    assert listed["id"] in shown
    assert key.strip().split("_", 2)[2] not in shown
    assert run("create", "line-3", "--scope", "scor")[0] == 2
    assert run("create", "line-3")[0] == 2, "a key without scopes would be of no use"
    assert run("revoke", "line-1")[0] == 0
    assert json.loads(run("revoke", "line-2", "--project", "other", "--json")[1])["revoked"]
    assert json.loads(run("list", "--json")[1])[0]["revoked"]
    assert run("revoke", "line-9")[0] == 2
