"""Names and addresses of models: ``bottle``, ``bottle/3``, ``bottle@champion``, each with or without ``models:/``."""

from __future__ import annotations

import dataclasses
import re

from autoad.errors import UnknownNameError, UsageError

__all__ = ["ALIASES", "MODELS", "Address", "check_model_name", "parse_address"]

ALIASES = ("champion", "previous", "canary", "shadow")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MODELS = "models:/"
"""With this before it, a text can be nothing but the address of a model."""


@dataclasses.dataclass(frozen=True)
class Address:
    """Which version of which model; without version and alias the champion, or the newest where there is none."""

    name: str
    version: int | None = None
    alias: str | None = None


def check_model_name(name: str) -> str:
    """The name, which becomes a folder and a part of addresses.

    Raises:
        UsageError: it cannot be one.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            "a model's name must be at most 100 letters, digits, '.', '_' or '-', the first a letter or digit, but got "
            f"{name[:120]!r}"
        )
    return name


def parse_address(text: str) -> Address:
    """Read an address.

    Raises:
        UsageError: it is none.
    """
    bare = text.removeprefix(MODELS)
    name, at, alias = bare.partition("@")
    if at:
        check_model_name(name)
        if alias not in ALIASES:
            raise UnknownNameError("alias", alias, ALIASES)
        return Address(name, alias=alias)
    name, slash, version = bare.partition("/")
    check_model_name(name)
    if not slash:
        return Address(name)
    if not version.isascii() or not version.isdigit() or not 1 <= len(version) <= 9:
        raise UsageError(f"a version must be a number, as in {name}/3, but got {version[:20]!r}")
    return Address(name, version=int(version))
