from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from autoad.cli import main
from autoad.settings import Settings
from tests.client.conftest import _address, address, folder, service, waits

__all__ = ["Command", "Done", "_address", "address", "folder", "service", "waits"]


class Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("AUTOAD_DATA_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("AUTOAD_SERVER", raising=False)
    return Settings()


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def command(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["autoad", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Done(code or 0, *capsys.readouterr())

    return command
