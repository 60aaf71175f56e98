from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_every_package_and_the_search_spaces(tmp_path: Path) -> None:
    """The two symlinked packages are the ones that a build silently loses."""
    source = tmp_path / "source"  # a copy: what an earlier build left behind must not help this one
    ignored = shutil.ignore_patterns(".*", "build", "demo", "*.egg-info", "tests", "benchmarks")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = next(tmp_path.glob("*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    for package in listed:
        assert f"{package.replace('.', '/')}/__init__.py" in names
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "autoad").rglob("*.py")}
    linked = {
        f"autoad/{folder}/{path.name}" for folder in ("serve", "search_spaces") for path in (ROOT / folder).glob("*.py")
    }
    assert sources | linked <= names
    spaces = {f"autoad/search_spaces/{path.name}" for path in (ROOT / "search_spaces").glob("*.yaml")}
    assert len(spaces) == 8
    templates = {f"autoad/report/templates/{path.name}" for path in (ROOT / "autoad/report/templates").iterdir()}
    assert len(templates) == 4
    assert templates <= names
    assert spaces <= names
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); import autoad.serve; print(autoad.serve.__file__)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert wheel.name in imported.stdout


@pytest.mark.parametrize(
    "module",
    [
        "algorithms",
        "client",
        "data",
        "database",
        "errors",
        "evaluation",
        "features",
        "models",
        "report",
        "schema",
        "search",
    ],
)
def test_public_names_are_sorted_and_exist(module: str) -> None:
    imported = importlib.import_module(f"autoad.{module}")
    names = imported.__all__
    assert list(names) == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    for name in names:
        assert hasattr(imported, name)


LOOKS_AT_A_SEARCH = """
from contextlib import suppress
from autoad.errors import UsageError
from autoad.search import load_result
with suppress(UsageError):  # there may be none
    load_result()
"""


@pytest.mark.parametrize(
    ("code", "unneeded"),
    [
        ("import autoad.schema, autoad.errors, autoad.settings, autoad.cli", {"torch", "ray", "optuna", "numpy"}),
        (LOOKS_AT_A_SEARCH, {"torch", "ray", "optuna", "numpy"}),
        ("from autoad.search import score_pictures", {"ray", "optuna", "scipy", "pandas", "openvino", "timm"}),
        ("import autoad.search.worker", {"optuna", "sqlalchemy", "scipy", "sklearn", "openvino", "timm"}),
        ("import autoad.search.run", {"scipy.stats", "sklearn", "openvino", "timm"}),
    ],
)
def test_nobody_waits_for_what_is_not_needed(code: str, unneeded: set[str]) -> None:
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not unneeded & set(loaded)


def test_constraints_pin_every_dependency_without_addresses() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pins = (ROOT / "constraints.txt").read_text()
    assert "@" not in pins
    assert "://" not in pins
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in pins.splitlines() if "==" in line}
    for requirement in wanted:
        name = re.split(r"[\[>=<;~! ]", requirement)[0].lower().replace("_", "-")
        assert name in pinned, requirement
