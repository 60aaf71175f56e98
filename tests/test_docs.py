"""What a user can name is documented."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from autoad.algorithms import ALGORITHMS
from autoad.cli import app
from autoad.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_command_and_option_is_in_the_readme() -> None:
    commands = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    groups = {name: command for name, command in commands.items() if hasattr(command, "commands")}
    assert "keys" in groups
    for group, command in groups.items():
        del commands[group]
        commands |= {f"{group} {name}": below for name, below in command.commands.items()}
    for name, command in commands.items():
        assert f"autoad {name}" in README
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--") and option not in {"--help", "--json"}:
                    assert f"`{option}" in README, f"{name} {option}"


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
