"""What a user can name is documented."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import typer

from autoad import errors
from autoad.algorithms import ALGORITHMS
from autoad.cli import app
from autoad.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def all_commands() -> dict[str, Any]:
    commands = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    groups = {name: command for name, command in commands.items() if hasattr(command, "commands")}
    assert "keys" in groups
    for group, command in groups.items():
        del commands[group]
        commands |= {f"{group} {name}": below for name, below in command.commands.items()}
    return commands


def test_every_command_is_in_the_readme() -> None:
    for name in all_commands():
        assert f"`autoad {name}`" in README, name


def test_the_reference_pages_are_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    written = reference.pages()
    assert sorted(written) == ["cli.md", "http.md", "sdk.md"]
    for file, text in written.items():
        assert (ROOT / "docs" / file).read_text() == text, f"docs/{file} is old; run: python docs/reference.py"
    options = {option for command in all_commands().values() for one in command.params for option in one.opts}
    assert len(options) > 30
    for option in options - {"--help"}:
        if option.startswith("--"):
            assert f"`{option}`" in written["cli.md"]


def test_commands_with_json_and_exit_codes_are_those_of_the_readme() -> None:
    silent = {
        name
        for name, command in all_commands().items()
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert silent == {"serve"}
    assert "every command but `serve` has `--json`" in README
    told = re.search(r"Exit codes: ([^(]*)", README)
    assert told is not None
    listed = {int(number) for number in re.findall(r"\b\d+\b", told[1])}
    raised = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    assert listed == raised | {0, 130}


def test_every_package_is_once_in_the_architecture() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    assert "cluster" in rows
    assert len(rows) == len(set(rows))


def test_every_setting_and_algorithm_is_in_the_readme() -> None:
    for field in Settings.model_fields:
        assert f"`AUTOAD_{field.upper()}`" in README
    for name in ALGORITHMS:
        assert f"`{name}`" in README


def test_the_readme_names_both_commands() -> None:
    for command in ("make demo", "make test"):
        assert f"\n    {command}" in README
        assert f"\n{command.split()[1]}: install" in (ROOT / "Makefile").read_text()


def test_every_picture_and_page_that_the_readme_links_to_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert "docs/live.svg" in links
    for link in links:
        assert (ROOT / link).exists() or (ROOT / f"{link}.md").exists(), link
