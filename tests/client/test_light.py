"""What the SDK does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import autoad
from autoad import client
from autoad.errors import DatasetError

HEAVY = {"torch", "ray", "numpy", "PIL", "pyarrow", "sqlalchemy", "fastapi", "typer", "rich"}


def loaded(code: str) -> set[str]:
    code = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_imports_the_clients_when_they_are_asked_for() -> None:
    assert "autoad.client" not in loaded("import autoad")
    modules = loaded("import autoad; autoad.Client('http://x').close()")
    assert "autoad.client" in modules
    assert not HEAVY & modules
    assert autoad.Client is client.Client
    assert autoad.AsyncClient is client.AsyncClient
    assert {"Client", "AsyncClient"} <= set(dir(autoad))
    with pytest.raises(AttributeError, match="no attribute 'Server'"):
        autoad.Server  # noqa: B018


def test_it_is_imported_in_half_a_second() -> None:
    """Processor time, because these machines share their cores."""
    code = "import time; import autoad; autoad.Client; print(time.process_time())"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.5


def test_a_parquet_manifest_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoad.folders import read_manifest

    (tmp_path / "set.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DatasetError, match="pip install pyarrow, or write the manifest as CSV"):
        read_manifest(tmp_path / "set.parquet")
